"""Published tokenizers: every text comes back, and ids are those of the libraries that the models were trained with."""

import json
from pathlib import Path

import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from weights import minilm, smollm

from minillm.errors import UserError
from minillm.published.subwords import Subwords, learn_vocabulary, learn_wordpiece, letters_of_bytes
from minillm.published.vocabularies import load_tokenizer
from minillm.tokenizer import SymbolTokenizer, shorten

DATA = Path(__file__).parents[3] / "shared" / "data"
GPT2 = DATA / "bpe_gpt2"
needs_gpt2 = pytest.mark.skipif(not GPT2.exists(), reason="needs GPT-2's encoder.json and vocab.bpe in ../shared/data")
needs_data = pytest.mark.skipif(not DATA.exists(), reason="needs the texts of ../shared/data")


def small_gpt2(folder: Path, **config) -> Path:
    """A byte-level vocabulary in GPT-2's files: all bytes, a few merges."""
    merges = ["h e", "l l", "he ll", "hell o", "Ġ w", "Ã ©", "ð Ł", "e n"]
    tokens = [*letters_of_bytes(), *(merge.replace(" ", "") for merge in merges), "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    if config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def library_bpe(folder: Path, vocabulary: str = "vocab.json", merges: str = "merges.txt") -> tokenizers.Tokenizer:
    model = tokenizers.models.BPE.from_file(str(folder / vocabulary), str(folder / merges))
    made = tokenizers.Tokenizer(model)
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.add_special_tokens(["<|endoftext|>"])
    return made


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory):
    """The same vocabulary through tiktoken and through a tokenizer.json."""
    folder = small_gpt2(tmp_path_factory.mktemp("gpt2"))
    other = tmp_path_factory.mktemp("library")
    library_bpe(folder).save(str(other / "tokenizer.json"))
    (other / "tokenizer_config.json").write_text('{"eos_token": "<|endoftext|>"}')
    return load_tokenizer(folder), load_tokenizer(other)


