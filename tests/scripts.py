"""Runs train_sft.py and train_rl.py on a few made-up words with a model that trains in a second."""

import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from minillm import cli

ROOT = Path(__file__).resolve().parents[1]
SOUNDS = dict(zip("abcdefgh", ("AA", "B", "K", "D", "EH", "F", "G", "HH"), strict=True))
SMALL = {"layers": 1, "width": 16, "heads": 2, "batch_tokens": 64, "precision": "fp32", "evaluations": 2}
FEW = {"prompts": 4, "samples": 4, "precision": "fp32", "evaluations": 2}


def words(letters, length):
    """Lines for made-up words, each spelled as it sounds."""
    spelled = map("".join, product(letters, repeat=length))
    return "".join(f"{word.upper()}  {' '.join(SOUNDS[letter] for letter in word)}\n" for word in spelled)


def write_words(folder):
    """Files train.txt, dev.txt and test.txt, and the options that name them."""
    texts = {"train": words("abcdefgh", 2), "dev": words("abc", 3), "test": words("de", 4)}
    for split, text in texts.items():
        (folder / f"{split}.txt").write_text(text)
    return {split: folder / f"{split}.txt" for split in texts}


def main(script, **options):
    """The main of a script in this process: → exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [script.__name__, *command_line(**options)])
        try:
            cli.run(script.main)
        except SystemExit as stop:
            return stop.code
    return 0


def command_line(**options):
    """`--batch-tokens 64 …`; options that are None are left out, those that are True are switches."""
    given = {f"--{name.replace('_', '-')}": value for name, value in options.items() if value is not None}
    return [word for name, value in given.items() for word in ([name] if value is True else [name, str(value)])]


def environment():
    """Of a user: nothing of the tests in it."""
    return {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}


def start(script, folder, **options):
    """The script as a process of its own, in `folder`."""
    command = [sys.executable, str(ROOT / script), *command_line(**options)]
    return subprocess.Popen(
        command, cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def run(script, folder, **options):
    """→ exit code, stdout, stderr."""
    process = start(script, folder, **options)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


# ---- several processes that train one model ------------------------------------------------------


def one_thread():
    return {**environment(), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def torchrun(*command, **how):
    """Two processes, each with one thread, as a process to wait for."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.Popen([*launcher, *map(str, command)], env=one_thread(), text=True, stderr=subprocess.PIPE, **how)


def finished(process):
    _, said = process.communicate(timeout=900)
    assert process.returncode == 0, said
    return said


def same_training(one, two, tolerance):
    """Whether two runs have the same figures, in every record, and the same weights, but for rounding."""
    assert len(records(one)) == len(records(two)) > 3, one.name
    for a, b in zip(records(one), records(two), strict=True):
        assert a.keys() == b.keys(), one.name
        for name in (key for key in a if isinstance(a[key], int | float)):
            assert b[name] == pytest.approx(a[name], rel=2 * tolerance, abs=tolerance / 10), (one.name, name)
    first, second = (load_file(folder / "model.safetensors") for folder in (one, two))
    assert first.keys() == second.keys(), one.name
    for name in first:
        torch.testing.assert_close(second[name], first[name], rtol=0, atol=tolerance, msg=f"{one.name}: {name}")


# ---- what a run leaves behind --------------------------------------------------------------------


def write_lines(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def records(folder):
    """The log, without the clock."""
    return [{k: v for k, v in record.items() if k != "seconds"} for record in read_log(folder)]


def read_log(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def steps_of(folder):
    """The numbers of the steps in a log, evaluations left out."""
    return [record["step"] for record in read_log(folder) if "lr" in record]
