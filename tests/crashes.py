"""Tiny trainings that are killed, or whose folders are damaged, and go on as a user would; see test_crashes.py.

Each command is a process of its own, forked from this one, which has loaded PyTorch and computed nothing. It is killed
by SIGKILL after some time, or before it opens, renames or removes a certain file, so that no moment is left out.

    python tests/crashes.py FOLDER SEED KILLS DAMAGED [CASE …]  →  a line of JSON for each run
"""

import json
import os
import random
import re
import shutil
import signal
import sys
import time
import traceback
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import scripts
import torch
import torch._dynamo  # which optimisers load on their first step, for a second
from damage import BYTES, OTHERS
from safetensors.torch import load_file

import minillm.curves
import minillm.session
import train_rl
import train_sft
from minillm.files import read_state, replacing, write_tensors
from minillm.tasks import arithmetic

FILE_EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "fcntl.flock")
TINY = {"layers": 1, "width": 16, "heads": 2, "batch_tokens": 64, "precision": "fp32", "dropout": 0.2, "steps": 12}
MOST = 8  # kills of one run


@dataclass
class Case:
    """What a user types, and which folder the run has then."""

    script: object
    options: dict
    out: str
    seconds: float = 0.0  # of an undisturbed run
    events: int = 0  # likewise


def make_cases(folder):
    """One for each task, and reinforcement learning, which makes a start for itself first."""
    scripts.write_words(folder)
    texts = [f"{a} {b} {c}" for a in ("good", "bad") for b in ("film", "book", "song") for c in "abcdefgh"]
    lines = [f"{text},{text.split()[0]}\n" for text in texts]
    (folder / "texts.csv").write_text("text,label\n" + "".join(lines[:40]))
    (folder / "more.csv").write_text("text,label\n" + "".join([*lines[5:8], *lines[40:]]))
    columns = [f"play O\n{a} B-song\n{b} {'I-song' if c else 'O'}\n\n" for a in "abcdef" for b in "xyz" for c in (0, 1)]
    (folder / "tags.conll").write_text("".join(columns[:28]))
    (folder / "more.conll").write_text("".join(columns[26:]))
    words = {split: f"../{split}.txt" for split in ("train", "dev", "test")}
    texts = {"train": "../texts.csv", "dev": "../more.csv"}
    tags = {"train": "../tags.conll", "dev": "../more.conll"}
    deep = "my deep/er/run"
    few = {"prompts": 4, "samples": 4, "precision": "fp32", "evaluations": 3, "steps": 6, "examples": 40}
    return {
        "pronounce": Case(train_sft, {**words, **TINY, "keep": "best", "evaluations": 4}, "runs/pronounce-sft"),
        "arithmetic": Case(train_sft, {"task": "arithmetic", "examples": 40, **TINY, "out": "run"}, "run"),
        "classify": Case(train_sft, {"task": "classify", **texts, **TINY, "patience": 2, "out": deep}, deep),
        "tag": Case(train_sft, {"task": "tag", **tags, **TINY, "out": "run"}, "run"),
        "rl": Case(train_rl, few, "runs/arithmetic-rl"),
    }


def prepare():
    """Trainings that take a second: few problems, a checkpoint at every step, no drawing, a reward that differs. The
    machine does not go down, so that nothing has to wait for its disk."""
    torch.set_num_threads(1)
    os.fsync = lambda _: None
    minillm.session.SAVE_SECONDS = 0.0
    arithmetic.HELD_OUT = 30
    recipe = {**TINY, "optimizer": "muon", "lr": 0.005, "embedding_lr": 0.005, "warmup": 0.02, "until": 0.9}
    arithmetic.Arithmetic.recipe = lambda *_: recipe
    arithmetic.Arithmetic.reward = lambda self, _, answers: {"right": [sum(map(ord, a)) % 3 / 2 for a in answers]}
    minillm.curves.draw = draw


def draw(records, names, path, title):
    with replacing(path) as temporary:
        temporary.write_text(f"{len(records)} {names}")


# ---- processes -----------------------------------------------------------------------------------


