"""Vocabularies with all that lies beside them are read as transformers reads them, or refused by name."""

import json
from pathlib import Path

import pytest
import tokenizers

from minillm.errors import UserError
from minillm.published.subwords import letters_of_bytes
from minillm.published.vocabularies import load_tokenizer

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = "the cat sat The Cat caf café ##é e 1 < > [ ] ent 字 ##s"
WORDS = [*SPECIAL, *LETTERS.split()]
MERGES = ["t h", "th e", "Ġ the", "c a", "ca t", "Ġ cat"]
PIECES = [*letters_of_bytes(), *(merge.replace(" ", "") for merge in MERGES)]
GPT2 = [*PIECES, "<|endoftext|>"]
ROBERTA = ["<s>", "<pad>", "</s>", "<unk>", *PIECES, "<mask>"]
TEXTS = ["The Cat sat", "the <e1> cat[ENT]s", "cafés the字cat", " the cat", "the<e1>  é🦉", "", "the <e1>cat [ENT] cat"]
OF_BERT, OF_GPT2, OF_ROBERTA = ({"model_type": name} for name in ("bert", "gpt2", "roberta"))


def write(folder: Path, model: dict, config: dict | None, **files) -> Path:
    """A folder with config.json, tokenizer_config.json and other files: `vocab_txt` stands for vocab.txt."""
    named = {name.replace("__", "_").replace("_txt", ".txt").replace("_json", ".json"): x for name, x in files.items()}
    named |= {"config.json": model} | ({} if config is None else {"tokenizer_config.json": config})
    for name, content in named.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / name).write_text(text, encoding="utf-8", newline="")
    return folder


def bert(folder: Path, config: dict | None = None, **files) -> Path:
    return write(folder, OF_BERT, config, **{"vocab_txt": "\n".join(WORDS) + "\n"} | files)


def byte_level(folder: Path, model: dict, tokens: list[str], config: dict | None = None, **files) -> Path:
    own = {"vocab_json": {token: i for i, token in enumerate(tokens)}}
    return write(folder, model, config, **own, **{"merges_txt": "#version: 0.2\n" + "\n".join(MERGES) + "\n"} | files)


