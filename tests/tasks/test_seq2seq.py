"""A text for a text: what is learned of a pair, what is cut, and which metric judges it."""

import json
from types import SimpleNamespace

import pytest
from tiny import shake

from minillm import evaluate
from minillm.batching import IGNORE
from minillm.beam import Beams
from minillm.errors import UserError
from minillm.gpt import GPT, GPTConfig
from minillm.published.byte_pairs import learn_byte_pairs
from minillm.report import figures
from minillm.tasks import from_scratch
from minillm.tasks.base import Example
from minillm.tasks.seq2seq import ANSWER, FORMAT, Options, Seq2Seq, suitable_metric
from minillm.tokenizer import SymbolTokenizer

pytest.importorskip("tokenizers")
WORDS = {"one": "eins", "two": "zwei", "red": "rot", "dog": "Hund", "house": "Haus", "is": "ist", "a": "ein"}


def pairs(count, length=3):
    """Sentences of so many words, and their translations."""
    names = list(WORDS)
    chosen = [[names[(i * 5 + j * (1 + i // 7)) % len(names)] for j in range(length)] for i in range(count)]
    return [{"prompt": " ".join(words), "answer": " ".join(WORDS[word] for word in words)} for words in chosen]


@pytest.fixture
def write(tmp_path):
    def write(name, rows):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


@pytest.fixture
def task_of(write):
    def task_of(rows, dev=({"prompt": "a dog", "answer": "ein Hund"},), **options):
        return Seq2Seq(Options(write("train", rows), write("dev", dev), **options), 0)

    return task_of


def adapted(task, context=64):
    """The task with a vocabulary of its own and a model that reads so many tokens."""
    tokenizer = task.tokenizer()
    task.adapt(GPT(GPTConfig(tokenizer.vocab_size, context, 1, 16, 2)), tokenizer)
    return tokenizer


# ---- documents -----------------------------------------------------------------------------------


def test_only_the_answer_is_learned_with_its_end(task_of):
    task = task_of([{"prompt": "two dogs", "answer": ["zwei Hunde", "2 Hunde"]}, *pairs(9)])
    tokenizer = adapted(task)
    for example in task.splits.train:
        prompt = [*tokenizer.encode(example.prompt), tokenizer.control[ANSWER]]
        documents = task.documents(example, tokenizer, None)
        assert len(documents) == len(example.answers)
        for document, answer in zip(documents, example.answers, strict=True):
            learned = [*tokenizer.encode(answer), tokenizer.end]
            assert document.tokens == [*prompt, *learned[:-1]]
            assert document.targets == [*[IGNORE] * (len(prompt) - 1), *learned]
        assert task.num_read(example, tokenizer) == len(prompt)


def test_a_checkpoint_keeps_its_vocabulary_and_remembers_the_format(task_of):
    task = task_of(pairs(9))
    tokenizer = learn_byte_pairs(["a", "b"], 300)  # of somebody's
    model = GPT(GPTConfig(tokenizer.vocab_size, 64, 1, 16, 2))
    task.adapt(model, tokenizer)
    assert tokenizer.prompt("a dog") == tokenizer.encode(FORMAT.format(prompt="a dog"))
    other = task_of(pairs(9), prompt_format="Translate: {prompt} =")
    other.adapt(model, tokenizer)
    assert tokenizer.decode(tokenizer.prompt("a dog")) == "Translate: a dog ="
    task_of(pairs(9)).adapt(model, tokenizer)  # a run to start from says how its prompts are written
    assert tokenizer.decode(tokenizer.prompt("a dog")) == "Translate: a dog ="


# ---- what is too long ----------------------------------------------------------------------------


def test_long_answers_are_left_out_and_long_prompts_cut(task_of):
    long = {"prompt": "dog", "answer": "Hund " * 40}
    task = task_of([*pairs(20), long, {"prompt": "näher " * 60, "answer": ["ein", "ein " * 40]}])
    tokenizer = adapted(task, context=32)
    assert "2 answers of over 16 tokens left out; see --context" in task.notes
    (cut,) = [example for example in task.splits.train if "näher" in example.prompt]
    assert any(note.startswith("1 prompt cut to ") for note in task.notes)
    assert ("näher " * 60).startswith(cut.prompt)
    assert cut.answers == ("ein",)
    assert not any(example.prompt == "dog" for example in task.splits.train)
    documents = [d for example in task.splits.train for d in task.documents(example, tokenizer, None)]
    longest = max(len(document.tokens) for document in documents)
    assert longest <= 31  # all but the end
    room = 32 - task.max_answer_tokens(tokenizer)
    assert len(tokenizer.prompt(cut.prompt)) <= room
    assert len(tokenizer.prompt(cut.prompt + " näher")) > room  # no more was cut than had to be


def test_the_longest_answer_with_its_end_is_half_of_the_context(task_of):
    task = task_of([{"prompt": f"{n}", "answer": "x" * n} for n in range(1, 30)])
    task.adapt(GPT(GPTConfig(300, 64, 1, 16, 2)), learn_byte_pairs(["a"], 300))  # a letter a token
    assert max(len(example.answers[0]) for example in task.splits.train) == 29
    task = task_of([{"prompt": f"{n}", "answer": "x" * n} for n in range(1, 30)])
    task.adapt(GPT(GPTConfig(300, 40, 1, 16, 2)), learn_byte_pairs(["a"], 300))
    assert max(len(example.answers[0]) for example in task.splits.train) == 19
    assert "10 answers of over 20 tokens left out; see --context" in task.notes


def test_from_scratch_no_answer_is_too_long_and_where_nothing_is_learned_it_is_cut(task_of, write):
    rows = [{"prompt": f"{n}", "answer": "Hund ein rot " * n} for n in range(1, 60)]
    task = task_of(rows)
    tokenizer = task.tokenizer()
    model = task.new_model(tokenizer, SimpleNamespace(layers=1, width=16, heads=2, dropout=0.0))
    task.adapt(model, tokenizer)
    assert len(task.splits.train) == 59
    measured = Seq2Seq(Options(dev=write("test", rows)), 0)  # as `evaluate` makes it
    measured.adapt(model, tokenizer)
    assert measured.max_answer_tokens(tokenizer) == model.config.max_seq_len // 2
    assert measured.splits.dev == task.splits.train  # all prompts fit beside it


def test_a_letter_of_several_tokens_is_not_cut_through(task_of):
    """Whatever the room is: what is left is a beginning of the text."""
    owl = "🦉字🦉字🦉字🦉字🦉字🦉字"
    for context in range(17, 30):
        task = task_of([{"prompt": owl, "answer": "x"}, *pairs(12)])
        adapted(task, context)
        assert owl.startswith(task.splits.train[0].prompt)
        assert 0 < len(task.splits.train[0].prompt) < len(owl)


def test_a_context_that_cannot_be(task_of):
    with pytest.raises(UserError, match="--context 3 must be at least 16"):
        task_of(pairs(9), context=3)
    with pytest.raises(UserError, match=r"no answer of --train has at most 8 tokens; raise --context"):
        adapted(task_of([{"prompt": f"{i}", "answer": "Hund " * 20} for i in range(9)]), 16)
    long = task_of([{"prompt": f"{i}", "answer": "x"} for i in range(9)], prompt_format="{prompt}" + "x" * 30)
    with pytest.raises(UserError, match="16 tokens have no room for a prompt beside the longest answer"):
        long.adapt(GPT(GPTConfig(300, 16, 1, 16, 2)), learn_byte_pairs(["a"], 300))
    with pytest.raises(UserError, match="--context 65 is more than the 64 tokens"):
        adapted(task_of(pairs(9), context=65), 64)


def test_a_vocabulary_of_symbols_is_refused(task_of):
    with pytest.raises(UserError, match="what --task seq2seq is written in: its vocabulary is one of symbols"):
        task_of(pairs(9)).adapt(GPT(GPTConfig(3, 64, 1, 16, 2)), SymbolTokenizer("letters", ".", "ab"))


def test_a_line_break_can_be_typed(task_of):
    tokenizer = learn_byte_pairs(["a"], 300)
    task_of(pairs(9), prompt_format="{prompt}\\nSay:\\n").adapt(GPT(GPTConfig(300, 64, 1, 16, 2)), tokenizer)
    assert tokenizer.decode(tokenizer.prompt("a dog")) == "a dog\nSay:\n"


# ---- files ---------------------------------------------------------------------------------------


def test_fields_of_other_names(task_of, write):
    rows = [{"instruction": "say", "input": f"{i}", "out": i} for i in range(20)]
    task = Seq2Seq(Options(write("train", rows), fields="prompt=instruction+input,answer=out"), 0)
    everything = task.splits.train + task.splits.dev
    assert Example("say\n7", ("7",)) in everything
    assert len(everything) == 20


def test_prompts_alone_are_counted(task_of):
    for alone in ({"prompt": "a"}, {"prompt": "a", "answer": None}):
        task = task_of([*pairs(9), alone])
        assert "1 training example has no answer, and can only be learned from by reward" in task.notes
        assert [example.prompt for example in task.splits.unlabelled] == ["a"]


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"prompt": "a", "answer": ["b", " "]}, "'answer' is empty, or a text in it is"),
        ({"prompt": "a", "answer": []}, "'answer' is empty, or a text in it is"),
        ({"prompt": "a", "answer": {"text": "b"}}, "'answer' is .* but a text was expected"),
        ({"prompt": ["a"], "answer": "b"}, "'prompt' is .* but a text was expected"),
        ({"prompt": " ", "answer": "b"}, "'prompt' is empty"),
    ],
)
def test_wrong_files_are_named_with_the_place(task_of, row, sentence):
    with pytest.raises(UserError, match=rf"train\.jsonl:10.*{sentence}"):
        task_of([*pairs(9), row])


def test_an_answer_is_one_field(task_of):
    with pytest.raises(UserError, match="answer must be one field"):
        task_of(pairs(9), fields="answer=a+b")


# ---- from scratch --------------------------------------------------------------------------------


def test_what_suits_follows_from_texts_and_time(task_of):
    """Few texts are not read without end, many not through to the end; the oftener, the more dropout."""
    few, many = (from_scratch.recipe(words, None) for words in (50_000, 10**7))
    assert (few["epochs"], many["epochs"]) == (15, 0.5)
    assert few["dropout"] > many["dropout"]
    assert few["batch_tokens"] < many["batch_tokens"]
    dropouts = [from_scratch.recipe(10**6, minutes)["dropout"] for minutes in (1, 15, 40, 100)]
    assert dropouts == [0.1, 0.1, 0.3, 0.3]
    assert from_scratch.count_words(task_of(pairs(50)).training_texts()) == 50 * 6


# ---- metrics -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "answer", "metric"),
    [("How much is it?", "7", "exact"), ("a b " * 5, "c d " * 4, "bleu"), ("a b " * 40, "c d " * 5, "rouge")],
)
def test_the_metric_that_suits_the_lengths(task_of, prompt, answer, metric):
    rows = [{"prompt": f"{prompt} {i}", "answer": answer} for i in range(9)]
    task = task_of(rows)
    assert suitable_metric(task.splits)[0] == task.metric == metric
    assert task.notes[-1].startswith(f"--metric {metric}, as ")
    asked = task_of(rows, metric="exact")
    assert (asked.metric, asked.headline) == ("exact", "exact")
    assert figures(asked.measure(asked.splits.dev[:1], [answer])).startswith("exact ")
    assert not any("--metric" in note for note in asked.notes)


