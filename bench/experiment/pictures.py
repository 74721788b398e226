"""Pictures as data, drawn twice: into the page as SVG, and as PNG to be shown elsewhere."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from minillm.files import replacing
from minillm.metrics import Interval
from minillm.pages import charts
from minillm.pages.blocks import Html, tag
from minillm.pages.charts import Series, Value

COLOURS = ("#1d5bb8", "#a8540a", "#0c746a", "#7d3f9c")  # as in the style sheet of pages, in light


@dataclass(frozen=True)
class Picture:
    """Curves, or values with their intervals."""

    name: str  # of the file
    title: str
    note: str = ""
    series: Sequence[Series] = ()
    values: Sequence[Value] = ()
    unit: str = ""  # what the horizontal axis of curves counts
    is_log: bool = False  # that axis
    has_shares: bool = True  # whether what is shown is a share, written in per cent
    references: Sequence[tuple[str, float]] = field(default_factory=tuple)

    def __bool__(self) -> bool:
        return any(s.x for s in self.series) or bool(self.values)

    def html(self) -> Html:
        written = charts.share if self.has_shares else charts.short
        if not self:
            return Html()
        if self.values:
            drawn = charts.intervals(self.values, written)
            return tag("div", tag("h3", self.title), tag("p", self.note, class_="quiet"), drawn)
        about = {"references": self.references, "unit": self.unit, "is_log": self.is_log}
        return charts.figure(self.title, self.series, self.note, written, **about)

    def save(self, folder: Path) -> None:
        """As NAME.png."""
        import matplotlib  # slow to load, and only needed here

        matplotlib.use("Agg")  # no window, whatever the machine has
        from matplotlib import pyplot

        figure, axis = pyplot.subplots(figsize=(8, 1.3 + 0.36 * len(self.values) if self.values else 4.6))
        (draw_values if self.values else draw_series)(self, axis)
        axis.spines[["top", "right"]].set_visible(False)
        figure.tight_layout(rect=(0, 0, 1, 1 - 0.55 / figure.get_figheight()))
        for words, size, inches in ((self.title, 12, 0.24), (self.note, 9, 0.46)):
            figure.text(0.02, 1 - inches / figure.get_figheight(), words, fontsize=size, color="0.15")
        with replacing(folder / f"{self.name}.png") as temporary:
            figure.savefig(temporary, dpi=110, format="png")
        pyplot.close(figure)


def draw_series(picture: Picture, axis) -> None:
    scale = 100 if picture.has_shares else 1
    for each, colour in zip(picture.series, COLOURS, strict=False):
        if each.low:
            low, high = ([scale * v for v in bounds] for bounds in (each.low, each.high))
            axis.fill_between(each.x, low, high, color=colour, alpha=0.15, linewidth=0)
            axis.vlines(each.x, low, high, color=colour, alpha=0.5, linewidth=1.5)
        axis.plot(each.x, [scale * v for v in each.y], color=colour, marker="o", markersize=4, label=each.name)
    for name, value in picture.references:
        axis.axhline(scale * value, color="0.4", linestyle="--", linewidth=1, label=name)
    if picture.is_log:
        places = sorted({x for each in picture.series for x in each.x})
        axis.set_xscale("log")
        axis.set_xticks(places, [charts.short(x) for x in places])
        axis.minorticks_off()
    axis.set(xlabel=picture.unit, ylabel="%" if picture.has_shares else "")
    axis.grid(alpha=0.3)
    axis.legend(frameon=False, fontsize=9)


def draw_values(picture: Picture, axis) -> None:
    scale = 100 if picture.has_shares else 1
    for i, value in enumerate(picture.values):
        middle, low, high = (scale * v for v in value.interval)
        colour = COLOURS[0] if value.is_own else "0.45"
        axis.plot([low, high], [i, i], color=colour, linewidth=2)
        axis.plot([middle], [i], "o", color=colour)
    if min(v.interval.low for v in picture.values) < 0 < max(v.interval.high for v in picture.values):
        axis.axvline(0, color="0.4", linewidth=0.8)
    axis.set_yticks(range(len(picture.values)), [value.name for value in picture.values])
    axis.invert_yaxis()
    axis.grid(axis="x", alpha=0.3)


def curve(name: str, x: Sequence[float], intervals: Sequence[Interval]) -> Series:
    """Of values with their intervals, as far as these are known."""
    low, high = [i.low for i in intervals], [i.high for i in intervals]
    has_bounds = all(bound == bound for bound in (*low, *high))
    return Series(name, x, [i.value for i in intervals], low if has_bounds else (), high if has_bounds else ())
