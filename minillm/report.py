"""What a person sees of a training: what it runs on, figures, samples. (The bar of its steps is in session.py.)"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import nn

from minillm.device import Placement
from minillm.glossary import named
from minillm.metrics import Interval
from minillm.run import Run
from minillm.tokenizer import Tokenizer
from minillm.wording import counted

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
SAMPLES = 10


def introduce(
    console: Console, placement: Placement, task: Any, model: nn.Module, run: Run, more: Sequence[str] = ()
) -> None:
    """Everything that was decided before the first step, with the reasons, and what `more` there is to say."""
    config, splits = model.config, task.splits
    size = sum(p.numel() for p in model.parameters())
    blocks, heads = counted(config.num_layers, "layer"), counted(config.num_heads, "head")
    shape = f"{blocks} × {config.width}, {heads}, {counted(config.vocab_size, 'symbol')}"
    learning = sum(p.numel() for p in model.parameters() if p.requires_grad)
    of_them = f", of which {learning:,} learn" if learning < size else ""
    family = type(config).__name__.removesuffix("Config")
    for line in (
        *placement.lines,
        f"task       {task.name}: {', '.join(f'{len(s):,} {n}' for n, s in vars(splits).items() if s)} examples",
        *(f"           {note}" for note in task.notes),
        f"model      {family}, {size:,} parameters{of_them} ({shape})",
        *more,
        f"run        {run.folder}",
    ):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def figures(metrics: Mapping[str, Interval]) -> str:
    """Metrics for a person: `WER 38.2% [36.3%, 40.1%] · PER …`; the brackets hold the 95 % interval."""
    return " · ".join(f"{named(name)} {value}" for name, value in metrics.items())


def points(found: Interval) -> str:
    """A difference of shares is in points and not in percent, which could be taken for a share of the first."""
    if not found.form.endswith("%"):
        return str(found)
    value, low, high = (format(100 * number, found.form.replace("%", "f")) for number in found)
    return f"{value} points [{low}, {high}]"


def flat(metrics: Mapping[str, Interval], split: str) -> dict[str, float]:
    """Metrics for a file: `dev_wer`, `dev_wer_low`, `dev_wer_high`, …"""
    fields: dict[str, float] = {}
    for name, interval in metrics.items():
        fields[f"{split}_{name}"] = interval.value
        fields[f"{split}_{name}_low"], fields[f"{split}_{name}_high"] = interval.low, interval.high
    return fields


def values_of(report: Mapping[str, Mapping[str, Interval | int]]) -> dict[str, dict[str, float]]:
    """A report by class for a file, without the intervals."""
    return {
        kind: {name: x.value if isinstance(x, Interval) else x for name, x in row.items()}
        for kind, row in report.items()
    }


def score(console: Console, task: Any, model: nn.Module, tokenizer: Tokenizer, when: str) -> dict[str, Any]:
    """The task's metrics of the answers to all that is held out, by split; shown, too."""
    found: dict[str, Any] = {}
    for split in ("dev", "test"):
        if examples := vars(task.splits)[split]:
            found[split] = task.measure(examples, task.answer(model, tokenizer, examples))
            console.print(f"{when}: {split} {figures(found[split])} on {counted(len(examples), 'held-out example')}")
    return found


def glance(session: Any, task: Any, model: nn.Module, tokenizer: Tokenizer) -> tuple[Sequence[Any], list[Any]]:
    """Some dev examples and the model's answers."""
    examples = evenly_spaced(task.splits.dev, task.glance)
    with session.averaged():
        return examples, task.answer(model, tokenizer, examples)


def score_of(task: Any, measured: Mapping[str, Interval]) -> float:
    """The metric that counts, higher being better."""
    value = measured[task.headline].value
    return -value if task.lower_is_better else value


def which_look(task: Any, log: Sequence[Mapping[str, Any]], last: int, score: float) -> str:
    """Which look at the dev set is the best, in words: of those in the log, and of the one after the last step."""
    sign, name = (-1 if task.lower_is_better else 1), f"dev_{task.headline}"
    looks = {record["step"]: sign * record[name] for record in log if name in record}
    looks.setdefault(last, score)
    best = max(looks, key=lambda step: (looks[step], step))  # the last of equal ones
    when = f"after step {best} of {last}" if best else "before the first step: no training was as good as the start"
    of_looks = f"the best of {counted(len(looks), 'look')} at dev"
    return f"kept is the model {when}, {of_looks}, whose figure is the better for the choice"


def evenly_spaced(examples: Sequence[Any], count: int) -> Sequence[Any]:
    """`count` of the examples, or all where there are fewer, evenly spread."""
    count = min(count, len(examples))
    return [examples[i * len(examples) // count] for i in range(count)]


def samples_table(examples: Sequence[Any], answers: Sequence[str], title: str) -> Table:
    """A few answers beside the truth, and whether they are right."""
    table = Table("prompt", "answer", "", "truth", title=title, title_justify="left")
    rows = range(0, len(examples), max(1, len(examples) // SAMPLES))
    for i in list(rows)[:SAMPLES]:
        right = examples[i].is_right(answers[i])
        mark = "✓" if right else "✗" if examples[i].answers else ""  # of what is only judged nobody knows the truth
        truth = " or ".join(a.strip() for a in examples[i].answers)
        shown = examples[i].prompt, str(answers[i]), mark, "" if right else truth
        table.add_row(*cells(*map(shortened, shown)))
    return table


def mistakes_table(mistakes: Sequence[tuple[Any, Any]], title: str) -> Table:
    """Wrong answers with their probability, beside the truth."""
    table = Table("text", "answer", "", "truth", title=title, title_justify="left")
    for example, prediction in mistakes:
        table.add_row(
            *cells(shortened(example.prompt), prediction.label, f"{prediction.probability:.1%}", example.label)
        )
    return table


def without_control_characters(text: str) -> str:
    """Tabs and line ends stay: a model must not rewrite what stands on a terminal."""
    return CONTROL.sub("", text)


def cells(*texts: str) -> list[Text]:
    """For a row of a table: brackets are no markup."""
    return [Text(without_control_characters(text)) for text in texts]


def shortened(text: str, length: int = 160) -> str:
    """In one line, its middle left out where it is long."""
    text = " ".join(text.split())
    return text if len(text) <= length else f"{text[: length // 2]} … {text[-length // 2 :]}"