def test_any_of_the_right_answers_is_right(task_of):
    task = task_of(pairs(9), metric="exact")
    examples = [Example("a", ("x", "y")), Example("b", ("z",)), Example("c", ("z",))]
    assert task.measure(examples, ["y", " z", "x"])["exact"].value == pytest.approx(2 / 3)
    assert task.reward(examples, ["y", " z", "x"]) == {"exact": [1.0, 1.0, 0.0]}


SOLVED = [
    {"prompt": f"{n} boxes of 3 pens, how many pens", "answer": f"{n} * 3 = {3 * n}\n#### {3 * n:,}"}
    for n in (4, 5, 5, 5, 1000)
]


def test_answers_with_a_marked_number_are_judged_by_it(task_of):
    task = task_of(SOLVED, dev=SOLVED[:1])
    assert (task.metric, task.headline) == ("number", "answer_accuracy")
    assert task.notes[-1] == "--metric number, as answers have a number behind ####"
    examples = [Example("", ("a + b = 1,250.50 #### 1,250.50",)), Example("", ("#### 3/4",)), Example("", ("#### 7",))]
    answers = ["so it is $1250.5.", "#### 3/4 of them", "7 is not 8"]
    found = task.measure(examples, answers)
    assert found["answer_accuracy"].value == pytest.approx(2 / 3)
    assert found["exact"].value == 0
    assert task.reward(examples, answers) == {"number": [1.0, 1.0, 0.0]}
    assert task.rewards["number"](examples, answers) == task.reward(examples, answers)
    assert task.baselines([Example("", ("15",)), Example("", ("#### 12",))])["commonest"].value == 0.5  # 5 boxes of 3


