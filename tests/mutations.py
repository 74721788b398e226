"""Odd and spoiled inputs, drawn from a seed: data files, options, model folders; see test_mutations.py.

Each declares what is right, either that it is refused in a sentence that names the file or the option, or what comes of
it. What a spoiled file means is told by readers.py, which shares no code with the program.
"""

import contextlib
import csv
import io
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import readers
import scripts
import tiny
import torch
from commands.model_folders import END, MERGED, write_bytes_vocabulary
from damage import BYTES, OTHERS
from readers import Wrong
from rich.console import Console
from safetensors.torch import load_file, save_file

import train_rl
import train_sft
from kernels import Packing
from minillm import cli
from minillm.commands import generate
from minillm.errors import UserError
from minillm.gpt import GPT
from minillm.heads import SequenceClassifier
from minillm.published import checkpoint
from minillm.tasks.classify import Classify
from minillm.tasks.classify import Options as ClassifyOptions
from minillm.tasks.pronounce import Options as PronounceOptions
from minillm.tasks.pronounce import Pronounce


@dataclass(frozen=True)
class Refused:
    names: tuple[str, ...]  # what the sentence must name


@dataclass(frozen=True)
class Mutation:
    what: str  # for a person
    act: Callable[[], Any]  # what a user does with it
    right: Any  # Refused, or what comes of it


def truth(read: Callable[..., Any], *given: Any) -> Any:
    """What an independent reader makes of it."""
    try:
        return read(*given)
    except Wrong as wrong:
        return Refused(wrong.args)


# ---- data files ----------------------------------------------------------------------------------

TEXTS = ("a quiet film", 'he said "no"', "one, two; three|four", "tab\tin it", "naïve 日本", "two\nlines", "  around  ")
ENCODINGS = ("utf-16", "utf-16-le", "utf-32", "latin-1", "cp1252", "utf-8-sig", "shift_jis")


def rows_of(rng, many=8):
    """Texts with a number, so that none is there twice, and their classes."""
    return [(f"{rng.choice(TEXTS)} {rng.randrange(10**6)}", ("good", "bad")[i % 2]) for i in range(many)]


def as_jsonl(rows, rng):
    """As people write it: blank lines, other line ends, further fields, another order of fields."""
    end = rng.choice(["\n", "\r\n", "\n\n"])
    objects = [{"text": text, "label": label} for text, label in rows]
    if rng.random() < 0.3:
        objects = [{"n": i, **dict(reversed(each.items()))} for i, each in enumerate(objects)]
    return end.join(json.dumps(each, ensure_ascii=rng.random() < 0.5) for each in objects) + rng.choice(["", end])


def as_table(rows, rng, delimiter):
    """As spreadsheets write it."""
    out = io.StringIO()
    quoting = rng.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
    writer = csv.writer(out, delimiter=delimiter, lineterminator=rng.choice(["\n", "\r\n"]), quoting=quoting)
    blank = [""] * rng.choice([0, 0, 2])
    writer.writerows([["text", "label", *blank], *([*row, *blank] for row in rows)])
    return out.getvalue()


def value_of_other_type(lines, rng):
    i = rng.randrange(len(lines))
    fields = json.loads(lines[i])
    others = [*OTHERS, float("nan"), float("inf"), "\ud800", "\u200b", "", "x" * 10**5]
    fields[rng.choice(["text", "label"])] = rng.choice(others)
    return [*lines[:i], json.dumps(fields), *lines[i + 1 :]]


def field_lost(lines, rng):
    i = rng.randrange(len(lines))
    return [*lines[:i], json.dumps({"text": "alone"}), *lines[i + 1 :]]


