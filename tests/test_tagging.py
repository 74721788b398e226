"""Words and pieces, windows, what a tagger says of each word; its loss, however the batch is cut."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import assert_same, batch_of, bert_config, gpt_config, gradients, packed, sequences, shake

from minillm.batching import IGNORE, Document, pack
from minillm.errors import UserError
from minillm.heads import TokenClassifier
from minillm.modernbert import ModernBERTConfig
from minillm.objective import backward
from minillm.tagging import WordReader, cut, read_words
from minillm.tokenizer import SymbolTokenizer

pytest.importorskip("tokenizers")
from minillm.published.subwords import BERT, Subwords, wordpiece

PIECES = [*BERT.values(), "un", "##f", "##air", "sky", "blue", "##s", "fog"]
WORDS = ["unfair", "sky", "", "blues"]
CONFIGS = {
    "bert": bert_config(vocab_size=len(PIECES)),
    "modernbert": ModernBERTConfig(len(PIECES), 16, 3, 16, 4, window=4, pooling="mean"),
    "gpt": gpt_config(vocab_size=len(PIECES), positions="learned", bias=True),
}


@pytest.fixture
def tokenizer():
    return Subwords(wordpiece({name: i for i, name in enumerate(PIECES)}, BERT), BERT)


def ids(*names):
    return [PIECES.index(name) for name in names]


def make(kind, **choices):
    return shake(TokenClassifier(CONFIGS[kind], "abcd", "xyz"), **choices).eval()


# ---- words and their pieces ----------------------------------------------------------------------


@pytest.mark.parametrize("by_last", [False, True])
def test_the_first_piece_of_a_word_speaks_for_it_and_of_a_gpt_the_last(tokenizer, by_last):
    reader = WordReader(tokenizer, CONFIGS["gpt" if by_last else "bert"])
    (window,) = reader.windows(["unfair", "sky", "blues"])
    assert window.tokens == ids("[CLS]", "un", "##f", "##air", "sky", "blue", "##s", "[SEP]")
    assert window.words.tolist() == [0, 1, 2]
    assert window.at.tolist() == ([3, 4, 6] if by_last else [1, 4, 5])


def test_what_looks_like_a_control_token_is_a_word_of_the_text(tokenizer):
    (window,) = WordReader(tokenizer, CONFIGS["bert"]).windows(["[SEP]", "sky"])
    assert ids("[SEP]")[0] not in window.tokens[1:-1]
    assert window.words.tolist() == [0, 1]


def test_a_word_without_pieces_is_in_no_window(tokenizer):
    """The normaliser of BERT removes what is no character to it."""
    for words in (["\u200b", "sky"], ["sky", "\u200b", "fog"], ["sky", "\u200b"]):
        (window,) = WordReader(tokenizer, CONFIGS["bert"]).windows(words)
        assert [words[i] for i in window.words] == [word for word in words if word != "\u200b"]


def test_a_vocabulary_of_another_model_is_refused(tokenizer):
    with pytest.raises(UserError, match="they do not belong together"):
        WordReader(tokenizer, bert_config(vocab_size=6)).windows(["fog"])
    with pytest.raises(UserError, match="max_seq_len=3 of the model leaves no room"):
        WordReader(tokenizer, bert_config(max_seq_len=3))


def test_a_vocabulary_of_symbols_has_letters_as_pieces_if_it_has_them():
    letters = SymbolTokenizer("letters", r"[\s\S]", "ab c")
    reader = WordReader(letters, gpt_config())
    (window,) = reader.windows(["ab", "c"])
    assert (window.tokens, window.at.tolist()) == (letters.encode("ab c"), [1, 3])
    assert reader.pieces(["ab", "c"])[1].tolist() == [0, 0, 1, 1]  # a blank belongs to what it is before
    with pytest.raises(UserError, match="this model does not read such words: the symbol 'd' in 'ab d'"):
        reader.windows(["ab", "d"])
    with pytest.raises(UserError, match="this model does not read words: the symbol 'a'"):
        WordReader(SymbolTokenizer("digits", r"[\s\S]", "0123"), gpt_config())


def test_pieces_are_those_of_transformers():
    """Words of several pieces, accents, other alphabets, emoji; byte-level BPE and WordPiece."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    words = ["Hello", "naïve", "東京", "U.S.", "🙂!", "don't", "http://a.b"]
    models = tokenizers.models.BPE(), tokenizers.models.WordPiece(unk_token="[UNK]")
    trainers = tokenizers.trainers.BpeTrainer, tokenizers.trainers.WordPieceTrainer
    before = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True), tokenizers.pre_tokenizers.BertPreTokenizer()
    for model, trainer, pre in zip(models, trainers, before, strict=True):
        backend = tokenizers.Tokenizer(model)
        backend.pre_tokenizer = pre
        backend.train_from_iterator([" ".join(words)] * 3, trainer(vocab_size=400, special_tokens=["[UNK]", "[SEP]"]))
        theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=backend)(words, is_split_into_words=True)
        reader = WordReader(Subwords(backend, {"sep_token": "[SEP]"}), bert_config(vocab_size=500, max_seq_len=99))
        tokens, word_of = reader.pieces(words)
        assert tokens == theirs["input_ids"]
        assert word_of.tolist() == theirs.word_ids()