def test_plain_numbers_are_judged_by_value_where_that_is_asked(task_of):
    rows = [{"prompt": f"half of {n}", "answer": n / 2} for n in range(1, 30)]
    assert task_of(rows).metric == "exact"
    task = task_of(rows, metric="number")
    assert task.reward([Example("", ("0.5",))] * 3, [".50", "0.50", "1/2"]) == {"number": [0.0, 1.0, 1.0]}


# ---- against the field's own ---------------------------------------------------------------------

EXAMPLES = [
    Example("a dog runs. it is red.", ("ein roter Hund läuft schnell", "der Hund rennt")),
    Example("two old houses. no", ("zwei alte Häuser stehen hier",)),
    Example("one. two", ("ein sehr kleines Haus ist da",)),
]
ANSWERS = ["der rote Hund läuft schnell", "zwei alte Häuser stehen da", "one. two"]


def test_bleu_and_chrf_are_those_of_sacrebleu(task_of):
    sacrebleu = pytest.importorskip("sacrebleu")
    task = task_of(pairs(9), metric="bleu")
    found = task.measure(EXAMPLES, ANSWERS)
    streams = [[e.answers[0] for e in EXAMPLES], [e.answers[1] if e.answers[1:] else None for e in EXAMPLES]]
    assert found["bleu"].value == pytest.approx(sacrebleu.corpus_bleu(ANSWERS, streams).score)
    assert found["chrf"].value == pytest.approx(sacrebleu.corpus_chrf(ANSWERS, streams).score)
    copies = task.baselines(EXAMPLES)["copy"]
    assert copies.value == pytest.approx(sacrebleu.corpus_bleu([e.prompt for e in EXAMPLES], streams).score)
    measured = {"bleu": found["bleu"], "copy": copies}
    assert task.remarks(measured) == []
    assert task.remarks(measured | {"bleu": copies})[0].startswith("copying the prompt does as well")
    rewards = task.reward(EXAMPLES, ANSWERS)["chrf"]
    expected = [sacrebleu.sentence_chrf(a, list(e.answers)).score / 100 for e, a in zip(EXAMPLES, ANSWERS, strict=True)]
    assert rewards == pytest.approx(expected)
    assert "tok:13a" in task.details(EXAMPLES, ANSWERS)["bleu_signature"]


