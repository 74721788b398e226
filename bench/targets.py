"""What the kernels are to reach, and whether they did.

Every target is a figure of rows that were measured side by side in one run, and a bound for it.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

from harness import BACKWARD, BOTH, FORWARD, Row

Figures = Callable[[list[Row]], list[tuple[str, float]]]  # of rows: case and value


class Target(NamedTuple):
    text: str
    figures: Figures
    at_least: float | None = None
    at_most: float | None = None


# ---- figures -------------------------------------------------------------------------------------------


def speed(cases: str, mode: str, rival: str | None) -> Figures:
    """Time of the rival, or of the fastest one, over ours."""
    return lambda rows: [(case, other.ms / ours.ms) for case, ours, other in _pairs(rows, cases, mode, rival)]


def time(cases: str, mode: str, rival: str | None) -> Figures:
    """Our time over that of the rival, or of the fastest one."""
    return lambda rows: [(case, ours.ms / other.ms) for case, ours, other in _pairs(rows, cases, mode, rival)]


def memory(cases: str, mode: str, rival: str) -> Figures:
    """Our peak over the rival's."""
    return lambda rows: [
        (case, ours.peak_mb / other.peak_mb)
        for case, ours, other in _pairs(rows, cases, mode, rival)
        if ours.peak_mb is not None and other.peak_mb
    ]


def ceiling(cases: str, mode: str) -> Figures:
    """Our rate over what the machine reaches."""
    return lambda rows: [(r.case, r.share) for r in _ours(rows, cases, mode) if r.share is not None]


def growth(short: str, long: str, mode: str) -> Figures:
    """Our peak of the long case over that of the short one, which has as many tokens."""

    def figures(rows: list[Row]) -> list[tuple[str, float]]:
        pairs = zip(_ours(rows, short, mode), _ours(rows, long, mode), strict=False)
        return [(b.case, b.peak_mb / a.peak_mb) for a, b in pairs if a.peak_mb and b.peak_mb is not None]

    return figures


def _ours(rows: list[Row], cases: str, mode: str) -> list[Row]:
    return [r for r in rows if r.provider == "ours" and r.mode == mode and r.ms and re.search(cases, r.case)]


def _pairs(rows: list[Row], cases: str, mode: str, rival: str | None):
    for ours in _ours(rows, cases, mode):
        beside = [r for r in rows if (r.case, r.mode) == (ours.case, mode) and r.ms]
        peers = [r for r in beside if (r.provider == rival if rival else not r.provider.startswith("ours"))]
        if peers:
            yield ours.case, ours, min(peers, key=lambda r: r.ms)


# ---- the tables ----------------------------------------------------------------------------------------

