"""The experiment's three tasks in one picture: right answers by the labels that a start has learned from.

    python bench/by_labels.py        # bench/results/by_labels.png, from the evaluations in bench/results/sft_vs_rl

A line is the mean over seeds, a dot a seed, on test examples that nobody has learned from. Intervals, other arms and
what they cost are in the reports of `python bench/sft_vs_rl.py`.
"""

import argparse
import csv
import sys
from collections import defaultdict
from pathlib import Path
from statistics import fmean

import harness  # noqa: F401, first: puts the repository root on the path
import matplotlib.ticker
import report

from minillm.files import replacing
from minillm.pages import charts

TASKS = {
    "arithmetic": "sums of two numbers",
    "pronounce": "how words are pronounced",
    "sentiment": "film reviews, two classes",
}
ARMS = {
    "start": ("the start", "0.45"),
    "sft": ("more supervised learning", "#a8540a"),
    "rl": ("REINFORCE", "#1d5bb8"),
    "expert": ("expert iteration", "#0c746a"),
}


def right_answers(path: Path) -> dict[str, dict[int, list[float]]]:
    """By arm and number of labels the share of right test answers of each seed."""
    found = {arm: defaultdict(list) for arm in ARMS}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            is_result = (row["set"], row["metric"]) == ("test", "right") and row["kind"] in ("start", "arm")
            if is_result and row["arm"] in found:
                found[row["arm"]][round(float(row["labels"]))].append(float(row["value"]))
    return found


def draw(task: str, axis: "matplotlib.axes.Axes") -> None:
    found = right_answers(report.RESULTS / "sft_vs_rl" / f"{task}.csv")
    for arm, (name, colour) in ARMS.items():
        places = sorted(found[arm])
        means = [100 * fmean(found[arm][labels]) for labels in places]
        axis.plot(places, means, color=colour, linewidth=2, linestyle="--" if arm == "start" else "-", label=name)
        dots = [(labels, 100 * value) for labels in places for value in found[arm][labels]]
        axis.plot([x for x, _ in dots], [y for _, y in dots], "o", color=colour, markersize=3, alpha=0.6)
    places = sorted(found["start"])
    axis.set_xscale("log")
    axis.set_xticks(places, [charts.short(labels) for labels in places], fontsize=8)
    axis.minorticks_off()
    axis.set_title(TASKS[task], fontsize=11)
    axis.set_xlabel("labels that the start has learned from")
    axis.spines[["top", "right"]].set_visible(False)
    axis.yaxis.set_major_locator(matplotlib.ticker.MaxNLocator(6, integer=True))
    axis.grid(alpha=0.3)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=report.RESULTS / "by_labels.png")
    args = parser.parse_args()
    matplotlib.use("Agg")  # no window, whatever the machine has
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(TASKS), figsize=(11, 3.8))
    for task, axis in zip(TASKS, axes, strict=True):
        draw(task, axis)
    axes[0].set_ylabel("right on test, %")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="upper center", ncols=len(ARMS), frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 0.92))
    with replacing(args.out) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