def odd_line(lines, rng):
    odd = ["[]", "1", "null", "{", "{'text': 'a', 'label': 'b'}", '{"text": "a", "label": "good",}', "[" * 10**5]
    odd += ['{"text": "a", "text": "b", "label": "good"}', '{"text": "a" "label": "good"}', "// a comment", "\u2028"]
    odd += ['{"text": "a", "label": "good"} {}', '{"text": "line\u2028end", "label": "good"}', "x" * 10**6]
    odd += ['{"text": "a", "label": ' + "9" * 5000 + "}", json.dumps({"text": "word " * 10**5, "label": "good"})]
    at = rng.randrange(len(lines) + 1)
    return [*lines[:at], rng.choice(odd), *lines[at:]]


def cell_lost(lines, rng):
    i = rng.randrange(len(lines))
    return [*lines[:i], rng.choice(["alone", '"alone"', "a b"]), *lines[i + 1 :]]


def cell_more(lines, rng):
    i = rng.randrange(len(lines))
    return [*lines[:i], lines[i] + rng.choice([",x", ",,", ";x", "\tx", "|", ',"']), *lines[i + 1 :]]


def quote_spoiled(lines, rng):
    i = rng.randrange(len(lines))
    return [*lines[:i], rng.choice(['"', 'a"', '""', '"a"b']) + lines[i], *lines[i + 1 :]]


def header_spoiled(lines, rng):
    others = [
        "text,text,label",
        "label,text,label",
        "Text,Label",
        "text",
        "",
        ",",
        "a,b",
        "\ufefftext,label",
        "text label",
    ]
    return [rng.choice([*others, "text;label", ",".join(f"column {i}" for i in range(10**4))]), *lines[1:]]


def header_twice(lines, rng):
    return [lines[0], *lines]


def huge_cell(lines, rng):
    return [*lines, ("wörd " * 10**5) + rng.choice([",", ";", "\t", "|"]) + "good"]


BY_LINE = {
    ".jsonl": (value_of_other_type, value_of_other_type, field_lost, odd_line, odd_line),
    ".csv": (cell_lost, cell_more, quote_spoiled, header_spoiled, header_twice, huge_cell),
}
BY_LINE[".tsv"] = BY_LINE[".csv"]


def classify_data(rng, folder):
    """A file of examples, its lines, bytes or encoding spoiled, as --train or --dev."""
    suffix = rng.choice([".jsonl", ".csv", ".tsv"])
    delimiter = "\t" if suffix == ".tsv" else rng.choice(",;\t|")
    rows = {"train": rows_of(rng), "dev": rows_of(rng, 4)}
    write = as_jsonl if suffix == ".jsonl" else lambda rows, rng: as_table(rows, rng, delimiter)
    contents = {split: write(rows[split], rng).encode() for split in rows}
    spoiled, what = rng.choice(["train", "dev"]), rng.choice(["as it is", "line", "line", "encoding", "bytes", "bytes"])
    if what == "line":
        way = rng.choice(BY_LINE[suffix])
        simple = as_jsonl([(f"plain {i}", label) for i, (_, label) in enumerate(rows[spoiled])], rng)
        if suffix != ".jsonl":
            simple = "\n".join(["text,label", *(f"plain {i}{delimiter}{c}" for i, (_, c) in enumerate(rows[spoiled]))])
            simple = simple.replace("text,label", f"text{delimiter}label")
        lines = way([line for line in simple.splitlines() if line], rng)
        contents[spoiled], what = "\n".join(lines).encode(errors="surrogatepass"), way.__name__
    elif what == "encoding":
        what = rng.choice(ENCODINGS)
        contents[spoiled] = contents[spoiled].decode().encode(what, errors="replace")
    elif what == "bytes":
        contents[spoiled], what = spoil(contents[spoiled], rng)
    paths = {split: folder / f"{split}{suffix}" for split in contents}
    for split, path in paths.items():
        path.write_bytes(contents[split])

    def act():
        splits = Classify(ClassifyOptions(paths["train"], paths["dev"]), 0).splits
        return {split: [(*example.texts, example.label) for example in vars(splits)[split]] for split in rows}

    return Mutation(f"{spoiled}{suffix} {what}", act, truth(readers.classify_data, paths["train"], paths["dev"]))


