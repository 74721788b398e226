"""Sampling from a GPT: the rollout engine of reinforcement learning, the voice of a chat, what evaluations run.

First the loop in which a batch of answers grows, then how a token is drawn from logits. `inference.ready` makes a model
faster beforehand; the answers are the same up to rounding.

Letters: B sequences in the batch, V vocabulary, K candidates.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from kernels import Packing
from minillm.gpt import GPT
from minillm.inference import KVCache

BLOCK = 64  # numbers of which the largest is found at once
FEW = 256, 4096  # likeliest tokens that are looked at before all are
WORTH_THREADS = 2e6  # multiplications in a step; with fewer, one thread is done before others are awake


@dataclass(frozen=True)
class Sampling:
    """The settings, in the order in which they act; the defaults draw from the model as it is.

    repetition_penalty   logits of tokens seen before, prompt included, are divided by it where positive and multiplied
                         where negative (Keskar et al. 2019, arXiv:1909.05858)
    temperature          divides the logits; 0 takes the likeliest token
    top_k                only the k likeliest; 0: all
    top_p                only the likeliest that together reach this probability (Holtzman et al. 2020,
                         arXiv:1904.09751)
    min_p                only those at least this share of the likeliest's probability (Nguyen et al. 2024,
                         arXiv:2407.01082)
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self):
        for holds, message in (
            (0 <= self.temperature < float("inf"), f"temperature={self.temperature} must be 0 or more"),
            (self.top_k >= 0, f"top_k={self.top_k} must be 0 or more"),
            (0 < self.top_p <= 1, f"top_p={self.top_p} must be above 0 and at most 1"),
            (0 <= self.min_p <= 1, f"min_p={self.min_p} must be between 0 and 1"),
            (
                0 < self.repetition_penalty < float("inf"),
                f"repetition_penalty={self.repetition_penalty} must be above 0",
            ),
        ):
            if not holds:
                raise ValueError(message)


GREEDY = Sampling(temperature=0)


@dataclass(frozen=True)
class Sample:
    tokens: list[int] = field(default_factory=list)  # the answer; its last is a stop token unless it was cut
    logprobs: list[float] = field(default_factory=list)  # of each token, under the distribution it was drawn from


class Token(NamedTuple):
    answer: int  # the number of the answer it belongs to
    id: int
    logprob: float


def generate(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    stop: int | Collection[int] = (),
    sampling: Sampling = Sampling(),
    samples_per_prompt: int = 1,
    generator: torch.Generator | None = None,
    is_done: Callable[[Token], bool] | None = None,
) -> list[Sample]:
    """Answers to prompts of any lengths, `samples_per_prompt` in a row for each prompt; see `stream`."""
    samples = [Sample() for _ in range(len(prompts) * samples_per_prompt)]
    for token in stream(model, prompts, max_new_tokens, stop, sampling, samples_per_prompt, generator, is_done):
        samples[token.answer].tokens.append(token.id)
        samples[token.answer].logprobs.append(token.logprob)
    return samples


@torch.inference_mode()
def stream(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    stop: int | Collection[int] = (),
    sampling: Sampling = Sampling(),
    samples_per_prompt: int = 1,
    generator: torch.Generator | None = None,
    is_done: Callable[[Token], bool] | None = None,
    cache: KVCache | None = None,
) -> Iterator[Token]:
    """The tokens of all answers as they are drawn, one of each answer at a time.

    An answer ends with a token of `stop`, which is part of it, where `is_done(token)` says so, or after
    `max_new_tokens`; it then leaves the batch. With `cache`, what it holds of each prompt, all but the last token at
    most, is not read again. Raises ValueError if a prompt is empty or prompt and answer could exceed `max_seq_len`.
    """
    check(prompts, max_new_tokens, model.config.max_seq_len)
    stop = {stop} if isinstance(stop, int) else frozenset(stop)
    batch = DecodingBatch(model, prompts, max_new_tokens, samples_per_prompt, sampling.repetition_penalty != 1, cache)
    for step in range(max_new_tokens):
        tokens, logprobs = draw(batch.logits, sampling, generator, batch.seen)
        drawn = list(map(Token, batch.answers, tokens.tolist(), logprobs.tolist()))
        open_tokens = [token for token, on in zip(drawn, batch.is_open, strict=True) if on]
        ended = {token.answer for token in open_tokens if token.id in stop or (is_done and is_done(token))}
        yield from open_tokens
        if step + 1 == max_new_tokens or not batch.go_on(tokens, ended):
            return


