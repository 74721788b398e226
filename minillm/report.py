"""What a person sees of a training: what it runs on, a bar, figures, samples, and where everything was saved."""

import re
import time
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Table
from rich.text import Text
from torch import nn

from minillm.device import Placement
from minillm.metrics import Interval
from minillm.run import Run
from minillm.tasks import Example, Guess, Labelled, Task

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
LINE_SECONDS = 10  # between lines where there is no terminal
SAMPLES = 10


def introduce(
    console: Console, placement: Placement, task: Task, model: nn.Module, run: Run, notes: Sequence[str] = ()
) -> None:
    """Everything that was decided before the first step, with the reasons."""
    config, splits = model.config, task.splits
    size = sum(p.numel() for p in model.parameters())
    shape = f"{config.num_layers} layers × {config.width}, {config.num_heads} heads, {config.vocab_size:,} symbols"
    family = type(config).__name__.removesuffix("Config")
    for line in (
        *placement.lines,
        f"task       {task.name}: {', '.join(f'{len(s):,} {name}' for name, s in vars(splits).items())} examples",
        *(f"           {note}" for note in notes),
        f"model      {family}, {size:,} parameters ({shape})",
        f"run        {run.folder}",
    ):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


class ProgressBar:
    """A bar on a terminal, a line now and then elsewhere. Use it as a context."""

    def __init__(self, console: Console):
        self.console = console
        self.bar = Progress(
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.task = self.bar.add_task("", total=1.0, note="")
        self.last_line = time.monotonic()

    def __enter__(self) -> "ProgressBar":
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def update(self, done: float, seconds: float, note: str) -> None:
        """`done` is between 0 and 1, `seconds` how long that took, `note` what to say beside it."""
        if done > 0.01:
            note += f" · {clock(seconds / done * (1 - done))} left"
        self.bar.update(self.task, completed=done, note=note)
        if not self.console.is_terminal and time.monotonic() - self.last_line > LINE_SECONDS:
            self.last_line = time.monotonic()
            self.console.print(f"{done:4.0%}  {note}", highlight=False)


def clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def figures(metrics: Mapping[str, Interval]) -> str:
    """Metrics for a person: `WER 38.2% [36.3%, 40.1%] · PER …`; the brackets hold the 95 % interval."""
    names = {"wer": "WER", "per": "PER", "macro_f1": "macro-F1", "majority": "always the commonest class"}
    return " · ".join(f"{names.get(name, name)} {value}" for name, value in metrics.items())


def flat(metrics: Mapping[str, Interval], split: str) -> dict[str, float]:
    """Metrics for a file: `dev_wer`, `dev_wer_low`, `dev_wer_high`, …"""
    fields: dict[str, float] = {}
    for name, interval in metrics.items():
        fields[f"{split}_{name}"] = interval.value
        fields[f"{split}_{name}_low"], fields[f"{split}_{name}_high"] = interval.low, interval.high
    return fields


def thinned(examples: Sequence[Example], count: int) -> Sequence[Example]:
    """`count` of the examples, or all where there are fewer, evenly spread."""
    count = min(count, len(examples))
    return [examples[i * len(examples) // count] for i in range(count)]


def samples_table(examples: Sequence[Example], answers: Sequence[str], title: str) -> Table:
    """A few answers beside the truth, and whether they are right."""
    table = Table("prompt", "answer", "", "truth", title=title, title_justify="left")
    rows = range(0, len(examples), max(1, len(examples) // SAMPLES))
    for i in list(rows)[:SAMPLES]:
        right = answers[i] in examples[i].answers
        truth = " or ".join(a.strip() for a in examples[i].answers)
        table.add_row(*cells(examples[i].prompt, answers[i].strip(), "✓" if right else "✗", "" if right else truth))
    return table


def mistakes_table(mistakes: Sequence[tuple[Labelled, Guess]], title: str) -> Table:
    """Wrong answers with their probability, beside the truth."""
    table = Table("text", "answer", "", "truth", title=title, title_justify="left")
    for example, guess in mistakes:
        table.add_row(*cells(shortened(example.prompt), guess.label, f"{guess.probability:.1%}", example.label))
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