def spoil(content, rng):
    way = rng.choice(BYTES)
    return way(content, rng), way.__name__


WORD_LINES = (
    "CAT  K AE1 T",
    "cat(2)  k ae t",
    "DOG D AO1 G # a comment",
    ";;; a comment",
    "# another",
    "",
    "\tO'H  OW0 AY1",
)
ODD_WORD_LINES = (
    "OWL",
    "  # OWL",
    "CÄT  K AE T",
    "CAT  K XX T",
    "(2)  K",
    "CAT  K AE9 T",
    "CAT  K1 AE T",
    "\u200bBAT\u00a0B AE1 T",
)
ODD_WORD_LINES += ("\ufeffBEE  B IY1", "A" * 10**5, "CAT  " + "K " * 10**5, "CAT,K AE T", "CAT  K  AE\u2028T")


def pronounce_data(rng, folder):
    """A dictionary, likewise."""
    made = scripts.words("abcdefgh", 2).splitlines()
    lines = {"train": [*rng.sample(made, 10), *rng.sample(WORD_LINES, 3)], "dev": rng.sample(made, 4)}
    spoiled, what = rng.choice(["train", "dev"]), rng.choice(["as it is", "line", "line", "encoding", "bytes", "bytes"])
    if what == "line":
        lines[spoiled].insert(rng.randrange(4), rng.choice(ODD_WORD_LINES))
    contents = {split: rng.choice(["\n", "\r\n", "\r"]).join(lines[split]).encode() for split in lines}
    if what == "encoding":
        what = rng.choice(ENCODINGS)
        contents[spoiled] = (
            (contents[spoiled].decode() + "\n# naïve").encode(what) if what != "shift_jis" else "# 日本".encode(what)
        )
    elif what == "bytes":
        contents[spoiled], what = spoil(contents[spoiled], rng)
    paths = {split: folder / f"{split}.txt" for split in contents}
    for split, path in paths.items():
        path.write_bytes(contents[split])

    def act():
        splits = Pronounce(PronounceOptions(paths["train"], paths["dev"]), 0).splits
        return {split: {each.prompt: each.answers for each in vars(splits)[split]} for split in lines}

    return Mutation(f"{spoiled}.txt {what}", act, truth(readers.pronounce_data, paths["train"], paths["dev"]))


# ---- model folders -------------------------------------------------------------------------------

NUMBERS = (0, 0, 0, 1, 2, 3, 8, 16, 0.1, 1.5, 16.0, -1e-6, 1e400, float("nan"), False, "16", "silu", "relu", "gelu_new")
CLASSES = (
    {},
    {"0": "a"},
    {"0": "a", "1": "a"},
    {"0": "b", "1": "a"},
    {"1": "a", "2": "b"},
    {"a": "b"},
    {"0": 1, "1": None},
)
TOKENS = (5, 6, 7, 9, 2)


def model_folder(rng, folder):
    """A tiny Llama or BERT, its config.json or its tensors spoiled, loaded and computed with."""
    is_gpt = rng.random() < 0.5
    kind = GPT(tiny.gpt_config(**tiny.LLAMA | {"tie_embeddings": False})) if is_gpt else None
    model = kind or SequenceClassifier(tiny.bert_config(), ("bad", "good"))
    checkpoint.save(tiny.shake(model, rng.randrange(100)).float(), folder)
    what = rng.choice([config_value, config_value, config_key_lost, *TENSORS, tensor_bytes, tensor_bytes, config_bytes])
    how = what(folder, rng)
    reader = readers.llama if is_gpt else readers.bert

    def act():
        loaded = checkpoint.load(folder)
        tokens = torch.tensor(TOKENS[: loaded.config.max_seq_len])
        with torch.no_grad():
            out = loaded(tokens, Packing.from_lengths([len(tokens)]))
            return loaded.logits(out).numpy() if is_gpt else [*loaded.classes, *out[0].tolist()]

    with np.errstate(all="ignore"):
        right = truth(reader, folder, list(TOKENS))
    right = right if isinstance(right, Refused) else Close(right)
    return Mutation(f"{reader.__name__} {what.__name__} {how}", act, right)