class DecodingBatch:
    """The answers that are not finished yet: what the model has read of them, and the logits of what comes next."""

    def __init__(
        self,
        model: GPT,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        samples_per_prompt: int,
        keep_seen: bool,
        cache: KVCache | None = None,
    ):
        self.model, self.device = model, model.tokens.weight.device
        longest = max(map(len, prompts))
        self.cache = cache or KVCache.of(model, len(prompts), longest + max_new_tokens - 1)  # the last is not read
        unread = [prompt[known:] for prompt, known in zip(prompts, self.cache.lengths, strict=True)]
        packing = Packing.from_lengths([len(part) for part in unread], self.device)
        tokens = torch.tensor([token for part in unread for token in part], device=self.device)
        self.logits = model.logits(model(tokens, packing, self.cache, packing.cu_seqlens[1:].long() - 1))
        self.seen = None  # (B,V) bool: which tokens each sequence holds
        if keep_seen:
            self.seen = torch.zeros(self.logits.shape, dtype=torch.bool, device=self.device)
            for row, prompt in zip(self.seen, prompts, strict=True):
                row[torch.tensor(prompt, device=self.device)] = True
        self.answers = list(range(len(prompts)))  # the answer that each row of the batch writes
        if samples_per_prompt > 1:  # a prompt is read once, however often it is answered
            self._select([row for row in self.answers for _ in range(samples_per_prompt)])
            self.answers = list(range(len(self.answers)))
        self.is_open = [True] * len(self.answers)
        self.packing = Packing.from_lengths([1] * len(self.answers), self.device)

    def go_on(self, tokens: Tensor, ended: Collection[int]) -> bool:
        """Read the tokens (B,) drawn for all rows, unless all answers have ended; then it returns False.

        Leaving the batch means copying the cache of those that stay, so it waits until a quarter has ended.
        """
        self.is_open = [on and answer not in ended for answer, on in zip(self.answers, self.is_open, strict=True)]
        if not any(self.is_open):
            return False
        if sum(self.is_open) <= 0.75 * len(self.is_open):
            rows = [row for row, on in enumerate(self.is_open) if on]
            tokens = tokens[torch.tensor(rows, device=self.device)]
            self._select(rows)
            self.is_open = [True] * len(rows)
            self.packing = Packing.from_lengths([1] * len(rows), self.device)
        if self.seen is not None:
            self.seen.scatter_(1, tokens[:, None], True)
        is_small = self.device.type == "cpu" and len(tokens) * self.model.num_parameters < WORTH_THREADS
        with one_thread() if is_small else nullcontext():
            self.logits = self.model.logits(self.model(tokens, self.packing, self.cache))
        return True

    def _select(self, rows: list[int]) -> None:
        self.cache.select(rows)
        self.answers = [self.answers[row] for row in rows]
        index = torch.tensor(rows, device=self.device)
        self.logits = self.logits[index]
        self.seen = None if self.seen is None else self.seen[index]


@contextmanager
def one_thread() -> Iterator[None]:
    """Within it PyTorch computes with one thread; so does, for good, a Python thread that first computes meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def check(prompts: Sequence[Sequence[int]], max_new_tokens: int, max_seq_len: int) -> None:
    if not prompts or not all(prompts):
        raise ValueError("there must be at least one prompt, and each needs at least one token")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens={max_new_tokens} must be at least 1")
    longest = max(map(len, prompts))
    if longest + max_new_tokens - 1 > max_seq_len:  # the last token is not read
        raise ValueError(
            f"a prompt of {longest} tokens and an answer of up to {max_new_tokens} do not fit max_seq_len={max_seq_len}"
        )


# ---- how a token is drawn ----------------------------------------------------------------------------


def draw(
    logits: Tensor, sampling: Sampling, generator: torch.Generator | None = None, seen: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """One token (B,) for each row of logits (B,V), and its log-probability (B,) under what it was drawn from.

    That is the distribution after penalty, temperature and cuts, normalised again; at temperature 0, where it would say
    nothing, the one of temperature 1. In float32, or float64 for such logits. `seen` (B,V) bool are the tokens that
    `repetition_penalty` acts on.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if seen is not None:
        penalty = sampling.repetition_penalty
        logits = torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)
    if sampling.temperature == 0:
        tokens = largest(logits, 1)[1]
        return tokens[:, 0], torch.log_softmax(logits, dim=-1).gather(1, tokens)[:, 0]
    if sampling.temperature != 1:
        top = logits.amax(dim=-1, keepdim=True)  # near 0 only differences to it are sure not to overflow
        logits = (logits - top) / max(sampling.temperature, torch.finfo(logits.dtype).tiny)
    logits, candidates = cut(logits, sampling)
    logprobs = torch.log_softmax(logits, dim=-1)
    places = places_of(logprobs, generator)
    tokens = places if candidates is None else candidates.gather(1, places)
    return tokens[:, 0], logprobs.gather(1, places)[:, 0]


