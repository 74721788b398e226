"""Draws several answers to each of many prompts that a run practises on, and has them judged, into a file.

  python -m minillm rollout runs/arithmetic-sft --out answers.jsonl     {"prompt": …, "answer": …, "reward": …} a line
  python -m minillm rollout RUN --prompts 5000 --samples 2 --reward my_reward.py:score

Others can learn from that file, without any answer of their own:

  python train_rl.py --method soft-q --logged answers.jsonl

An answer that did not end is left out: its text would be another answer, one that ends there.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from minillm import cli
from minillm.commands.common import note
from minillm.commands.evaluate import Examined, Trial, line_of, prepare
from minillm.device import PRECISIONS
from minillm.episodes import Episode, Writer, judge
from minillm.errors import UserError
from minillm.files import write_text
from minillm.generate import Sampling
from minillm.rewards import SECONDS, open_rewards
from minillm.start_by_reward import judges_of, require_judge
from minillm.tasks.base import WritingTask
from minillm.wording import counted

AT_ONCE = 1024  # answers


@dataclass(frozen=True, kw_only=True)
class Args:
    model: str = cli.argument("run of train_sft.py or train_rl.py whose task a reward can judge")
    out: Path = cli.option(Path("answers.jsonl"), "file to write to")
    prompts: int = cli.option(1000, "prompts, those that train_rl.py would begin with under the same seed")
    samples: int = cli.option(8, "answers drawn for each")
    temperature: float = cli.option(1.0, "of the policy that draws them")
    reward: tuple[str, ...] = cli.option((), "what judges them, as of train_rl.py (default: the task's own)")
    reward_seconds: float = cli.option(SECONDS, "that a function may take for about a thousand answers")
    seed: int = cli.option(0, "the same seed, options and threads: the same answers")
    precision: str = cli.option("auto", "of the activations; weights stay float32", choices=PRECISIONS)


def main(args: Args) -> None:
    cli.require_positive(args, "prompts", "samples", "temperature", "reward_seconds")
    cli.require_seed(args)
    trial = prepare(args.model, Examined(precision=args.precision))
    if not isinstance(trial.task, WritingTask):
        raise UserError(f"{args.model} learned --task {trial.task.name}, which writes no answers that a reward judges")
    if trial.task.environment:
        raise UserError(f"{args.model} answers in several turns, a line of such a file in one: give another run")
    require_judge(judges_of(args.reward, trial.task), trial.task)
    device = next(trial.model.parameters()).device
    reward = open_rewards(args.reward, trial.task.rewards, device, seconds=args.reward_seconds)
    torch.manual_seed(args.seed)
    ended, count = [], 0
    for drawn in rollouts(trial, islice(trial.task.practice(args.seed), args.prompts), args):
        some = [episode for episode in drawn if not episode.is_cut]
        ended += judge(reward, some) if some else []
        count += len(drawn)
    if not ended:
        raise UserError(f"not one of {counted(count, 'answer')} ended, so that there is none to write")
    write_text(args.out, "".join(line_of(record_of(episode)) for episode in ended))
    mean = fmean(episode.reward for episode in ended)
    left_out = f"; {count - len(ended):,} that did not end left out" if count > len(ended) else ""
    note(f"{args.out}: {counted(len(ended), 'answer')}, mean reward {mean:.3g}{left_out}")


def rollouts(trial: Trial, practice: Iterator[Any], args: Args) -> Iterator[Sequence[Episode]]:
    writer, sampling = Writer(trial.task, trial.tokenizer), Sampling(args.temperature)
    while examples := list(islice(practice, max(1, AT_ONCE // args.samples))):
        yield writer.rollout(trial.model.eval(), examples, sampling, args.samples)


def record_of(episode: Episode) -> dict[str, Any]:
    return {"prompt": episode.example.prompt, "answer": episode.said, "reward": episode.reward}
