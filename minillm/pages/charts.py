"""Drawings for pages: curves with their bands, and values with their intervals. Plain SVG, no script.

A figure is WIDTH × HEIGHT units wide, about a pixel each; the browser scales it, and the style sheet colours it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from minillm.curves import DENSE, smooth
from minillm.metrics import Interval
from minillm.pages.blocks import Html, joined, number, tag

WIDTH, HEIGHT = 340, 200
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 8, 22  # of a figure's edges, for what is written beside the axes
POINTS = 160  # drawn of a curve; of more, each stands for a stretch of it
COLOURS = 4  # of series, as in the style sheet
DECADES = 50  # times the smallest value that the largest must have for the axis to be logarithmic

Written = Callable[[float], str]  # a value as it stands on an axis


class Series(NamedTuple):
    """A curve: `y` over `x`; where they are known, the 95 % intervals `low` to `high` of each y."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    is_noisy: bool = True  # so that of many points the moving average is drawn; a schedule is not


@dataclass(frozen=True)
class Axis:
    """From values to places along `start` … `end`, in the units of a figure."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def place(self, value: float) -> float:
        low, high, value = (math.log(v) if self.is_log else v for v in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self, most: int = 5) -> list[float]:
        if self.is_log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            for parts in ((1,), (1, 2, 5)):  # these, too, where there are few decades
                found = [part * 10.0**k for k in decades for part in parts]
                found = [value for value in found if self.low * 0.999 <= value <= self.high * 1.001]
                if len(found) > 2:
                    break
            return found[:: max(1, -(-len(found) // most))]
        step = nice_step((self.high - self.low) / most)
        first, last = math.ceil(self.low / step - 1e-6), math.floor(self.high / step + 1e-6)
        return [k * step for k in range(first, last + 1)]


def nice_step(least: float) -> float:
    """1, 2 or 5 times a power of ten, at least so much."""
    unit = 10.0 ** math.floor(math.log10(least))
    return next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= least * (1 - 1e-9))


def spanning(values: Sequence[float], start: float, end: float, may_be_log: bool = False, pad: float = 0.06) -> Axis:
    """An axis that holds all the values with a little room around them, but none below 0 for values that are not."""
    low, high = min(values), max(values)
    if may_be_log and low > 0 and high / low >= DECADES:
        return Axis(low / 1.3, high * 1.3, start, end, is_log=True)
    room = pad * (high - low) or abs(high) * 0.1 or 1.0
    return Axis(max(0.0, low - room) if low >= 0 else low - room, high + room, start, end)


def share(value: float) -> str:
    return f"{number(round(100 * value, 6))}%"


def short(value: float) -> str:
    """A count on an axis: 120k."""
    if abs(value) >= 10_000:
        unit, sign = max((u for u in ((1e3, "k"), (1e6, "M"), (1e9, "G")) if abs(value) >= u[0]), key=lambda u: u[0])
        return f"{number(round(value / unit, 3))}{sign}"
    return number(round(value, 12))


# ---- curves --------------------------------------------------------------------------------------


def figure(
    title: str,
    series: Sequence[Series],
    note: str = "",
    written: Written = short,
    references: Sequence[tuple[str, float]] = (),
    may_be_log: bool = False,
    last: float = 0.0,
    unit: str = "step",
    is_log: bool = False,
) -> Html:
    """Curves over one axis, under a title and a note. A dense curve is its moving average, with the band of what it is
    the average of; a sparse one is marked point by point. `references`: dashed lines with a name; `last`: what the
    horizontal axis, which begins at 0, must hold; `unit`: what that axis counts; `is_log`: whether it is logarithmic,
    and begins where the curves do. Nothing if there is nothing to draw."""
    series = [each for each in map(finite, series) if each.x]
    if not series:
        return Html()
    x = horizontal([v for s in series for v in s.x], last, is_log)
    seen = [v for s in series for v in (*visible(s), *s.low, *s.high)] + [value for _, value in references]
    y = spanning(seen, HEIGHT - BOTTOM, TOP, may_be_log)
    names = [tag("i", s.name, class_=f"legend series-{i % COLOURS + 1}", style="font-style: normal")
             for i, s in enumerate(series)] if len(series) > 1 else []  # fmt: skip
    caption = tag("figcaption", title, tag("span", *names, note))
    drawn = [curve(s, x, y, written, i, unit) for i, s in enumerate(series)]
    said = "; ".join(f"{s.name}: {written(s.y[0])} to {written(s.y[-1])}" for s in series)
    lines = [reference(name, value, y) for name, value in references]
    box = tag("svg", axes(x, y, written), *lines, *drawn, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=said)
    return tag("figure", caption, box)


def horizontal(values: Sequence[float], last: float, is_log: bool) -> Axis:
    if is_log:
        return Axis(min(values) / 1.2, max(*values, last) * 1.2, LEFT, WIDTH - RIGHT, is_log=True)
    return spanning([0.0, last, *values], LEFT, WIDTH - RIGHT, pad=0.02)


def finite(series: Series) -> Series:
    """The points that can be drawn. Of a log that was spoiled on a disk and still is JSON, a value can be anything."""
    columns = [column for column in series[1:5] if column]
    rows = [row for row in zip(*columns, strict=True) if all(is_number(value) for value in row)]
    kept = [list(column) for column in zip(*rows, strict=True)] or [[], []]
    return Series(series.name, *kept)._replace(is_noisy=series.is_noisy)


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def axes(x: Axis, y: Axis, written: Written) -> Html:
    """Horizontal lines with their values, and values below."""
    parts = []
    for value in y.ticks():
        at = f"{y.place(value):.1f}"
        parts.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=at, y2=at, class_="grid"))
        parts.append(tag("text", written(value), x=LEFT - 6, y=f"{y.place(value) + 3.5:.1f}", text_anchor="end"))
    for value in x.ticks():
        if value == int(value):  # no half steps
            at = min(max(x.place(value), LEFT + 4), WIDTH - RIGHT - 8)
            parts.append(tag("text", short(value), x=f"{at:.1f}", y=HEIGHT - 5, text_anchor="middle"))
    return tag("g", *parts)


def reference(name: str, value: float, y: Axis) -> Html:
    at = y.place(value)
    label = tag("text", name, x=LEFT + 3, y=f"{at - 4 if at > TOP + 14 else at + 13:.1f}")
    line = tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=f"{at:.1f}", y2=f"{at:.1f}", class_="reference")
    return tag("g", line, label)


def visible(series: Series) -> Sequence[float]:
    """What the axis must hold: of a dense curve its average and most of its noise, so that one peak does not press the
    rest flat; of a sparse one everything."""
    if len(series.y) <= DENSE or not series.is_noisy:
        return series.y
    ordered, cut = sorted(series.y), len(series.y) // 100
    return [*smooth(series.y)[len(series.y) // 50 :], ordered[cut], ordered[-1 - cut]]


def curve(series: Series, x: Axis, y: Axis, written: Written, index: int, unit: str = "step") -> Html:
    is_dense = len(series.y) > DENSE
    is_averaged = is_dense and series.is_noisy
    middle = smooth(series.y) if is_averaged else series.y
    stretches = [range(a, b) for a, b in pairwise(stretch_ends(len(series.y), 3 if is_averaged else 1))]
    at = [series.x[each[-1]] for each in stretches]
    low = [min(series.low[i] if series.low else series.y[i] for i in each) for each in stretches]
    high = [max(series.high[i] if series.high else series.y[i] for i in each) for each in stretches]
    parts = []
    if is_averaged or series.low:
        edge = [*zip(at, high, strict=True), *zip(at[::-1], low[::-1], strict=True)]
        parts.append(tag("path", d=f"{path(edge, x, y)}Z", class_="band"))
    parts.append(tag("path", d=path([(series.x[e[-1]], middle[e[-1]]) for e in stretches], x, y), class_="curve"))
    if not is_dense:
        parts += [point(series, i, x, y, written, unit) for i in range(len(series.y))]
    return tag("g", *parts, class_=f"series-{index % COLOURS + 1}")


def stretch_ends(count: int, least: int) -> list[int]:
    """0, …, count: where at most POINTS stretches of like length end, of at least so many points."""
    parts = min(POINTS, max(1, count // least))
    return [count * i // parts for i in range(parts + 1)]


def path(points: Sequence[tuple[float, float]], x: Axis, y: Axis) -> str:
    def inside(value: float) -> float:
        return min(max(value, y.low), y.high)

    return "M" + "L".join(f"{x.place(a):.1f} {y.place(inside(b)):.1f}" for a, b in points)


def point(series: Series, i: int, x: Axis, y: Axis, written: Written, unit: str) -> Html:
    interval = f" [{written(series.low[i])}, {written(series.high[i])}]" if series.low else ""
    hint = f"{unit} {short(series.x[i])}: {written(series.y[i])}{interval}"
    at = {"cx": f"{x.place(series.x[i]):.1f}", "cy": f"{y.place(series.y[i]):.1f}", "r": 3}
    return tag("circle", tag("title", hint), class_="point", **at)


# ---- values with their intervals -----------------------------------------------------------------


class Value(NamedTuple):
    """A row of `intervals`. `is_own`: not of what the model is compared with."""

    name: str
    interval: Interval
    is_own: bool = True


def intervals(values: Sequence[Value], written: Written = share) -> Html:
    """Each value in words and as a dot with its 95 % interval as a whisker, all over one axis; in words only where it
    is alone, as it would fill an axis of its own whatever it is."""
    if not values:
        return Html()
    if len(values) == 1:
        return tag("table", tag("tbody", tag("tr", *in_words(values[0]), class_="own")), class_="marks")
    axis = spanning([bound for each in values for bound in each.interval], 0, 100)
    ticks = [tick for tick in axis.ticks(4) if 0 <= axis.place(tick) <= 100]
    grid = joined([tag("line", x1=f"{axis.place(t):.2f}", x2=f"{axis.place(t):.2f}", y1=0, y2=14, class_="grid")
                   for t in ticks])  # fmt: skip
    rows = [tag("tr", *row(each, axis, grid), class_="own" if each.is_own else None) for each in values]
    labels = [
        tag("text", written(tick), x=f"{axis.place(tick):.2f}%", y="1.1em", text_anchor="middle") for tick in ticks
    ]
    below = tag("tr", tag("td"), tag("td"), tag("td", tag("svg", *labels, class_="labels"), class_="mark"))
    return tag("table", tag("tbody", *rows, below), class_="marks")


def row(value: Value, axis: Axis, grid: Html) -> list[Html]:
    middle, low, high = (f"{axis.place(v):.2f}" for v in value.interval)
    marks = [
        tag("path", d=f"M{low} 7H{high}", class_="whisker"),
        tag("path", d=f"M{middle} 7h0.001", class_="dot"),
    ]
    svg = tag("svg", grid, *marks, viewBox="0 0 100 14", preserveAspectRatio="none", aria_hidden="true")
    return [*in_words(value), tag("td", svg, class_="mark")]


def in_words(value: Value) -> list[Html]:
    """What it is called, and the number with its interval: two cells."""
    text, _, rest = str(value.interval).partition(" ")
    return [tag("th", value.name, scope="row"), tag("td", text, " ", tag("small", rest), class_="value number")]