def places_of(logprobs: Tensor, generator: torch.Generator | None) -> Tensor:
    """A place (B,1) for each row of logprobs (B,K), drawn by its probabilities."""
    if logprobs.device.type != "cpu":  # argmax p/E with E ~ Exp(1) is a draw from p; sums would not be deterministic
        race = torch.empty_like(logprobs).exponential_(generator=generator)
        return (logprobs - race.log()).argmax(dim=-1, keepdim=True)
    # The first place up to which the probabilities sum up to more than a number below all of them: one number a row is
    # drawn, where the race draws K, one after the other, which takes ten times as long.
    sums = logprobs.exp().cumsum(dim=-1, dtype=torch.float64)
    below = sums[:, -1:].nextafter(sums.new_zeros(()))
    numbers = torch.rand(below.shape, dtype=sums.dtype, generator=generator) * below
    return torch.searchsorted(sums, numbers, right=True).clamp_max(sums.shape[1] - 1)  # of NaN the last


def cut(logits: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor | None]:
    """The logits (B,K) of what top_k, top_p and min_p leave, −inf for what they cut, and its token ids (B,K).

    None for ids stands for the whole vocabulary in its order.
    """
    V = logits.shape[-1]
    k = min(sampling.top_k or V, V)
    if k == V and sampling.top_p == 1:
        if sampling.min_p > 0:
            least = logits.amax(dim=-1, keepdim=True) + torch.tensor(sampling.min_p).log().item()
            logits = logits.masked_fill(logits < least, -torch.inf)
        return logits, None
    logits, ids, probs = descending(logits, k, sampling.top_p)
    cut_off = probs < sampling.min_p * probs[:, :1]
    if sampling.top_p < 1:
        likelier = probs.cumsum(dim=-1) - probs
        cut_off |= likelier >= sampling.top_p
    cut_off[:, 0] = False  # rounding must not take the likeliest
    return logits.masked_fill(cut_off, -torch.inf), ids


def descending(logits: Tensor, k: int, top_p: float) -> tuple[Tensor, Tensor, Tensor]:
    """The k largest logits of each row (B,K), the largest first, their token ids, and their probabilities among the k.
    Where k is all, and fewer reach `top_p` together, those are enough: to sort 49,152 takes 70 times as long as to find
    256."""
    V = logits.shape[-1]
    if k < V:
        logits, ids = logits.topk(k, dim=-1)
        return logits, ids, logits.softmax(dim=-1)
    total = logits.logsumexp(dim=-1, keepdim=True)
    for count in (*(count for count in FEW if count < V), V):
        some, ids = logits.topk(count, dim=-1) if count < V else logits.sort(dim=-1, descending=True)
        probs = (some - total).exp()
        if bool((probs.sum(dim=-1) >= top_p).all()):
            break
    return some, ids, probs


def largest(x: Tensor, m: int) -> tuple[Tensor, Tensor]:
    """The m largest of each row of x (B,N) and their places, (B,m): the largest first, of equal ones the first.

    NaN counts as infinite. `torch.topk` promises nothing of equal ones, and looks at each number; but the m largest are
    in the m blocks whose largest are largest, and the largest of a block is found in a tenth of the time.
    """
    N = x.shape[1]
    if 2 * m * BLOCK >= N:
        return _largest(x, m)
    end = N - N % BLOCK
    blocks = largest(x[:, :end].unflatten(1, (-1, BLOCK)).amax(dim=-1), m)[1]
    blocks = blocks.sort(dim=1).values  # so that of equal numbers the first stay first
    places = (blocks[:, :, None] * BLOCK + torch.arange(BLOCK, device=x.device)).flatten(1)
    rest = torch.arange(end, N, device=x.device).expand(len(x), -1)
    places = torch.cat([places, rest], dim=1)
    values, order = _largest(x.gather(1, places), m)
    return values, places.gather(1, order)


def _largest(x: Tensor, m: int) -> tuple[Tensor, Tensor]:
    if m == 1:
        return x.max(dim=1, keepdim=True)
    size = x.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)
    least = size.topk(m, dim=1).values[:, -1:]
    above, level = size > least, size == least
    room = m - above.sum(dim=1, keepdim=True)
    places = (above | (level & (level.cumsum(dim=1) <= room))).nonzero()[:, 1].view(-1, m)
    order = size.gather(1, places).sort(dim=1, descending=True, stable=True).indices
    places = places.gather(1, order)
    return x.gather(1, places), places