@pytest.fixture(scope="module")
def fallback():
    """SentencePiece's way: spaces as ▁, unknown letters as bytes."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "▁a", "▁ab"]
    merges = [("▁", "a"), ("▁a", "b")]
    ids = {token: i for i, token in enumerate(tokens)}
    made = tokenizers.Tokenizer(
        tokenizers.models.BPE(ids, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    parts = tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")
    made.normalizer = tokenizers.normalizers.Sequence(list(parts))
    d = tokenizers.decoders
    made.decoder = d.Sequence([d.Replace("▁", " "), d.ByteFallback(), d.Fuse(), d.Strip(" ", 1, 0)])
    made.add_special_tokens(["<s>", "</s>", "<unk>"])
    return Subwords(made, {"eos_token": "</s>"})


# ---- round trips and pieces ----------------------------------------------------------------------


@given(st.text())
@example("▁")
def test_any_text_comes_back(byte_level, fallback, text):
    for tokenizer in (*byte_level, fallback):
        ids = tokenizer.encode(text)
        # SentencePiece writes blanks as ▁ and cannot tell them from one that was there.
        assert tokenizer.decode(ids) == (text.replace("▁", " ") if tokenizer is fallback else text)
        assert all(0 <= i < tokenizer.vocab_size for i in ids)
        assert set(tokenizer.control.values()).isdisjoint(ids)
    assert byte_level[0].encode(text) == byte_level[1].encode(text)


@given(st.text(st.sampled_from("ab é字🦉\n"), max_size=12))
def test_pieces_are_whole_characters(byte_level, fallback, text):
    for tokenizer in (*byte_level, fallback):
        stream = tokenizer.stream()
        pieces = [stream.push(i) for i in tokenizer.encode(text)]
        assert "\ufffd" not in "".join(pieces)
        assert "".join(pieces) + stream.close() == text


@given(st.lists(st.integers(0, 300)))
@example([3, 264, 131])  # two bytes, between them an id beyond the vocabulary
def test_pieces_of_any_ids_make_what_decode_does(byte_level, fallback, ids):
    for tokenizer in (*byte_level, fallback):
        stream = tokenizer.stream()
        assert "".join(map(stream.push, ids)) + stream.close() == tokenizer.decode(ids)
    assert byte_level[0].decode(ids) == byte_level[1].decode(ids)


def test_a_stream_says_words_as_they_come(byte_level):
    for tokenizer in byte_level:
        stream = tokenizer.stream()
        assert [stream.push(i) for i in tokenizer.encode("hello é🦉")] == ["hello", " ", "é", "", "", "🦉"]


# ---- control tokens ------------------------------------------------------------------------------


def test_control_tokens_only_where_they_are_meant(byte_level):
    for tokenizer in byte_level:
        text = "hello<|endoftext|>é"
        assert tokenizer.end not in tokenizer.encode(text)
        assert tokenizer.decode(tokenizer.encode(text)) == text
        ids, places = tokenizer.parse(text)
        assert ids.count(tokenizer.end) == 1
        assert tokenizer.decode(ids) == "helloé"
        assert [text[start:end] for start, end in places] == ["hello", "<|endoftext|>", "é"]


@pytest.mark.parametrize(
    ("sizes", "limit", "expected"),
    [
        ([7], None, [7]),
        ([7], 3, [3]),
        ([7], -2, [0]),
        ([3, 4], 7, [3, 4]),
        ([9, 9], 5, [2, 3]),
        ([9, 8], 5, [3, 2]),
        ([2, 9], 6, [2, 4]),
        ([9, 2], 6, [4, 2]),
        ([1, 1], 0, [0, 0]),
    ],
)
def test_the_longer_text_is_cut(sizes, limit, expected):
    assert list(shorten(sizes, limit)) == expected


# ---- files ---------------------------------------------------------------------------------------


def test_saved_and_loaded(tmp_path, byte_level):
    for tokenizer in (*byte_level, learn_wordpiece(["a small cat", "a small dog"] * 3, 60)):
        folder = tmp_path / type(tokenizer).__name__
        folder.mkdir(exist_ok=True)
        tokenizer.save(folder)
        again = load_tokenizer(folder)
        for text in ("hello é🦉", "a small caté", ""):
            assert again.wrap(text, "dog") == tokenizer.wrap(text, "dog")
        assert (again.end, again.stops, again.mask, again.vocab_size) == (
            tokenizer.end,
            tokenizer.stops,
            tokenizer.mask,
            tokenizer.vocab_size,
        )


def test_a_run_of_symbols_is_known_by_its_file(tmp_path):
    SymbolTokenizer("x", r"[\s\S]", "ab").save(tmp_path)
    assert load_tokenizer(tmp_path).encode("ba") == [1, 0]


def test_several_ends_of_a_text(tmp_path):
    small_gpt2(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [264, 7]}')
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.end == 264
    assert tokenizer.stops == {264, 7}


def spoil(name: str, text: str):
    return lambda folder: (folder / name).write_text(text)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda folder: (folder / "merges.txt").unlink(), "holds no tokenizer"),
        (spoil("vocab.json", "{"), "cannot read .*vocab.json"),
        (spoil("vocab.json", "{}"), "lacks '!', which .*merges.txt needs"),
        (spoil("merges.txt", "h e l\n"), "are not two parts"),
        (spoil("merges.txt", "x y\n"), "lacks 'xy'"),
        (spoil("vocab.json", '{"a": "0"}'), "gives 'a' no number"),
        (
            spoil("tokenizer_config.json", '{"tokenizer_class": "Qwen2Tokenizer"}'),
            "does not say how Qwen2Tokenizer cuts",
        ),
        (spoil("tokenizer_config.json", '{"eos_token": "<end>"}'), "lacks <end>"),
        (spoil("tokenizer.json", '{"model": {}}'), "cannot read .*tokenizer.json"),
        (spoil("tokenizer.json", '{"symbols": 3}'), "must hold a name, a pattern and a list of symbols"),
        (spoil("tokenizer.json", '{"name": "a", "pattern": "(", "symbols": ["a"]}'), "describes no tokenizer"),
        (spoil("tokenizer.json", '{"name": "a", "pattern": "a", "symbols": []}'), "its symbols are no texts"),
        (spoil("tokenizer.json", '{"name": "a", "pattern": "a", "symbols": ["a", 1]}'), "its symbols are no texts"),
        (spoil("tokenizer_config.json", '{"eos_token": 5}'), "eos_token=5 is no text"),
        (spoil("tokenizer_config.json", '{"eos_token": {"content": 5}}'), "eos_token=5 is no text"),
        (spoil("generation_config.json", '{"eos_token_id": [[1]]}'), "eos_token_id=.* are no numbers of tokens"),
        (spoil("generation_config.json", '{"eos_token_id": {}}'), "eos_token_id=.* are no numbers of tokens"),
        (spoil("generation_config.json", '{"eos_token_id": -1}'), "eos_token_id=.* are no numbers of tokens"),
        (spoil("tokenizer_config.json", "[" * 100_000), "cannot read .*tokenizer_config.json"),
    ],
)
def test_spoiled_files_end_in_a_sentence(tmp_path, change, sentence):
    change(small_gpt2(tmp_path))
    with pytest.raises(UserError, match=sentence):
        load_tokenizer(tmp_path)


def test_a_list_of_words_that_is_no_berts(tmp_path):
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\nword\n")
    with pytest.raises(UserError, match=r"lacks \[SEP\]"):
        load_tokenizer(tmp_path)


def test_choices_of_wordpiece(tmp_path):
    (tmp_path / "vocab.txt").write_text("\ufeff[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nhi\nHi\n", encoding="utf-8")
    for value, token in (("null", 5), ("true", 5), ("false", 6)):
        (tmp_path / "tokenizer_config.json").write_text(f'{{"do_lower_case": {value}}}')
        assert load_tokenizer(tmp_path).encode("Hi") == [token]
    for value in ('"no"', "0"):
        (tmp_path / "tokenizer_config.json").write_text(f'{{"do_lower_case": {value}}}')
        with pytest.raises(UserError, match=r"do_lower_case=.* is not true or false"):
            load_tokenizer(tmp_path)


def test_a_text_without_a_blank_takes_no_longer():
    """The library's learner takes time with the square of a word's length: here hours."""
    tokenizer = learn_wordpiece(["ab ab ba ba", "x" * 1_000_000], 100)
    assert tokenizer.encode("ab") != tokenizer.encode("ba")
    assert tokenizer.encode("x" * 101) == [tokenizer.id_of("unk")]


def test_many_words_without_a_blank_are_learned():
    words = "the/film,the/actors," * 20
    assert len(words) > 100
    spaced = " ".join(words.replace("/", " / ").replace(",", " , ").split())
    first, second = (learn_wordpiece([text] * 3, 100) for text in (words, spaced))
    assert first.backend.get_vocab() == second.backend.get_vocab()


# ---- the real ones -------------------------------------------------------------------------------


@needs_gpt2
def test_gpt2():
    tokenizer = load_tokenizer(GPT2)
    assert tokenizer.encode("hello world") == [31373, 995]
    assert tokenizer.vocab_size == 50257
    assert tokenizer.end == 50256


def texts(every: int) -> list[str]:
    """Lines of all files of ../shared/data, each `every`-th."""
    lines = []
    for path in sorted(DATA.glob("*/*")):
        if path.parent != GPT2:
            lines += path.read_text(encoding="utf-8").splitlines(keepends=True)
    return lines[::every]


@needs_gpt2
@pytest.mark.parametrize("every", [50, pytest.param(1, marks=pytest.mark.slow)])
def test_gpt2_equals_the_library_on_all_texts(every):
    ours, theirs = load_tokenizer(GPT2), library_bpe(GPT2, "encoder.json", "vocab.bpe")
    for text in texts(every):
        assert ours.encode(text) == theirs.encode(text).ids


@needs_data
@pytest.mark.parametrize("every", [100, pytest.param(1, marks=pytest.mark.slow)])
def test_smollm_from_gguf_equals_transformers(every):
    transformers = pytest.importorskip("transformers")
    ours = load_tokenizer(smollm())
    theirs = transformers.AutoTokenizer.from_pretrained(str(smollm().parent), gguf_file=smollm().name)
    # It reads of a file only the vocabulary, not that digits (and ½) stand alone, as SmolLM2's own tokenizer.json says.
    cut = tokenizers.pre_tokenizers.Digits(individual_digits=True), theirs.backend_tokenizer.pre_tokenizer
    theirs.backend_tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(list(cut))
    for text in texts(every):
        ids = ours.encode(text)
        assert ids == theirs.encode(text, add_special_tokens=False)
        assert ours.decode(ids) == text
    assert ours.control["<|im_end|>"] == ours.end == theirs.eos_token_id


@needs_data
def test_wordpiece_equals_transformers(tmp_path):
    """From tokenizer.json and from vocab.txt alone, single texts and pairs, whole and cut."""
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(minilm())
    (tmp_path / "vocab.txt").write_bytes((minilm() / "vocab.txt").read_bytes())
    sample = texts(200)
    for ours in (load_tokenizer(minilm()), load_tokenizer(tmp_path)):
        assert ours.mask == theirs.mask_token_id
        assert ours.end == theirs.sep_token_id
        for a, b in zip(sample[::2], sample[1::2], strict=False):
            assert ours.wrap(a)[0] == theirs(a, truncation=False)["input_ids"]
            pair = theirs(a, b, truncation="longest_first", max_length=24)
            assert ours.wrap(a, b, limit=24) == (pair["input_ids"], pair["token_type_ids"])
    assert ours.wrap("a [MASK].", control=True)[0] == theirs("a [MASK].")["input_ids"]
    assert ours.mask not in ours.wrap("a [MASK].")[0]


@settings(max_examples=30)
@given(st.lists(st.integers(0, 30521), max_size=30))
def test_pieces_of_wordpiece(ids):
    tokenizer = load_cached(minilm())
    stream = tokenizer.stream()
    assert "".join(map(stream.push, ids)) + stream.close() == tokenizer.decode(ids)


def load_cached(path: Path, loaded: dict = {}):  # noqa: B006, the default is the cache
    return loaded.get(path) or loaded.setdefault(path, load_tokenizer(path))


def test_few_words_that_recur_are_tokens_and_rare_ones_unknown():
    texts = ["The film was good", "the film was BAD, very bad", "a good book", "zyzzyva"]
    tokenizer = learn_vocabulary(texts, 100)
    words = {"the", "film", "was", "good", "bad"}
    assert set(tokenizer.backend.get_vocab()) == words | {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}
    assert tokenizer.decode(tokenizer.encode("the bad film")) == "the bad film"
    unknown = tokenizer.id_of("unk")
    assert tokenizer.encode("a zyzzyva") == [unknown, unknown]
    again = learn_vocabulary(texts[::-1], 100)  # the same words, so the same numbers
    assert again.backend.get_vocab() == tokenizer.backend.get_vocab()


@pytest.mark.parametrize(
    ("texts", "vocab_size"),
    [
        (["the film was good"] * 2, 8),  # more words than there is room for
        ([f"{a}{b}ing" for a in "bcdfg" for b in "aeiou"], 100),  # no word recurs
        (["abcabc", "abcab", "bcabc", "cabca"], 100),
    ],
)
def test_otherwise_there_are_pieces(texts, vocab_size):
    assert (
        learn_vocabulary(texts, vocab_size).backend.get_vocab()
        == learn_wordpiece(texts, vocab_size).backend.get_vocab()
    )


def test_a_learned_vocabulary_is_the_same_each_time():
    sentences = ["the cat sat on the mat", "the hat that the cat has"] * 5
    first, second = (learn_wordpiece(sentences, 50).backend.get_vocab() for _ in range(2))
    assert first == second
    assert "the" in first
