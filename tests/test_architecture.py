"""The shape of the house, so that it stays readable: how many files a step passes, and what an import pulls in."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Event

import pytest
from rich.console import Console

import train_rl
import train_sft
from minillm.session import Session
from minillm.tasks.arithmetic import Options
from minillm.tasks.pronounce import Options as Words

ROOT = Path(__file__).resolve().parents[1]
OURS = tuple(str(ROOT / name) for name in ("kernels", "minillm", "train_"))
LONGEST_FILE = 350


@contextlib.contextmanager
def files_of_steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[set[Path]]]:
    """The files of ours that each step enters, the script's included; a step ends where the next one begins."""
    steps: list[set[Path]] = []
    entered: set[str] = set()
    begin = Session.goes_on

    def begin_step(session: Session, stop: Event) -> bool:
        steps.append({Path(name) for name in tuple(entered) if name.startswith(OURS)})
        entered.clear()
        return begin(session, stop)

    def enter(frame, event: str, _: object) -> None:
        if event == "call":
            entered.add(frame.f_code.co_filename)

    monkeypatch.setattr(Session, "goes_on", begin_step)
    sys.setprofile(enter)
    try:
        yield steps
    finally:
        sys.setprofile(None)


def check(steps: list[set[Path]], script: str, most: int) -> None:
    assert len(steps) == 5  # what came before the first, and four steps
    for files in steps[2:]:  # after the first
        files = files | {ROOT / script}  # whose loop a step does not enter: it never left it
        assert len(files) <= most, "\n".join(sorted(str(file.relative_to(ROOT)) for file in files))
        sizes = {file: len(file.read_text().splitlines()) for file in files}
        assert max(sizes.values()) <= LONGEST_FILE, max(sizes, key=sizes.get)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_one_supervised_step_enters_few_files(precision, tmp_path, monkeypatch):
    train, dev = tmp_path / "words.txt", tmp_path / "dev.txt"
    train.write_text("".join(f"{'ab' * n}{c}  {'AE B ' * n}K\n" for n in range(1, 9) for c in "cdefghij"))
    dev.write_text("abk  AE B K\n")
    shape = {"width": 32, "layers": 2, "heads": 2, "dropout": 0.0, "batch_tokens": 200}
    budget = {"steps": 4, "evaluations": 1, "precision": precision}
    args = train_sft.Args(out=tmp_path / "run", options=Words(train=train, dev=dev), **shape, **budget)
    with files_of_steps(monkeypatch) as steps:
        train_sft.train(args, Console(quiet=True))
    check(steps, "train_sft.py", most=13)  # one of them is the optimiser


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_one_step_of_reinforcement_enters_few_files(precision, tmp_path, monkeypatch):
    start = train_sft.Args(
        task="arithmetic",
        steps=60,
        width=32,
        layers=2,
        heads=2,
        out=tmp_path / "start",
        evaluations=1,
        options=Options(examples=50),
    )
    train_sft.train(start, Console(quiet=True))
    args = train_rl.Args(
        init=tmp_path / "start",
        steps=4,
        evaluations=1,
        precision=precision,
        out=tmp_path / "run",
        prompts=64,
        temperature=1.0,
    )
    with files_of_steps(monkeypatch) as steps:
        train_rl.train(args, Console(quiet=True))
    check(steps, "train_rl.py", most=17)  # estimators and answers have a file each, which no other script enters
    learned = [files for files in steps[2:] if ROOT / "minillm" / "objective.py" in files]
    assert learned, "no step had anything to learn from, so that the count says little"


def test_generation_pulls_in_little():
    """What `import minillm.generate` loads of ours: no checkpoints, no tokenizers, no tasks, no GPU kernels."""
    code = "import sys, minillm.generate; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    modules = [name for name in done.stdout.split() if name.partition(".")[0] in ("minillm", "kernels")]
    assert "minillm.generate" in modules
    assert len(modules) <= 25, modules
    assert not [m for m in modules if m.startswith(("minillm.published", "minillm.tasks", "kernels.gpu"))]


def test_the_scripts_loops_are_short():
    """The algorithm of each script is one visible loop of under 30 lines."""
    for script in ("train_sft.py", "train_rl.py"):
        lines = (ROOT / script).read_text().splitlines()
        start = next(i for i, line in enumerate(lines) if line.strip() == "for step in session:")
        indent = len(lines[start]) - len(lines[start].lstrip())
        ends = (
            i for i, line in enumerate(lines) if i > start and line.strip() and not line.startswith(" " * (indent + 1))
        )
        length = next(ends, len(lines)) - start - 1
        assert length < 30, (script, length)


def test_models_start_early_in_their_files():
    """Who opens gpt.py sees a block on the first screens."""
    lines = (ROOT / "minillm" / "gpt.py").read_text().splitlines()
    assert next(i for i, line in enumerate(lines, 1) if line.startswith("class Block")) < 80
