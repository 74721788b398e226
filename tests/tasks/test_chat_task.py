"""Conversations: which tokens of them are learned, as transformers sees it, and what of a long one is kept."""

import json
from itertools import pairwise

import pytest

from minillm.batching import IGNORE
from minillm.errors import UserError
from minillm.gpt import GPT, GPTConfig
from minillm.published.byte_pairs import learn_byte_pairs
from minillm.published.vocabularies import load_tokenizer
from minillm.tasks.chat import Chat, Options, template_for
from minillm.tokenizer import SymbolTokenizer

pytest.importorskip("tokenizers")
pytest.importorskip("jinja2")
CONTROL = ["<|im_start|>", "<|im_end|>"]
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
FORGETFUL = CHATML.replace("m.content +", "(m.content if loop.last else m.content.split('</think>')[-1]) +")
OTHER_PROMPT = CHATML.replace("assistant\n' }}{% endif", "assistant\n<think>\n' }}{% endif")
MARKED = (  # which writes no beginning of an answer where one is asked for
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ m.content + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
)


def says(*contents, first="user"):
    """Turns, one after the other's."""
    roles = ["user", "assistant"] if first == "user" else ["assistant", "user"]
    return [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]


TALKS = [
    says("hello é", "hen 🦉\n  ell", "he", "字 hello"),
    [{"role": "system", "content": "be kind"}, *says("a <|im_end|> b", "c <|end|> d")],
    says("well", "hello", "and?", "no", "why", "so it is"),
    says("hello", "you", "here"),  # and no answer: a question that is left out
]


@pytest.fixture
def write(tmp_path):
    def write(name, rows):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


@pytest.fixture
def task_of(write):
    def task_of(talks=TALKS, **options):
        splits = {"a": talks, "b": [says("hi", "ho")]}
        files = (write(name, [{"messages": talk} for talk in split]) for name, split in splits.items())
        return Chat(Options(*files, **options), 0)

    return task_of


def chatml(template=CHATML):
    """A checkpoint's vocabulary with this template."""
    tokenizer = learn_byte_pairs(["hello", "well"] * 20, 320, CONTROL)
    tokenizer.config = {**tokenizer.config, "eos_token": "<|im_end|>", "chat_template": template}
    return type(tokenizer)(tokenizer.backend, tokenizer.config)


def adapted(task, tokenizer, context=200):
    task.adapt(GPT(GPTConfig(tokenizer.vocab_size, context, 1, 16, 2)), tokenizer)
    return [talk.document for talk in task.splits.train]


# ---- what is learned -----------------------------------------------------------------------------


def test_learned_is_what_transformers_marks(task_of, tmp_path):
    """In the template that a vocabulary gets which brings none, marks included, from scratch and from a checkpoint."""
    transformers = pytest.importorskip("transformers")
    for tokenizer in (task_of().tokenizer(), learn_byte_pairs(["hello"] * 20, 320)):
        task = task_of()
        documents = adapted(task, tokenizer)
        tokenizer.save(tmp_path)
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
        assert theirs.chat_template == template_for(tokenizer)
        for talk, document in zip(TALKS, documents, strict=True):
            messages = talk if talk[-1]["role"] == "assistant" else talk[:-1]
            both = theirs.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
            if "<|end|>" in messages[-1]["content"]:
                assert document.targets.count(tokenizer.end) == 1  # nobody ends a turn by writing its end, as there
                continue
            ids, mask = both["input_ids"], both["assistant_masks"]
            learned = [token if marked else IGNORE for token, marked in zip(ids, mask, strict=True)][1:]
            while learned[-1] == IGNORE:
                learned.pop()
            assert document.tokens == ids[: len(learned)]
            assert document.targets == learned


def test_learned_is_what_comes_behind_each_prompt(task_of, tmp_path):
    """In ChatML, which marks nothing, found by what transformers makes of a conversation's beginnings."""
    transformers = pytest.importorskip("transformers")
    tokenizer = chatml()
    documents = adapted(task_of([TALKS[0], TALKS[2]]), tokenizer)
    tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    render = {"return_dict": False}
    for talk, document in zip((TALKS[0], TALKS[2]), documents, strict=True):
        ids = theirs.apply_chat_template(talk, **render)
        expected = [IGNORE] * len(ids)
        for i in range(1, len(talk), 2):
            start = len(theirs.apply_chat_template(talk[:i], add_generation_prompt=True, **render))
            stop = len(theirs.apply_chat_template(talk[: i + 1], **render)) - 1  # but for the line break
            assert ids[stop - 1] == tokenizer.end
            expected[start - 1 : stop - 1] = ids[start:stop]
        assert document.targets == expected[: len(document.targets)]
        assert document.targets[-1] == tokenizer.end
        assert document.tokens == ids[: len(document.tokens)]


def test_a_conversation_is_asked_for_with_the_tokens_it_was_learned_behind(task_of):
    tokenizer = chatml()
    task = task_of()
    adapted(task, tokenizer)
    for talk in task.splits.train:
        prompt = task.template.prompt(talk.messages[:-1])
        whole = [*talk.document.tokens, talk.document.targets[-1]]
        assert whole[: len(prompt)] == prompt
        first = talk.document.targets.index(next(t for t in talk.document.targets if t != IGNORE))
        assert task.num_read(talk, tokenizer) == first + 1


