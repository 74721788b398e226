"""What is shown of measured rows: one table, the verdict on every target, JSON and a picture."""

import json
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import harness
import targets
from harness import BACKWARD, BOTH, FORWARD, ROOT, Row

from kernels import choose

RESULTS = ROOT / "bench" / "results"
HEAD = ("case", "mode", "provider", "ms", "min … max", "rate", "of ceiling", "peak MB", "error", "ratio")


def slug(device_name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", device_name.lower()).strip("_")


# ---- text ----------------------------------------------------------------------------------------------


def surroundings(environment: dict, ceilings: dict[str, float]) -> str:
    facts = [f"{key} {value}" for key, value in environment.items()]
    facts += [f"{name} {rate(x, 'B/s' if name == 'copy' else 'FLOP/s')}" for name, x in ceilings.items()]
    return " · ".join(facts)


def table(rows: list[Row]) -> str:
    """Aligned columns, a blank line between cases; below, who is missing and why."""
    timed = [row for row in rows if row.ms is not None]
    body = [HEAD, *(_cells(row) for row in timed)]
    widths = [max(len(line[i]) for line in body) for i in range(len(HEAD))]
    lines = []
    for i, line in enumerate(body):
        if i and line[:2] != body[i - 1][:2]:
            lines.append("")
        cells = [f"{cell:{'<' if j < 3 else '>'}{widths[j]}}" for j, cell in enumerate(line)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join([*lines, "", *_missing(rows)])


def _cells(r: Row) -> tuple[str, ...]:
    span = f"{r.ms_low:.4g} … {r.ms_high:.4g}"
    share = "" if r.share is None else f"{100 * r.share:.0f} %"
    error = "" if r.error is None else f"{r.error:.0e}"
    numbers = number(r.ms), span, rate(r.rate, r.unit), share, number(r.peak_mb), error, number(r.ratio, "×")
    return r.case, r.mode, r.provider, *numbers


def _missing(rows: list[Row]) -> list[str]:
    """A line for each provider and reason."""
    cases = list(dict.fromkeys(row.case for row in rows))
    reasons: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row.note:
            reasons.setdefault((row.provider, row.note), []).append(f"{row.case} {row.mode}".strip())
    return [
        f"no {provider} ({'everywhere' if len(where) >= len(cases) else '; '.join(where)}): {note}"
        for (provider, note), where in reasons.items()
    ]


def number(x: float | None, unit: str = "") -> str:
    if x is None:
        return ""
    return f"{x:.2f}{unit}" if 0.1 <= x < 100 else f"{x:.3g}{unit}" if x < 0.1 else f"{x:,.0f}{unit}"


def rate(x: float | None, unit: str) -> str:
    """x in 1e9 of the unit."""
    if x is None:
        return ""
    scales = {"T": 1e3, "G": 1.0, "M": 1e-3, "k": 1e-6}
    prefix = next((prefix for prefix, scale in scales.items() if x >= scale), "")
    return f"{x / scales.get(prefix, 1e-9):.3g} {prefix}{unit}"


# ---- files ---------------------------------------------------------------------------------------------


def compare(doc: str, cases: Callable[..., Iterable[Any]], baseline: str, name: str, title: str) -> int:
    """The command of a script that times kernels: its arguments, its cases one after the other, the report; returns the
    exit code."""
    args = harness.argument_parser(doc).parse_args()
    device = harness.device_of(args)
    print(f"ours is {choose(device).impl}: {choose(device).reason}")
    ceilings = harness.ceilings(device, args.quick)
    rows = []
    for case in cases(device, args.quick, args.all):
        if args.only in case.name:
            print(f"{case.name} …", flush=True)
            rows += harness.run(case, device, baseline, ceilings, args.rounds, args.seconds)
    return finish(rows, name, title, args.out, harness.environment(device), ceilings)


def finish(rows: list[Row], name: str, title: str, out: Path | None, environment: dict, ceilings: dict) -> int:
    """Print everything, write `<out>.json` and `<out>.png` (by default bench/results/<name>_<device>).

    Returns the exit code: 1 if ours failed or was wrong anywhere.
    """
    print("", surroundings(environment, ceilings), "", table(rows), sep="\n")
    verdicts = targets.verdicts(rows, environment["kind"])
    print(*verdicts, "", sep="\n")
    out = out or RESULTS / f"{name}_{slug(str(environment['device']))}"
    out = out.with_suffix("") if out.suffix in (".json", ".png") else out
    out.parent.mkdir(parents=True, exist_ok=True)
    record = {"title": title, "environment": environment, "ceilings": ceilings, "targets": verdicts}
    write_json(out.with_suffix(".json"), record | {"rows": [asdict(row) for row in rows]})
    draw(rows, f"{title}\n{environment['device']}, torch {environment['torch']}", out.with_suffix(".png"))
    for path in (out.with_suffix(".json"), out.with_suffix(".png")):
        print("saved", os.path.relpath(path) if path.is_relative_to(Path.cwd()) else path)
    return int(any(row.note and row.provider.startswith("ours") for row in rows))


def write_json(path: Path, record: dict) -> None:
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def draw(rows: list[Row], title: str, path: Path) -> None:
    """A panel for each mode, a group of bars for each case, one for each provider; logarithmic if times differ much."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [row for row in rows if row.ms is not None]
    modes, cases, providers = (
        list(dict.fromkeys(getattr(r, key) for r in rows)) for key in ("mode", "case", "provider")
    )
    modes = [mode for mode in (FORWARD, BACKWARD, BOTH) if mode in modes] or modes
    palette = iter(plt.get_cmap("tab20").colors)
    colors = {provider: "black" if provider == "ours" else next(palette) for provider in providers}
    times = [row.ms for row in rows]
    far_apart = bool(times) and max(times) > 20 * min(times)
    most = max((len({r.provider for r in rows if r.case == case}) for case in cases), default=1)
    size = (2.5 + 4 * max(1, len(modes)), 1.6 + 0.2 * len(cases) * (most + 1))
    figure, axes = plt.subplots(1, max(1, len(modes)), figsize=size, sharex=True, sharey=True, squeeze=False)
    for axis, mode in zip(axes[0], modes, strict=False):
        for i, case in enumerate(cases):
            here = [r for r in rows if (r.mode, r.case) == (mode, case)]
            for j, r in enumerate(here):
                place = i + (j - (len(here) - 1) / 2) * 0.85 / most
                axis.barh(place, r.ms, 0.8 / most, color=colors[r.provider], label=r.provider)
                axis.plot([r.ms_low, r.ms_high], [place, place], color="gray", linewidth=1)
        axis.set(xlabel="milliseconds, less is better", title=mode)
        if far_apart:
            axis.set(xscale="log")
            axis.xaxis.set_minor_formatter("")
        axis.set_yticks(range(len(cases)), cases)
        axis.grid(axis="x", alpha=0.3)
    axes[0][0].invert_yaxis()
    legend = {
        label: handle for axis in axes[0] for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.suptitle(title, fontsize=10)
    figure.legend(
        legend.values(), legend.keys(), loc="outside lower center", ncols=min(5, len(legend) or 1), fontsize=9
    )
    figure.set_layout_engine("constrained")
    figure.savefig(path, dpi=120)
    plt.close(figure)