def bert_json(lowercase: bool = True) -> str:
    made = tokenizers.Tokenizer(tokenizers.models.WordPiece({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    made.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=lowercase)
    made.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    made.decoder = tokenizers.decoders.WordPiece()
    pieces = {"single": "[CLS] $A [SEP]", "pair": "[CLS] $A [SEP] $B:1 [SEP]:1"}
    made.post_processor = tokenizers.processors.TemplateProcessing(
        **pieces, special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    made.add_special_tokens(SPECIAL)
    return made.to_str()


def bpe_json(prefix: bool = False) -> str:
    pairs = [tuple(merge.split()) for merge in MERGES]
    made = tokenizers.Tokenizer(tokenizers.models.BPE({token: i for i, token in enumerate(GPT2)}, pairs))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.add_special_tokens(["<|endoftext|>"])
    return made.to_str()


def spm_json(prefix: bool) -> str:
    """As Llama 2's: pieces of SentencePiece, in which a blank is ▁."""
    tokens = ["<s>", "</s>", "▁", *"thea", "th", "the", "▁the", "▁a"]
    pairs = [("t", "h"), ("th", "e"), ("▁", "the"), ("▁", "a")]
    made = tokenizers.Tokenizer(tokenizers.models.BPE({token: i for i, token in enumerate(tokens)}, pairs))
    normal = tokenizers.normalizers
    made.normalizer = normal.Sequence([*[normal.Prepend("▁")] * prefix, normal.Replace(" ", "▁")])
    made.add_special_tokens(["<s>", "</s>"])
    return made.to_str()


def prefixed(folder: Path, kind: str, prefix: bool | None, tokenizer_json: str) -> Path:
    end = "</s>" if kind == "LlamaTokenizer" else "<|endoftext|>"
    config = {"tokenizer_class": kind, "add_prefix_space": prefix, "eos_token": end}
    return write(folder, {"model_type": "llama"}, config, tokenizer_json=tokenizer_json)


def entry(content: str, **properties) -> dict:
    return {"content": content, "lstrip": False, "rstrip": False, "single_word": False, **properties}


E1, ENT = entry("<e1>", special=False, normalized=True), entry("[ENT]", special=True, normalized=False)
MASK = {"__type": "AddedToken"} | entry("<mask>", lstrip=True, normalized=False)
N, M = len(WORDS), len(GPT2)
FAST = {"tokenizer_class": "PreTrainedTokenizerFast"}
BY_NAME = {**FAST, "eos_token": "<|endoftext|>"}

CASES = {
    # options beside a vocab.txt and beside a tokenizer.json
    "bert": lambda folder: bert(folder),
    "cased": lambda folder: bert(folder, {"do_lower_case": False}),
    "accents kept": lambda folder: bert(folder, {"strip_accents": False}),
    "accents stripped, cased": lambda folder: bert(folder, {"do_lower_case": False, "strip_accents": True}),
    "chinese together": lambda folder: bert(folder, {"tokenize_chinese_chars": False}),
    "json": lambda folder: bert(folder, {}, tokenizer_json=bert_json()),
    "json, cased": lambda folder: bert(folder, {"do_lower_case": False}, tokenizer_json=bert_json()),
    "json, class and cased": lambda folder: bert(
        folder, {"do_lower_case": False, "tokenizer_class": "BertTokenizerFast"}, tokenizer_json=bert_json()
    ),
    "json, silent": lambda folder: bert(folder, {}, tokenizer_json=bert_json(lowercase=False)),
    "json alone": lambda folder: bert(folder, tokenizer_json=bert_json(lowercase=False)),
    "json, accents kept": lambda folder: bert(folder, {"strip_accents": False}, tokenizer_json=bert_json()),
    "json, chinese together": lambda folder: bert(
        folder, {"tokenize_chinese_chars": False}, tokenizer_json=bert_json()
    ),
    "json of no class": lambda folder: bert(
        folder, {"do_lower_case": False, "sep_token": "[SEP]", **FAST}, tokenizer_json=bert_json()
    ),
    "distilbert, cased": lambda folder: write(
        folder,
        {"model_type": "distilbert"},
        {"do_lower_case": False, "tokenizer_class": "DistilBertTokenizer"},
        tokenizer_json=bert_json(),
    ),
    "gpt2": lambda folder: byte_level(folder, OF_GPT2, GPT2),
    "prefix": lambda folder: byte_level(folder, OF_GPT2, GPT2, {"add_prefix_space": True}),
    "begin": lambda folder: byte_level(folder, OF_GPT2, GPT2, {"add_bos_token": True}),
    "begin and end": lambda folder: byte_level(folder, OF_GPT2, GPT2, {"add_bos_token": True, "add_eos_token": True}),
    "another order": lambda folder: byte_level(folder, OF_GPT2, ["<|endoftext|>", *reversed(PIECES)]),
    "json, prefix": lambda folder: byte_level(
        folder, OF_GPT2, GPT2, {"add_prefix_space": True}, tokenizer_json=bpe_json()
    ),
    "json with a prefix, silent": lambda folder: byte_level(folder, OF_GPT2, GPT2, {}, tokenizer_json=bpe_json(True)),
    "json of no class with a prefix": lambda folder: byte_level(
        folder, {"model_type": "llama"}, GPT2, {"add_prefix_space": False, **BY_NAME}, tokenizer_json=bpe_json(True)
    ),
    "json, begin": lambda folder: byte_level(folder, OF_GPT2, GPT2, {"add_bos_token": True}, tokenizer_json=bpe_json()),
    "llama with GPT-2's class": lambda folder: byte_level(
        folder, {"model_type": "llama"}, GPT2, {"tokenizer_class": "GPT2Tokenizer"}
    ),
    # the family of the model
    "roberta": lambda folder: byte_level(folder, OF_ROBERTA, ROBERTA),
    "roberta, prefix": lambda folder: byte_level(folder, OF_ROBERTA, ROBERTA, {"add_prefix_space": True}),
    "roberta, begin": lambda folder: byte_level(folder, OF_ROBERTA, ROBERTA, {"add_bos_token": True}),
    "roberta's class": lambda folder: byte_level(folder, OF_GPT2, ROBERTA, {"tokenizer_class": "RobertaTokenizer"}),
    "roberta, mask": lambda folder: byte_level(folder, OF_ROBERTA, ROBERTA, {"mask_token": MASK}),
    "roberta, mask in a map": lambda folder: byte_level(
        folder, OF_ROBERTA, ROBERTA, {}, special__tokens__map_json={"mask_token": entry("<mask>", lstrip=True)}
    ),
    # tokens that are added
    "added": lambda folder: bert(folder, added__tokens_json={"<e1>": N}),
    "added, special": lambda folder: bert(
        folder, {"additional_special_tokens": ["[ENT]"]}, added__tokens_json={"<e1>": N, "[ENT]": N + 1}
    ),
    "decoder": lambda folder: bert(folder, {"added_tokens_decoder": {str(N): E1, str(N + 1): ENT}}),
    "decoder, cased": lambda folder: bert(
        folder, {"added_tokens_decoder": {str(N): E1, str(N + 1): ENT}, "do_lower_case": False}
    ),
    "decoder before a map": lambda folder: bert(
        folder, {"added_tokens_decoder": {str(N): E1}}, special__tokens__map_json={"mask_token": "<e1>"}
    ),
    "blank before": lambda folder: bert(folder, {"added_tokens_decoder": {str(N): E1 | {"lstrip": True}}}),
    "blank behind": lambda folder: byte_level(
        folder, OF_GPT2, GPT2, {"added_tokens_decoder": {str(M): E1 | {"rstrip": True}}}
    ),
    "word": lambda folder: byte_level(
        folder, OF_GPT2, GPT2, {"added_tokens_decoder": {str(M): E1 | {"single_word": True}}}
    ),
    "not normalized": lambda folder: bert(
        folder, {"added_tokens_decoder": {str(N): entry("[ENT]", special=False, normalized=False)}}
    ),
    "json, added": lambda folder: bert(folder, {}, tokenizer_json=bert_json(), added__tokens_json={"<e1>": N}),
    "json, decoder": lambda folder: bert(
        folder, {"added_tokens_decoder": {str(N): E1, str(N + 1): ENT}}, tokenizer_json=bert_json()
    ),
    "json of no class, decoder": lambda folder: byte_level(
        folder, OF_GPT2, GPT2, {"added_tokens_decoder": {str(M): E1}, **BY_NAME}, tokenizer_json=bpe_json()
    ),
    "extra": lambda folder: bert(folder, {"extra_special_tokens": ["[ENT]", "<e1>"]}),
    "extra with names": lambda folder: bert(folder, {"extra_special_tokens": {"entity_token": "[ENT]"}}),
    "a role of its own": lambda folder: bert(folder, {"entity_token": "[ENT]"}),
    "another pad": lambda folder: byte_level(
        folder, OF_GPT2, GPT2, {"pad_token": "<pad>", "additional_special_tokens": ["[ENT]"]}
    ),
    "roberta, added": lambda folder: byte_level(
        folder, OF_ROBERTA, ROBERTA, {}, added__tokens_json={"<e1>": len(ROBERTA)}
    ),
    # how the files are written
    "doubled": lambda folder: bert(folder, vocab_txt="\n".join([*WORDS, "the", "sat"]) + "\n"),
    "blanks behind": lambda folder: bert(folder, vocab_txt="\n".join(word + " " * (len(word) % 2) for word in WORDS)),
    "Windows": lambda folder: bert(folder, vocab_txt="\r\n".join(WORDS) + "\r\n"),
    "Windows, merges": lambda folder: byte_level(
        folder, OF_GPT2, GPT2, merges_txt="#version: 0.2\r\n" + "\r\n".join(MERGES) + "\r\n"
    ),
    "no version": lambda folder: byte_level(folder, OF_GPT2, GPT2, merges_txt="\n".join(MERGES)),
}


@pytest.mark.parametrize("case", CASES)
def test_read_as_transformers_reads(tmp_path, case):
    transformers = pytest.importorskip("transformers")
    folder = CASES[case](tmp_path)
    ours, theirs = load_tokenizer(folder), transformers.AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        ids = theirs(text)["input_ids"]
        assert ours.wrap(text, control=True)[0] == ids
        if "[ENT]" not in ours.control:
            assert ours.wrap(text)[0] == ids
        assert "".join(ours.decode(ids).split()) == "".join(theirs.decode(ids, skip_special_tokens=True).split())
        pair = theirs(text, "the cat", truncation="longest_first", max_length=7)["input_ids"]
        assert ours.wrap(text, "the cat", limit=7, control=True)[0] == pair
    assert ours.mask == theirs.mask_token_id
    assert ours.control == {name: i for name, i in theirs.get_added_vocab().items() if is_special(theirs, i)}
    again = tmp_path / "again"
    again.mkdir()
    ours.save(again)
    assert [load_tokenizer(again).wrap(text) for text in TEXTS] == [ours.wrap(text) for text in TEXTS]


def is_special(theirs, i: int) -> bool:
    return theirs.added_tokens_decoder[i].special


@pytest.mark.parametrize("case", ["added", "decoder", "json, decoder", "blank behind"])
def test_an_added_token_belongs_to_the_text_unless_it_is_special(tmp_path, case):
    ours = load_tokenizer(CASES[case](tmp_path))
    assert "<e1>" in ours.added
    assert "<e1>" not in ours.control
    assert ours.added["<e1>"] in ours.encode("the <e1> cat")
    assert "<e1>" in ours.decode(ours.encode("the <e1> cat"))
    stream = ours.stream()
    assert "<e1>" in "".join(map(stream.push, ours.encode("the <e1> cat"))) + stream.close()


def test_what_ends_texts_is_no_part_of_them(tmp_path):
    """Whether or not it was added as special."""
    end = entry("<|im_end|>", special=False, normalized=False)
    table = {"added_tokens_decoder": {str(M): end, str(M + 1): E1}}
    for number, config in enumerate(({"eos_token": "<|im_end|>"}, {})):
        folder = tmp_path / str(number)
        folder.mkdir()
        ends = {"eos_token_id": [M - 1, M]}
        tokenizer = load_tokenizer(
            byte_level(folder, OF_GPT2, GPT2, table | config, **({} if config else {"generation__config_json": ends}))
        )
        assert M in tokenizer.stops
        assert tokenizer.decode([*tokenizer.encode("the <e1>"), M]) == "the <e1>"
        assert M not in tokenizer.encode("the<|im_end|>")


@pytest.mark.parametrize("prefix", [True, False])
def test_a_prefix_that_both_files_name_is_taken(tmp_path, prefix):
    for number, said in enumerate((prefix, None)):
        (folder := tmp_path / str(number)).mkdir()
        tokenizer = load_tokenizer(prefixed(folder, "LlamaTokenizer", said, spm_json(prefix)))
        assert tokenizer.encode("the") == [9 if prefix else 8]


def test_the_numbers_of_a_vocabulary_may_have_gaps(tmp_path):
    assert load_tokenizer(CASES["doubled"](tmp_path)).vocab_size == N + 2


def test_what_begins_a_text(tmp_path):
    def begin(name, **files):
        (tmp_path / name).mkdir()
        return load_tokenizer(byte_level(tmp_path / name, OF_GPT2, GPT2, {}, **files)).begin

    assert begin("by the class") == M - 1
    assert begin("by the model", generation__config_json={"bos_token_id": 7}) == 7


@pytest.mark.parametrize(("side", "kept"), [("right", ["the", "cat"]), ("left", ["sat", "the"])])
def test_a_text_is_cut_where_the_files_say(tmp_path, side, kept):
    transformers = pytest.importorskip("transformers")
    folder = bert(tmp_path, {"model_max_length": 4, "truncation_side": side})
    ours, theirs = load_tokenizer(folder), transformers.AutoTokenizer.from_pretrained(folder)
    text = "the cat sat the"
    ids = [WORDS.index(word) for word in ("[CLS]", *kept, "[SEP]")]
    assert ours.wrap(text, limit=512)[0] == theirs(text, truncation=True)["input_ids"] == ids
    assert ours.wrap(text, limit=3)[0] == theirs(text, truncation=True, max_length=3)["input_ids"]
    assert len(ours.wrap(text)[0]) == 6
    assert ours.limit == 4


@pytest.mark.parametrize("limit", [None, 1e30, 1000000000000000019884624838656])
def test_no_limit(tmp_path, limit):
    tokenizer = load_tokenizer(bert(tmp_path, {"model_max_length": limit}))
    assert len(tokenizer.wrap("the " * 600, limit=500)[0]) == 500


def test_the_limit_of_sentence_transformers_comes_first(tmp_path):
    folder = bert(tmp_path, {"model_max_length": 8}, sentence__bert__config_json={"max_seq_length": 16})
    assert load_tokenizer(folder).limit == 16


def test_segments_only_where_the_model_has_them(tmp_path):
    names = {"model_input_names": ["input_ids", "attention_mask"]}
    assert set(load_tokenizer(bert(tmp_path, names)).wrap("the", "cat")[1]) == {0}
    assert set(load_tokenizer(bert(tmp_path, {})).wrap("the", "cat")[1]) == {0, 1}


REFUSED = {
    "unknown": (lambda folder: bert(folder, {"do_reverse": True}), "do_reverse=True is not supported"),
    "code": (lambda folder: byte_level(folder, OF_GPT2, GPT2, {"auto_map": {}}), "auto_map={} is not supported"),
    "of another kind": (lambda folder: bert(folder, {"add_prefix_space": True}), "add_prefix_space=True is not supp"),
    "of BERT": (lambda folder: byte_level(folder, OF_GPT2, GPT2, {"do_lower_case": True}), "do_lower_case=True is"),
    "not basic": (lambda folder: bert(folder, {"do_basic_tokenize": False}), "do_basic_tokenize=False is not supp"),
    "never split": (lambda folder: bert(folder, {"never_split": ["a"]}), r"never_split=\['a'\] is not supported"),
    "no flag": (lambda folder: byte_level(folder, OF_GPT2, GPT2, {"add_bos_token": 1}), "add_bos_token=1 is not true"),
    "no flag, json": (
        lambda folder: bert(folder, {"do_lower_case": "no"}, tokenizer_json=bert_json()),
        "do_lower_case='no' is not true or false",
    ),
    "side": (lambda folder: bert(folder, {"truncation_side": "top"}), "truncation_side='top' is not supported"),
    "limit": (lambda folder: bert(folder, {"model_max_length": "8"}), "model_max_length='8' is no number of tokens"),
    "no limit": (lambda folder: bert(folder, {"model_max_length": 0}), "model_max_length=0 is no number of tokens"),
    "class": (lambda folder: bert(folder, {"tokenizer_class": 3}), "tokenizer_class=3 is no text"),
    "another class": (
        lambda folder: bert(folder, {"tokenizer_class": "T5Tokenizer"}),
        "vocab.txt alone does not say how T5Tokenizer cuts a text",
    ),
    "roberta with a vocab.txt": (
        lambda folder: write(folder, OF_ROBERTA, None, vocab_txt="\n".join(WORDS)),
        "vocab.txt alone does not say how RobertaTokenizer",
    ),
    "bert with GPT-2's files": (
        lambda folder: byte_level(folder, OF_BERT, GPT2),
        "vocab.json alone does not say how BertTokenizer",
    ),
    "roberta without a mask": (
        lambda folder: byte_level(folder, OF_ROBERTA, ROBERTA[:-1]),
        "lacks <mask>, the mask token",
    ),
    "another number": (
        lambda folder: bert(folder, {"added_tokens_decoder": {"99": E1}}),
        f"calls '<e1>' token 99, but here it is {N}",
    ),
    "another number in json": (
        lambda folder: bert(folder, {}, tokenizer_json=bert_json(), added__tokens_json={"<e1>": 0}),
        f"calls '<e1>' token 0, but here it is {N}",
    ),
    "no number": (lambda folder: bert(folder, {"added_tokens_decoder": {"x": E1}}), "is no table by number"),
    "no table": (lambda folder: bert(folder, {"added_tokens_decoder": [E1]}), "is no table by number"),
    "no token": (lambda folder: bert(folder, {"added_tokens_decoder": {"20": 5}}), "5 describes no token"),
    "an empty token": (
        lambda folder: bert(folder, {"extra_special_tokens": [""]}),
        "'content': ''} describes no token",
    ),
    "a strange property": (
        lambda folder: bert(folder, {"added_tokens_decoder": {str(N): E1 | {"upside_down": True}}}),
        "describes no token",
    ),
    "added without a number": (lambda folder: bert(folder, added__tokens_json={"<e1>": "5"}), "gives '<e1>' no number"),
    "no names": (lambda folder: bert(folder, {"model_input_names": [5]}), r"model_input_names=\[5\] is no list of te"),
    "no list": (
        lambda folder: bert(folder, {"extra_special_tokens": 5}),
        "extra_special_tokens=5 is no list of tokens",
    ),
    "a prefix that tokenizer.json lacks": (
        lambda folder: prefixed(folder, "Qwen2Tokenizer", True, bpe_json()),
        "add_prefix_space=True is about a blank before every text, but tokenizer.json puts none there",
    ),
    "no prefix, but tokenizer.json has one": (
        lambda folder: prefixed(folder, "LlamaTokenizer", False, spm_json(prefix=True)),
        "add_prefix_space=False is about a blank before every text, but tokenizer.json puts one there",
    ),
    "three parts": (
        lambda folder: byte_level(folder, OF_GPT2, GPT2, merges_txt="t h e\n"),
        "'t h e' are not two parts with a blank between them",
    ),
    "json cut off": (
        lambda folder: bert(folder, {}, tokenizer_json=bert_json()[:300]),
        "cannot read .*tokenizer.json",
    ),
    "json of another": (lambda folder: bert(folder, {}, tokenizer_json={"version": "1.0"}), "cannot read .*tokenizer"),
    "json that is empty": (lambda folder: bert(folder, {}, tokenizer_json=""), "cannot read .*tokenizer.json"),
    "json that is a list": (lambda folder: bert(folder, {}, tokenizer_json="[]"), "holds no JSON object"),
    "no UTF-8": (
        lambda folder: bert(folder, {}, vocab_txt="x").joinpath("vocab.txt").write_bytes(b"\xff\xfe") and folder,
        "cannot read .*vocab.txt",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_a_sentence(tmp_path, case):
    make, sentence = REFUSED[case]
    make(tmp_path)
    with pytest.raises(UserError, match=sentence):
        load_tokenizer(tmp_path)