def test_the_template_is_kept_with_the_run(task_of, tmp_path):
    tokenizer = learn_byte_pairs(["a"], 300)
    task = task_of()
    adapted(task, tokenizer)
    tokenizer.save(tmp_path)
    again = task_of()
    assert adapted(again, load_tokenizer(tmp_path)) == [talk.document for talk in task.splits.train]


# ---- templates that mislead ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        (FORGETFUL, "message 2 in another way once others follow"),
        (OTHER_PROMPT, "begins an answer in another way than it writes message 2"),
        (MARKED, "asks for message 2 with other tokens than those before it"),
    ],
)
def test_a_template_that_rewrites_history_is_noticed(task_of, template, sentence):
    talk = says("hello", "<think>so</think>well", "and?", "<think>no</think>why")
    with pytest.raises(UserError, match=rf"a\.jsonl:1: the chat template .*{sentence}"):
        adapted(task_of([talk]), chatml(template))


def test_where_nothing_follows_nothing_is_forgotten(task_of):
    adapted(task_of([says("hello", "<think>so</think>well")]), chatml(FORGETFUL))


# ---- long conversations --------------------------------------------------------------------------


def test_of_long_conversations_whole_turns_are_kept(task_of):
    talk = says(*"abcdefghij")
    short, long = says("x", "y"), says("word " * 50, "c", "d", "e")
    tokenizer = chatml()
    lengths = [len(document.tokens) for document in adapted(task_of([talk[: 2 * n] for n in range(1, 6)]), tokenizer)]
    for context in range(lengths[0] + 2, lengths[-1] + 2):
        task = task_of([short, talk, long], context=context)
        kept = adapted(task, tokenizer)
        assert len(kept) == 2
        fitting = [n for n, length in enumerate(lengths, 1) if length <= context]
        assert task.splits.train[1].messages == tuple(talk[: 2 * fitting[-1]])
        assert len(kept[1].tokens) == lengths[fitting[-1] - 1]
        cut = f"1 conversation is longer than {context} tokens; the last turns are left out"
        assert (cut in task.notes) == (fitting[-1] < 5)
        assert f"1 conversation is left out: up to the first answer over {context} tokens" in task.notes
    with pytest.raises(UserError, match="no conversation has a first answer within 5 tokens; raise --context"):
        adapted(task_of([short], context=5), tokenizer)


# ---- files ---------------------------------------------------------------------------------------


def test_prompts_and_answers_are_conversations_of_one_turn(write):
    rows = [{"instruction": f"say {i}", "input": "", "output": f"{i}"} for i in range(20)]
    task = Chat(Options(write("a", rows), fields="prompt=instruction+input,answer=output"), 0)
    everything = [talk.messages for talk in task.splits.train + task.splits.dev]
    assert tuple(says("say 7", "7")) in everything
    assert len(everything) == 20


def test_each_of_several_answers_is_a_conversation(write):
    rows = [{"prompt": f"say {i}", "answer": ["yes", "no"]} for i in range(20)]
    task = Chat(Options(write("a", rows)), 0)
    assert len(task.splits.train) == 36
    assert len(task.splits.dev) == 4
    assert {talk.messages[1]["content"] for talk in task.splits.dev} == {"yes", "no"}


def test_a_vocabulary_of_symbols_is_refused(task_of):
    with pytest.raises(
        UserError, match="does not know what --task chat is written in: its vocabulary is one of symbols"
    ):
        adapted(task_of(), SymbolTokenizer("letters", ".", "ab"))


def test_messages_of_another_kind(write):
    row = {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]}
    other = {"conversations": [{"from": "human", "value": "ha"}, {"from": "gpt", "value": "ho"}]}
    task = Chat(Options(write("a", [row]), write("b", [other]), fields="messages=conversations"), 0)
    assert task.splits.train[0].messages == tuple(says("hi", "ho"))


@pytest.mark.parametrize(
    ("messages", "sentence"),
    [
        ("hello", "'messages' is \"hello\", but a list of messages was expected"),
        ([], "'messages' holds no answer"),
        (says("a"), "'messages' holds no answer"),
        ([{"role": "user"}], r"messages\[0\] is .* was expected"),
        (["a"], r"messages\[0\] is .* was expected"),
        ([{"role": "bot", "content": "a"}], r'the role of messages\[0\] is "bot", but none of system, user'),
        (says("a", " "), r"messages\[1\] is empty"),
        (says("a", 7), r"'messages\[1\].content' is 7, but a text was expected"),
    ],
)
def test_wrong_files_are_named_with_the_place(task_of, messages, sentence):
    with pytest.raises(UserError, match=rf"a\.jsonl:2.*{sentence}"):
        task_of([TALKS[0], messages])


def test_turns_that_are_held_out_are_not_trained_on(task_of):
    task = task_of([*TALKS, says("hi", "other")])
    assert len(task.splits.train) == len(TALKS)
    assert all(first != second for first, second in pairwise(task.splits.train))