def test_rouge_is_that_of_rouge_score(task_of):
    rouge_scorer = pytest.importorskip("rouge_score.rouge_scorer")
    scorer = rouge_scorer.RougeScorer(["rougeL"])
    plain = [Example(e.prompt, tuple(a.replace("ä", "a") for a in e.answers)) for e in EXAMPLES]
    answers = [answer.replace("ä", "a") for answer in ANSWERS]

    def expected(texts):
        scores = [scorer.score_multi(e.answers, a)["rougeL"].fmeasure for e, a in zip(plain, texts, strict=True)]
        return scores, sum(scores) / len(scores)

    task = task_of(pairs(9), metric="rouge")
    each, mean = expected(answers)
    assert task.measure(plain, answers)["rouge_l"].value == pytest.approx(mean)
    assert task.reward(plain, answers)["rouge_l"] == pytest.approx(each)
    leads = ["a dog runs.", "two old houses.", "one."]
    assert task.baselines(plain)["lead_sentence"].value == pytest.approx(expected(leads)[1])


def test_the_commonest_answer(task_of):
    task = task_of([{"prompt": f"is it {i}?", "answer": "no" if i % 3 else "yes"} for i in range(30)])
    assert task.metric == "exact"
    examples = [Example("a", ("no",)), Example("b", ("yes",)), Example("c", ("no",))]
    assert task.baselines(examples)["commonest"].value == pytest.approx(2 / 3)


# ---- answers -------------------------------------------------------------------------------------


def test_beams_are_for_held_out_answers(task_of):
    task = task_of(pairs(30), beams=3)
    tokenizer = adapted(task)
    model = shake(GPT(GPTConfig(tokenizer.vocab_size, 64, 1, 16, 2)))
    room = task.max_answer_tokens(tokenizer)
    found = task.answer(model, tokenizer, task.splits.dev)
    prompts = [example.prompt for example in task.splits.dev]
    assert found == evaluate.write(model, tokenizer, prompts, room, Beams(3))
    assert found != evaluate.write(model, tokenizer, prompts, room)
    with pytest.raises(UserError, match="--beams 0 must be positive"):
        task_of(pairs(3), beams=0)