def begin(script, options, folder, die_at=0):
    """A process that runs the script in `folder`; it kills itself before its `die_at`-th file event."""
    if child := os.fork():
        return child
    try:
        os.chdir(folder)
        said = os.open("said", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(said, 1)
        os.dup2(said, 2)
        signal.alarm(100)  # nothing here takes so long
        count = watch_files(die_at)
        code = scripts.main(script, **options)
        Path("events").write_text(str(count[0]))
    except BaseException:
        traceback.print_exc()
        code = 70
    sys.stdout.flush()
    os._exit(code)


def watch_files(die_at):
    """Counts what is done to files here: a list of one number."""
    count, here = [0], os.getcwd()

    def see(event, arguments):
        if event == "fcntl.flock" or (event in FILE_EVENTS and os.path.abspath(str(arguments[0])).startswith(here)):
            count[0] += 1
            if count[0] == die_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(see)
    return count


def end(child):
    """→ its exit code; −9 if it was killed."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def run(script, options, folder):
    """Undisturbed → exit code, what it said."""
    code = end(begin(script, options, folder))
    return code, (folder / "said").read_text()


def results(folder):
    """All that a run leaves behind but what the clock says, and where it lies."""
    found = {path.name: path.is_file() and path.read_bytes() for path in folder.iterdir() if path.name != "args.json"}
    log = [json.loads(line) for line in found["log.jsonl"].splitlines()]
    metrics = json.loads(found["metrics.json"])
    for each in (*log, metrics):
        del each["seconds"]
    here = next(above for above in folder.parents if (above / "said").exists())
    page = re.sub(rb'<span class="clock">[^<]*</span>', b"", found["report.html"])
    place = re.escape(bytes(here.parent)) + rb"/[\w-]+/?"  # also of the folder that it is a copy of
    page, report = (re.sub(place, b"", content) for content in (page, found["report.json"]))
    return {**found, "log.jsonl": log, "metrics.json": metrics, "report.html": page, "report.json": report}


def whole(case, folder):
    """The results of the run that nothing interrupts."""
    folder.mkdir()
    started = time.monotonic()
    code, said = run(case.script, case.options, folder)
    assert code == 0, said
    case.seconds, case.events = time.monotonic() - started, int((folder / "events").read_text())
    return results(folder / case.out)


def differences(truth, found):
    """The names of files that are not as they should be."""
    return sorted(name for name in truth.keys() | found.keys() if truth.get(name) != found.get(name))


# ---- kills ---------------------------------------------------------------------------------------


def kill(count, rng, folder, cases, truths):
    """Runs that are killed at most MOST times each, `count` times in all, until they are done."""
    left = count
    for number, (name, case) in enumerate(cycle(cases.items())):
        if not left:
            return
        (here := folder / f"killed-{name}-{number}").mkdir()
        moments, complaint = [], None
        while complaint is None and not (here / case.out / "metrics.json").exists():
            kills = min(left, MOST - len(moments))
            code, moment = go_on(case, here, rng if kills else None)
            if code == -9:
                moments.append(moment)
                left -= 1
            elif code != 0:
                complaint = (here / "said").read_text()
        if complaint is None:
            # What a process that died while it tidied up has left goes when somebody asks for the run again.
            run(case.script, {"resume": case.out}, here)
            complaint = ", ".join(differences(truths[name], results(here / case.out)))
        print(json.dumps({"case": name, "killed": moments, "complaint": complaint}), flush=True)


def go_on(case, folder, rng):
    """What a user does next, killed at a moment that `rng` draws, if it lives so long → exit code, moment."""
    options, kind = next_options(case, folder), rng and rng.choice(("soon", "any time", "file", "file"))
    if kind is None:
        return run(case.script, options, folder)[0], None
    if kind == "file":
        at = rng.randint(1, case.events)
        return end(begin(case.script, options, folder, at)), f"file event {at}"
    after = rng.uniform(0, 0.05 if kind == "soon" else case.seconds)
    child = begin(case.script, options, folder)
    time.sleep(after)
    os.kill(child, signal.SIGKILL)
    return end(child), f"{after:.3f} s"


def next_options(case, folder):
    """--resume where a folder is; where that says so, the same command as before."""
    if not (folder / case.out).exists():
        return case.options
    if (folder / case.out / "checkpoint.safetensors").exists():
        return {"resume": case.out}
    code, said = run(case.script, {"resume": case.out}, folder)
    assert code == 2, said
    assert "with the same command again" in said or "is not a run" in said, said
    return case.options


# ---- damage --------------------------------------------------------------------------------------


def damage(count, rng, folder, cases, truths):
    """Interrupted runs of which one file each, or one of their data, is spoiled: refused, or as if nothing was."""
    for number, (name, case) in zip(range(count), cycle(cases.items()), strict=False):
        if number < len(cases):
            interrupt(case, folder / f"cut-{name}")
        shutil.copytree(folder / f"cut-{name}", here := folder / f"damaged-{name}-{number}")
        data = [folder / Path(path).name for key, path in case.options.items() if key in ("train", "dev", "test")]
        there = [path for path in sorted((here / case.out).iterdir()) if path.suffix != ".partial"]
        path = rng.choice([*there, *data])
        before, how = path.read_bytes(), spoil(path, rng)
        code, said = run(case.script, {"resume": case.out}, here)
        complaint = judge(code, said, here / case.out, truths[name], path.name)
        if path in data:
            path.write_bytes(before)
        report = {"case": name, "damaged": path.name, "how": how, "code": code, "complaint": complaint}
        print(json.dumps({**report, "said": said if complaint or code else ""}), flush=True)


def interrupt(case, folder):
    """A run that was killed on its way."""
    folder.mkdir()
    assert end(begin(case.script, case.options, folder, case.events * 3 // 4)) == -9
    assert (folder / case.out / "checkpoint.safetensors").exists()
    assert not (folder / case.out / "metrics.json").exists()


def judge(code, said, folder, truth, spoiled):
    """What is wrong about a damaged run that was resumed; nothing if it was refused or is the undamaged one."""
    if code == 2:
        return "" if said.splitlines()[-1].startswith("error: ") and "Traceback" not in said else "no sentence"
    if code != 0:
        return "no exit"
    different = differences(truth, results(folder))
    return ", ".join(
        set(different) - {"log.jsonl", "curves.png", "report.html"} if spoiled == "log.jsonl" else different
    )


def spoil(path, rng):
    """Spoils a file in one of many ways → which."""
    ways = [*BYTES[:4], removed, *BYTES[4:]]
    ways += [other_value, key_lost] * 3 if path.suffix == ".json" else []
    ways += [tensor_lost, state_lost, state_of_other_type] * 3 if path.suffix == ".safetensors" else []
    way = rng.choice(ways)
    if way is removed:
        path.unlink()
    elif way in (tensor_lost, state_lost, state_of_other_type):
        way(path, rng)
    else:
        path.write_bytes(way(path.read_bytes(), rng))
    return way.__name__


def removed(content, rng):
    raise AssertionError("there is no content then")


def other_value(content, rng):
    fields = json.loads(content)
    fields[rng.choice(sorted(fields))] = rng.choice(OTHERS)
    return json.dumps(fields).encode()


def key_lost(content, rng):
    fields = json.loads(content)
    del fields[rng.choice(sorted(fields))]
    return json.dumps(fields).encode()


def tensor_lost(path, rng):
    tensors = load_file(path)
    del tensors[rng.choice(sorted(tensors))]
    write_tensors(path, tensors, read_state(path))


def state_lost(path, rng):
    """Of what stands beside the tensors a key is missing, and the checksum does not tell."""
    state = read_state(path)
    some = rng.choice([state, *(value for value in (state or {}).values() if value and isinstance(value, dict))])
    if some:
        del some[rng.choice(sorted(some))]
    write_tensors(path, load_file(path), state)


def state_of_other_type(path, rng):
    state = read_state(path)
    some = rng.choice([state, *(value for value in (state or {}).values() if value and isinstance(value, dict))])
    if some:  # not a number for another, which nobody could tell
        some[rng.choice(sorted(some))] = rng.choice([other for other in OTHERS if not isinstance(other, int | float)])
    write_tensors(path, load_file(path), state)


def main(folder, seed, kills, damaged, *names):
    prepare()
    cases = make_cases(folder)
    cases = {name: cases[name] for name in names or cases}
    truths = {name: whole(case, folder / f"whole-{name}") for name, case in cases.items()}
    rng = random.Random(int(seed))
    kill(int(kills), rng, folder, cases, truths)
    damage(int(damaged), rng, folder, cases, truths)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), *sys.argv[2:])