@dataclass(frozen=True)
class Close:
    """Equal up to rounding."""

    values: Any  # numbers, or names of classes and then their logits

    def __eq__(self, other):
        ours, theirs = np.asarray(self.values, object).flatten(), np.asarray(other, object).flatten()
        return len(ours) == len(theirs) and all(map(close, ours, theirs))


def close(a, b):
    return a == b if isinstance(a, str) or isinstance(b, str) else bool(np.isclose(a, b, 1e-3, 1e-3, equal_nan=True))


def config_value(folder, rng):
    fields = json.loads((folder / "config.json").read_text())
    key = rng.choice([key for key in fields if key not in ("architectures", "dtype", "label2id", "model_type")])
    fields[key] = rng.choice(CLASSES if key == "id2label" else [*OTHERS, *NUMBERS, *NUMBERS])
    (folder / "config.json").write_text(json.dumps(fields))
    return f"{key} {fields[key]!r}"


def config_key_lost(folder, rng):
    fields = json.loads((folder / "config.json").read_text())
    key = rng.choice([key for key in fields if key not in ("architectures", "model_type")])
    del fields[key]
    (folder / "config.json").write_text(json.dumps(fields))
    return key


def config_bytes(folder, rng):
    """Cut anywhere but in its last line end."""
    path = folder / "config.json"
    content = path.read_bytes().rstrip()
    path.write_bytes(
        rng.choice([b"", b"[]", b"null", content[: rng.randrange(len(content))], b"\xff" + content, b"[" * 10**5])
    )
    return ""


def tensors_changed(change):
    def changed(folder, rng):
        tensors = load_file(folder / "model.safetensors")
        name = rng.choice(sorted(tensors))
        change(tensors, name, rng)
        save_file({key: value.contiguous() for key, value in tensors.items()}, folder / "model.safetensors")
        return name

    changed.__name__ = change.__name__
    return changed


@tensors_changed
def tensor_lost(tensors, name, rng):
    del tensors[name]


@tensors_changed
def tensor_extra(tensors, name, rng):
    tensors[rng.choice([f"{name}.more", "extra", "model.layers.9.mlp.up_proj.weight"])] = torch.zeros(3)


@tensors_changed
def tensor_misshapen(tensors, name, rng):
    old = tensors[name]
    tensors[name] = rng.choice([old[:-1], old[None], old.flatten()[:1], torch.cat([old, old]), old[:0], old.sum()])


@tensors_changed
def tensor_of_other_dtype(tensors, name, rng):
    dtypes = [torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int8, torch.bool]
    tensors[name] = tensors[name].to(rng.choice(dtypes))


@tensors_changed
def tensor_not_finite(tensors, name, rng):
    flat = tensors[name].view(-1)
    flat[rng.randrange(len(flat))] = rng.choice([float("nan"), float("inf"), -float("inf")])


@tensors_changed
def tensor_too_large(tensors, name, rng):
    tensors[name] = tensors[name].double() * 1e200


TENSORS = (tensor_lost, tensor_extra, tensor_misshapen, tensor_of_other_dtype, tensor_not_finite, tensor_too_large)


def tensor_bytes(folder, rng):
    """Cut off, or its header spoiled."""
    path = folder / "model.safetensors"
    content = path.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    ways = {
        "cut": lambda: content[: rng.randrange(len(content))],
        "longer": lambda: content + bytes(rng.randint(1, 9)),
        "header": lambda: spoil(content[:header], rng)[0] + content[header:],
        "size": lambda: rng.randbytes(8) + content[8:],
    }
    way = rng.choice(sorted(ways))
    path.write_bytes(ways[way]())
    return way


# ---- options -------------------------------------------------------------------------------------