LONG = "D=128 T=(4096|8192|16384) "
LOGITS = "logits N=8192 V=(32000|131072) "
HIDDEN = "hidden N=8192 C=4096 V=128256 "
GPU = [  # meant for an H100
    Target("attention forward, D=128, T ≥ 4k: speed against FA2", speed(LONG, FORWARD, "SDPA flash"), 1.4),
    Target("attention forward, D=128, T ≥ 4k: speed against cuDNN", speed(LONG, FORWARD, "SDPA cuDNN"), 0.75),
    Target("attention backward, causal: speed against FA2", speed(f"{LONG}causal", BACKWARD, "SDPA flash"), 1.0),
    Target("attention at 8k: speed against eager", speed("D=128 T=8192 ", BOTH, "eager"), 7.0),
    Target(
        "attention: peak memory at 16k over that at 4k, as many tokens",
        growth("D=128 T=4096 ", "D=128 T=16384 ", BOTH),
        at_most=1.1,
    ),
    Target("a step over a long cache: share of the copy rate", ceiling("^step of .*(8192|65536) ", FORWARD), 0.7),
    Target("a step of generation: speed against the fastest rival", speed("^step of ", FORWARD, None), 1.0),
    Target("cross-entropy: share of the copy rate", ceiling(LOGITS, BOTH), 0.85),
    Target("cross-entropy: speed against Liger", speed(LOGITS, BOTH, "Liger"), 2.0),
    Target("linear cross-entropy: time over the fastest peer's", time(HIDDEN, BOTH, None), at_most=1.15),
    Target("linear cross-entropy: peak memory over eager's", memory(HIDDEN, BOTH, "eager"), at_most=0.1),
]
LARGE = "hidden N=8192 C=768 V=50257 float32"
STEP, CT2 = "step", "CTranslate2"
TRAIN = [
    Target("MiniLM's step, half padding: speed against transformers", speed("of 8–64", STEP, "transformers"), 1.8),
    Target("MiniLM's step, tagging: speed against transformers", speed("as they come", STEP, "transformers"), 1.8),
    Target(
        "MiniLM's step, tagging in buckets: speed against transformers", speed("like length", STEP, "transformers"), 1.3
    ),
    Target("GPT's step: speed against transformers", speed("GPT 6 × 384", STEP, "transformers"), 1.5),
    Target(
        "GPT's step: speed against transformers compiled",
        speed("GPT 6 × 384", STEP, "transformers, torch.compile"),
        1.2,
    ),
    Target("GPT-2's step: speed against the faster of those measured", speed("GPT-2 124M", STEP, None), 1.15),
    Target(
        "GPT-2's step: peak memory over that of transformers", memory("GPT-2 124M", STEP, "transformers"), at_most=0.65
    ),
]
SPEEDS = {  # of generation, against transformers
    "4 × 128 float32": {1: 3.6, 32: 2.3, 128: 2.2},
    "6 × 384 float32": {1: 2.0, 32: 2.4, 128: 2.5},
    "GPT-2 124M float32": {1: 2.0, 8: 3.3, 32: 2.8},
    "GPT-2 124M bfloat16": {1: 3.0, 8: 1.8, 32: 1.5},
    "SmolLM2-135M float32": {8: 2.5},
}
GENERATE = [
    *(
        Target("generation: speed against transformers", speed(f"^{model} B={batch}$", "generate", "transformers"), x)
        for model, batches in SPEEDS.items()
        for batch, x in batches.items()
    ),
    *(
        Target("generation: speed against CTranslate2", speed(f"^GPT-2 124M {dtype} B={batch}$", "generate", CT2), x)
        for dtype, bounds in {"float32": {1: 1.0, 8: 1.5, 32: 2.0}, "int8": {1: 1.1, 8: 1.1, 32: 1.1}}.items()
        for batch, x in bounds.items()
    ),
    Target("loading a GGUF file: speed against transformers", speed("SmolLM2.* float32", "load", "transformers"), 1.0),
]
FEW_BITS = [
    Target("four bits, writing: speed against llama.cpp", speed("^decode", "generate", "llama.cpp"), 1.0),
    Target("four bits, reading: speed against llama.cpp", speed("^read", "generate", "llama.cpp"), 2.0),
]
SEQ2SEQ = [
    Target("answers, greedy: speed against transformers", speed("^greedy", "answer", "transformers"), 2.0),
    Target("answers, beam search: speed against transformers", speed("^beam 4", "answer", "transformers"), 2.0),
]
CHAT = [
    Target("conversations: speed against TRL, padded", speed("^(all weights|LoRA)", STEP, "TRL, padded"), 2.0),
    Target("conversations: speed against TRL, packed", speed("^(all weights|LoRA)", STEP, "TRL, packed"), 1.2),
]
CPU = [
    Target("linear cross-entropy: peak extra memory over eager's", memory(LARGE, BOTH, "eager"), at_most=0.05),
    Target("linear cross-entropy: time over eager's", time(LARGE, BOTH, "eager"), at_most=0.95),
    Target("attention, bfloat16: speed against SDPA", speed("D=64 T=512 causal bfloat16", BOTH, "SDPA"), 2.0),
    Target("attention, bfloat16: speed against SDPA", speed("D=64 T=2048 causal bfloat16", BOTH, "SDPA"), 1.3),
    Target("attention, float32: speed against SDPA", speed("T=(512|2048) causal float32", BOTH, "SDPA"), 1.0),
    *TRAIN,
    *GENERATE,
    *FEW_BITS,
    *SEQ2SEQ,
    *CHAT,
    Target("ragged batch: time over padded SDPA's", time("^(29 of 8–64|8 of 64–512) ", BOTH, "SDPA"), at_most=0.6),
]


def verdicts(rows: list[Row], kind: str, everything: bool = False) -> list[str]:
    """A line for each figure of each target; of `everything` also that nothing was measured."""
    lines = []
    for text, figures, at_least, at_most in GPU if kind == "cuda" else CPU:
        bound = f"≥ {at_least:g}" if at_least is not None else f"≤ {at_most:g}"
        found = figures(rows)
        for case, x in found:
            x = round(x, 3 if x < 0.1 else 2)
            reached = x >= at_least if at_least is not None else x <= at_most
            lines.append(f"{'reached' if reached else 'MISSED '}  {x:<6g} ({bound})  {text}, {case}")
        if everything and not found:
            lines.append(f"not measured   ({bound})  {text}")
    return lines