# ---- windows -------------------------------------------------------------------------------------


@pytest.mark.parametrize("room", [2, 3, 7, 10, 64])
def test_each_token_is_decided_where_it_sees_most(room):
    for size in range(1, 200):
        windows = cut(size, room)
        assert [i for _, _, first, last in windows for i in range(first, last)] == list(range(size))
        assert all(0 <= start <= first <= last <= stop <= size for start, stop, first, last in windows)
        assert all(stop - start <= room for start, stop, _, _ in windows)
        for _, window in enumerate(windows):
            for i in range(window[2], window[3]):
                assert context(i, window, size) >= max(context(i, other, size) for other in windows) - 1


def context(i, window, size):
    """How far token i is from the nearer end of a window; −1 where it is not in it."""
    start, stop, *_ = window
    if not start <= i < stop:
        return -1
    return min(size if start == 0 else i - start, size if stop == size else stop - 1 - i)


def test_most_of_a_window_is_seen_on_both_sides():
    for size in range(101, 1000, 7):
        windows = cut(size, 100)
        assert all(context(i, w, size) >= 24 for w in windows for i in range(w[2], w[3]))
        assert len(windows) <= -(-size // 50)


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_long_sentence_is_read_in_windows_and_a_short_one_is_not(tokenizer, kind):
    model = make(kind)
    words = (["unfair", "sky", "blues", "fog"] * 8)[:30]
    reader = WordReader(tokenizer, model.config)
    windows = reader.windows(words)
    assert len(windows) > 3
    assert sorted(i for window in windows for i in window.words) == list(range(30))  # each word once
    (scores,), whole = read_words(model, tokenizer, [words])
    assert scores.shape == (30, 4)
    for window in windows:
        logits = model(*packed([torch.tensor(window.tokens)]))
        np.testing.assert_allclose(scores[window.words], logits.log_softmax(-1).detach()[window.at], rtol=1e-9)
    shares = [model.both(*packed([torch.tensor(w.tokens)]), None)[1].softmax(-1).detach() for w in windows]
    np.testing.assert_allclose(np.exp(whole[0]), torch.cat(shares).mean(0), rtol=1e-9)


def test_windows_that_see_all_that_counts_say_what_one_window_does(tokenizer):
    """A model whose tokens see their neighbours only, and not where they stand, needs no more than windows give."""
    config = ModernBERTConfig(len(PIECES), 999, 2, 16, 4, window=3, global_every=9)
    wide = shake(TokenClassifier(config, "abcd")).eval()
    wide.encoder.blocks[0].is_global = False
    words = ["unfair", "sky", "blues", "fog"] * 20
    (truth,), _ = read_words(wide, tokenizer, [words])
    object.__setattr__(config, "max_seq_len", 24)
    assert len(WordReader(tokenizer, config).windows(words)) > 8
    (found,), whole = read_words(wide, tokenizer, [words])
    np.testing.assert_allclose(found, truth, rtol=1e-9)
    assert whole is None


def test_answers_do_not_depend_on_what_else_is_read(tokenizer):
    model = make("bert")
    sentences = [["sky"], ["unfair", "blues"] * 6, ["fog", "sky", "\u200b"], ["blues"]]
    together, whole = read_words(model, tokenizer, sentences)
    for words, scores, row in zip(sentences, together, whole, strict=True):
        (alone,), alone_whole = read_words(model, tokenizer, [words])
        np.testing.assert_allclose(scores, alone, rtol=1e-9)
        np.testing.assert_allclose(row, alone_whole[0], rtol=1e-9)
    np.testing.assert_allclose(together[2][2], np.log([0.25] * 4))  # of what has no pieces nothing is known


# ---- the loss ------------------------------------------------------------------------------------


def documents(sizes, seed=0, with_labels=True):
    """Random tokens, about half of which have a target."""
    generator = torch.Generator().manual_seed(seed)
    for number, part in enumerate(sequences(sizes, seed, high=len(PIECES))):
        targets = torch.randint(-4, 4, (len(part),), generator=generator)
        targets = targets.where(targets >= 0, IGNORE)
        yield Document(part.tolist(), targets.tolist(), number % 3 if with_labels else None)


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_loss_is_the_sum_of_both_and_so_is_its_gradient(kind):
    model, batch = make(kind), pack(list(documents((5, 3, 9, 1))))
    assert batch.count == int((batch.targets != IGNORE).sum()) + 4
    logits, of_sequences = model.both(batch.tokens, batch.packing, None)
    truth = F.cross_entropy(logits, batch.targets, reduction="none", ignore_index=IGNORE)
    truth = torch.cat([truth, F.cross_entropy(of_sequences, batch.labels, reduction="none")])
    torch.testing.assert_close(model.loss(batch), truth)
    weights = torch.rand(len(truth), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (weights * truth).sum().backward()
    expected = gradients(model)
    backward(model, batch, weights)
    assert_same(gradients(model), expected)
    assert expected.keys() == dict(model.named_parameters()).keys() - {"encoder.output.weight"}


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_batch_cut_in_any_way_has_the_same_gradient(kind):
    model, all_documents = make(kind), list(documents((5, 3, 9, 1, 7, 2, 4, 12)))
    count = pack(all_documents).count

    def gradient(parts):
        for part in parts:
            backward(model, pack(part), 1 / count)
        return gradients(model)

    truth = gradient([all_documents])
    assert_same(gradient([[document] for document in all_documents]), truth)
    assert_same(gradient([all_documents[::-1]]), truth)
    assert_same(gradient([all_documents[:3], all_documents[3:]]), truth)


@pytest.mark.parametrize("kind", CONFIGS)
def test_documents_do_not_see_each_other(kind):
    model, parts = make(kind), sequences((5, 3, 9), high=len(PIECES))
    before = model.both(*packed(parts), None)
    parts[1] = (parts[1] + 1) % len(PIECES)
    after = model.both(*packed(parts), None)
    rows = torch.tensor([*range(5), *range(8, 17)])
    torch.testing.assert_close(before[0][rows], after[0][rows], rtol=0, atol=0)
    torch.testing.assert_close(before[1][[0, 2]], after[1][[0, 2]], rtol=0, atol=0)
    assert not torch.isclose(before[0][5:8], after[0][5:8]).any()


def test_without_classes_of_sequences_there_is_only_a_loss_of_tokens():
    model = shake(TokenClassifier(bert_config(), "abcd")).eval()
    tokens, packing = packed(sequences((5, 3)))
    batch = batch_of(tokens, packing, tokens % 4)
    assert model.loss(batch).shape == (8,)
    assert model.both(tokens, packing, None)[1] is None
    assert "sequence_classifier" not in dict(model.named_modules())
    nothing = batch_of(tokens, packing)
    assert backward(model, nothing, 1.0) == 0  # no targets, no NaN