WRITTEN = ("0", "-1", "1", "2", "0.5", "1.5", "0.999", "nan", "inf", "-inf", "1e30", "-1e-30", "", "x", "0x10", "1,5")
WRITTEN += ("9" * 30, "1e300", "3000000000", "True", "None", "1 2", "cpu", "fp32")
COUNTS = {"sft": ("layers", "batch_tokens", "batch_examples", "micro_tokens", "evaluations", "patience", "steps")}
COUNTS["rl"] = ("prompts", "samples", "evaluations", "steps")
RATES = {"sft": ("minutes", "epochs", "until", "lr", "embedding_lr"), "rl": ("minutes", "lr")}
SHARES = {"sft": ("warmup",), "rl": ("warmup",)}
NAMES = ("optimizer", "keep", "precision", "kernels", "task", "baseline", "symbols")
PATHS = ("train", "dev", "test", "init", "out", "resume")


def number(text):
    """None where it is none."""
    with contextlib.suppress(ValueError):
        return float(text)


def is_right(script, name, text):
    """Whether an option may be this."""
    value, is_whole = number(text), re.fullmatch(r"-?\d+", text) is not None
    if name == "samples":  # times 128 prompts; without another one there is no baseline
        return is_whole and 1 < value < 2**13
    if name in COUNTS[script]:
        return is_whole and 0 < value < 2**31
    if name == "seed":
        return is_whole and 0 <= value < 2**63
    if name in SHARES[script]:
        return value is not None and 0 <= value < 1
    return value is not None and 0 < value < 1e38


def training_option(rng, folder):
    """One option of a training, of which no step is made, is something else."""
    script = rng.choice(["sft", "rl"])
    module, name = {"sft": train_sft, "rl": train_rl}[script], rng.choice((*COUNTS[script], *RATES[script], "seed"))
    name = rng.choice([name, name, *SHARES[script]])
    text = rng.choice(WRITTEN)
    options = {"task": "arithmetic", "out": folder / "run"}
    usual = {"layers": "1", "width": "16", "heads": "2", "batch_tokens": "64"} if script == "sft" else {}
    options |= {key: value for key, value in usual.items() if (key, name) != ("batch_tokens", "batch_examples")}
    argv = scripts.command_line(**options | {"steps": None if name in ("minutes", "epochs") else "1"})
    argv += [f"--{name.replace('_', '-')}={text}"]
    right = number(text) if is_right(script, name, text) else Refused((f"--{name.replace('_', '-')}",))

    def act():
        args = parsed(module, argv)
        module.check(args)
        return float(vars(args)[name])

    return Mutation(f"{script} --{name} {text!r}", act, right)


