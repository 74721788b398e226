"""The log of a run as a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minillm.files import replacing

DENSE = 50  # points; fewer are marked one by one


def draw(records: Sequence[dict[str, Any]], names: Sequence[str], path: Path, title: str) -> None:
    """One panel for each name, over the seconds of training; records without the name are left out."""
    import matplotlib  # slow to load, and only needed here

    matplotlib.use("Agg")  # no window, whatever the machine has
    from matplotlib import pyplot

    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure, panels = pyplot.subplots(rows, columns, figsize=(4.2 * columns, 3 * rows), squeeze=False)
    for panel in panels.flat[len(names) :]:
        panel.set_visible(False)
    for panel, name in zip(panels.flat, names, strict=False):
        points = [(r["seconds"], r[name]) for r in records if isinstance(r.get(name), int | float)]
        seconds, values = zip(*points, strict=True) if points else ((), ())
        dense, noisy = len(points) > DENSE, name != "lr"  # which a schedule sets
        faint = dense and noisy
        panel.plot(seconds, values, color="0.75" if faint else "C0", linewidth=1, marker="" if dense else "o")
        if faint:  # the noise in grey, its moving average in front
            panel.plot(seconds, smooth(values), color="C0", linewidth=1.8)
        panel.set(title=name, xlabel="seconds")
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title.replace("$", r"\$"))  # which would begin a formula
    figure.tight_layout()
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
    pyplot.close(figure)


def smooth(values: Sequence[float]) -> list[float]:
    """Exponential moving average over about a fiftieth of the curve."""
    weight = min(1.0, 50 / len(values))
    average, averages = values[0], []
    for value in values:
        average += weight * (value - average)
        averages.append(average)
    return averages
