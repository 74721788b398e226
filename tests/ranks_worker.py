"""What each process of test_ranks.py and test_ranks_by_reward.py does: trains the cases of a file, one after another.

torchrun --nproc-per-node 2 tests/ranks_worker.py CASES.json FOLDER
"""

import hashlib
import json
import sys
import zlib
from pathlib import Path

import torch
from rich.console import Console
from torch.distributed import init_process_group, is_torchelastic_launched

import minillm.curves
import train_rl
import train_sft
from minillm.episodes import Agent
from minillm.tasks import TASKS


def main(cases: Path, folder: Path) -> None:
    if is_torchelastic_launched():
        init_process_group("gloo")
    plant()
    minillm.curves.draw = lambda *_: None  # which takes longer than the training
    for name, (options, own) in json.loads(cases.read_text()).items():
        script = train_rl if options.pop("by_reward", False) else train_sft
        options |= {name: Path(options[name]) for name in ("init", "logged") if name in options}
        chosen = TASKS[options["task"]].Options(
            **{key: Path(value) if "/" in str(value) else value for key, value in own.items()}
        )
        script.train(script.Args(out=folder / name, options=chosen, **options), Console(quiet=True))


def plant() -> None:
    """By reward: weights in float64; what is drawn depends on the prompt, whoever draws it; the ranks must agree about
    what becomes of it."""
    opened, rollout, permuted, weigh = train_rl.open_agent, Agent.rollout, torch.randperm, train_rl.weigh

    def open_agent(*args):
        args, agent = opened(*args)
        for model in (agent.model, agent.start):
            model.double().compute_dtype = torch.float64
        return args, agent

    def planted(agent, examples, *how):
        found = []
        for example in examples:
            torch.manual_seed(zlib.crc32(repr(example).encode()))
            found += rollout(agent, [example], *how)
        return found

    def agreeing(episodes, session, args):
        known = hashlib.sha256(repr([vars(e) for e in episodes]).encode())
        known.update(bytes(torch.get_rng_state().tolist()))
        assert len(set(session.exchange(known.hexdigest()))) == 1
        weigh(episodes, session, args)

    train_rl.open_agent, Agent.rollout, train_rl.weigh = open_agent, planted, agreeing
    torch.randperm = lambda n: permuted(n, generator=torch.Generator().manual_seed(n))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
