"""Draws several answers to each of many prompts that a run practises on, and has them judged: a line of JSON each.

  python -m minillm rollout runs/arithmetic-sft > answers.jsonl                  {"prompt": …, "answer": …, "reward": …}
  python -m minillm rollout RUN --prompts 5000 --samples 2 --reward my_reward.py:score > answers.jsonl

Others can learn from that file, without any answer of their own:

  python train_rl.py --method soft-q --logged answers.jsonl

An answer that did not end is left out: its text would be another answer, one that ends there.
"""

from dataclasses import dataclass
from itertools import islice
from statistics import fmean

import torch

from minillm import cli
from minillm.commands.common import as_json, note, print_text
from minillm.commands.evaluate import Examined, prepare
from minillm.device import PRECISIONS
from minillm.episodes import Writer, judge
from minillm.errors import UserError
from minillm.generate import Sampling
from minillm.rewards import open_rewards
from minillm.tasks.base import WritingTask

AT_ONCE = 1024  # answers


@dataclass(frozen=True, kw_only=True)
class Args:
    model: str = cli.argument("run of train_sft.py or train_rl.py whose task a reward can judge")
    prompts: int = cli.option(1000, "prompts, those that train_rl.py would begin with under the same seed")
    samples: int = cli.option(8, "answers drawn for each")
    temperature: float = cli.option(1.0, "of the policy that draws them")
    reward: tuple[str, ...] = cli.option((), "what judges them, as of train_rl.py (default: the task's own)")
    seed: int = cli.option(0, "the same seed, options and threads: the same answers")
    precision: str = cli.option("auto", "of the activations; weights stay float32", choices=PRECISIONS)


def main(args: Args) -> None:
    cli.require_positive(args, "prompts", "samples", "temperature")
    cli.require_seed(args)
    trial = prepare(args.model, Examined(precision=args.precision))
    if not isinstance(trial.task, WritingTask):
        raise UserError(f"{args.model} learned --task {trial.task.name}, whose answers are not written for a reward")
    model, task, tokenizer = trial.model.eval(), trial.task, trial.tokenizer
    reward = open_rewards(args.reward, task.rewards, next(model.parameters()).device)
    writer, practice = Writer(task, tokenizer), islice(task.practice(args.seed), args.prompts)
    rewards: list[float] = []
    left_out = 0
    torch.manual_seed(args.seed)
    while examples := list(islice(practice, max(1, AT_ONCE // args.samples))):
        drawn = writer.rollout(model, examples, Sampling(args.temperature), args.samples)
        ended = [episode for episode in drawn if not episode.is_cut]
        for episode in judge(reward, ended) if ended else ():
            print_text(as_json(prompt=episode.example.prompt, answer=episode.said, reward=episode.reward) + "\n")
            rewards.append(episode.reward)
        left_out += len(drawn) - len(ended)
    mean = f", mean reward {fmean(rewards):.3f}" if rewards else ""
    note(f"{len(rewards):,} answers to {args.prompts:,} prompts{mean}; {left_out:,} that did not end are left out")