def parsed(module, argv):
    """What a command line says. What argparse refuses, it says on the standard error output."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return cli.parse_with_task(module.Args, train_sft.TASKS, "", argv)
    except SystemExit:
        raise UserError(said.getvalue().splitlines()[-1]) from None


def named_option(rng, folder):
    """A name that there is not, or two options that exclude each other."""
    script = rng.choice(["sft", "rl"])
    module = {"sft": train_sft, "rl": train_rl}[script]
    known = [name for name in NAMES if name in cli.names_of(module.Args)]
    together = [("minutes", "steps"), ("resume", "lr"), ("resume", "seed")]
    together += (
        [("batch_tokens", "batch_examples"), ("epochs", "minutes"), ("init", "layers")] if script == "sft" else []
    )
    if rng.random() < 0.5:
        names = (rng.choice(known),)
        values = (rng.choice([*WRITTEN, "fp8", "sgd", "first", "cuda", "../x", "Best"]).replace("fp32", "fp33"),)
    else:
        names = rng.choice(together)
        values = (rng.choice(["1", "2", "3"]), rng.choice(["1", "7"]))
    argv = [f"--{name.replace('_', '-')}={value}" for name, value in zip(names, values, strict=True)]

    def act():
        args = parsed(module, argv)
        return module.check(args)

    return Mutation(f"{script} {argv}", act, Refused(tuple(f"--{name.replace('_', '-')}" for name in names)))


def path_option(rng, folder):
    """A path that is not what the option needs; the sentence names the path as it was given."""
    (folder / "a folder").mkdir()
    (folder / "file.txt").write_text(scripts.words("abcdefgh", 2))
    (folder / "file.csv").write_text("text,label\n" + "".join(f"text {i},{'ab'[i % 2]}\n" for i in range(40)))
    (folder / "empty.jsonl").write_text("")
    there = {
        "a folder": "as file",
        "missing.txt": "",
        "file.txt/below": "",
        "x" * 300: "",
        "a\0b": "",
        "empty.jsonl": "",
    }
    given, option = folder / rng.choice(sorted(there)), rng.choice(PATHS)
    task = "pronounce" if option in ("init", "out") else rng.choice(["pronounce", "classify"])
    kind, good = {
        "pronounce": (PronounceOptions, folder / "file.txt"),
        "classify": (ClassifyOptions, folder / "file.csv"),
    }[task]
    if option == "out":
        given = folder / rng.choice(["file.txt", "file.txt/below", "a\0b", "x" * 300])
    if option == "resume":
        options = {option: given}
    elif option in ("init", "out"):
        options = {"task": task, "options": kind(good), "out": folder / "run", option: given}
    else:
        options = {"task": task, "options": kind(**{"train": good, option: given}), "out": folder / "run"}

    def act():
        train_sft.train(train_sft.Args(**options), Console(quiet=True))

    return Mutation(f"--{option} {task} {given.name[:20]!r}", act, Refused((str(given),)))


def command_option(rng, folder):
    """An option of `python -m minillm generate`; what it writes greedily is what numpy would."""
    model = GPT(tiny.gpt_config(vocab_size=256 + len(MERGED) + 1, **tiny.LLAMA | {"tie_embeddings": False}))
    write_bytes_vocabulary(folder)
    checkpoint.save(tiny.shake(model, rng.randrange(100)).float(), folder)
    rules = {
        "top-k": lambda x: x is not None and 0 <= x < np.inf,
        "top-p": lambda x: x is not None and 0 < x <= 1,
        "min-p": lambda x: x is not None and 0 <= x <= 1,
        "max-new-tokens": lambda x: x is not None and 0 < x < np.inf,
        "seed": lambda x: x is not None and 0 <= x < 2**63,
    }
    name, text = rng.choice(sorted(rules)), rng.choice(WRITTEN)
    is_whole = name in ("top-p", "min-p") or re.fullmatch(r"-?\d+", text)
    is_fine = is_whole and rules[name](number(text))
    few = [] if name == "max-new-tokens" else ["--max-new-tokens=4"]
    argv = [str(folder), "--prompt=the", "--json", "--temperature=0", "--precision=fp32", *few, f"--{name}={text}"]

    def act():
        said, out = io.StringIO(), io.StringIO()
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(out):
            try:
                generate.main(cli.parse(generate.Args, "", argv))
            except SystemExit:
                raise UserError(said.getvalue().splitlines()[-1]) from None
        return json.loads(out.getvalue())["tokens"]

    wanted = int(text) if name == "max-new-tokens" and is_fine else 4
    is_fine = is_fine and wanted < 16  # beside the prompt, which is a token
    right = greedy(folder, wanted) if is_fine else Refused((f"--{name}",))
    return Mutation(f"generate --{name} {text!r}", act, right)


def greedy(folder, count):
    """The likeliest token each time, by numpy, behind the token "the"."""
    vocabulary = json.loads((folder / "vocab.json").read_text())
    ids = [vocabulary["the"]]
    for _ in range(count):
        ids.append(int(readers.llama(folder, ids)[-1].argmax()))
        if ids[-1] == vocabulary[END]:
            break
    return ids[1:]


KINDS = {  # with their shares in a hundred
    classify_data: 25,
    pronounce_data: 15,
    model_folder: 25,
    training_option: 10,
    named_option: 8,
    path_option: 9,
    command_option: 8,
}
