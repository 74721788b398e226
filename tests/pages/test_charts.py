"""Curves and intervals: what is drawn stands where it must."""

import math
import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minillm.metrics import Interval
from minillm.pages import charts
from minillm.pages.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Axis, Series, Value

NUMBERS = st.floats(-1e6, 1e6, allow_subnormal=False) | st.integers(-1000, 1000)


def points(figure, kind="curve"):
    return [
        [tuple(map(float, at.split())) for at in drawn.strip("MZ").split("L")]
        for drawn in re.findall(rf'<path d="([^"]*)" class="{kind}"', figure)
    ]


def circles(figure):
    return [tuple(map(float, at)) for at in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', figure)]


def texts(figure):
    return re.findall(r"<text[^>]*>([^<]*)<", figure)


@given(st.lists(NUMBERS, min_size=1, max_size=30))
def test_an_axis_holds_its_values_and_few_round_ticks(values):
    axis = charts.spanning(values, 10.0, 110.0)
    assert all(10 <= axis.place(value) <= 110 for value in values)
    ticks = axis.ticks()
    assert len(ticks) <= 6
    assert all(axis.low - 1e-9 * abs(axis.low) <= tick <= axis.high + 1e-9 * abs(axis.high) for tick in ticks)
    steps = [b - a for a, b in pairwise(ticks)]
    assert not steps or max(steps) - min(steps) <= 1e-6 * max(steps)
    if min(values) >= 0:
        assert axis.low >= 0


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (47, 85, [50, 60, 70, 80]),
        (0, 13, [0, 5, 10]),
        (0, 0.0005, [0, 1e-4, 2e-4, 3e-4, 4e-4, 5e-4]),
    ],
)
def test_ticks(low, high, ticks):
    assert Axis(low, high, 0, 1).ticks() == pytest.approx(ticks)


def test_a_logarithmic_axis():
    axis = charts.spanning([0.002, 3.0], 100.0, 0.0, may_be_log=True)
    assert axis.is_log
    assert axis.ticks() == pytest.approx([0.01, 0.1, 1.0])
    places = [axis.place(value) for value in (0.01, 0.1, 1.0)]
    assert places[0] - places[1] == pytest.approx(places[1] - places[2])
    assert not charts.spanning([0.0, 3.0], 100.0, 0.0, may_be_log=True).is_log
    assert not charts.spanning([0.2, 3.0], 100.0, 0.0, may_be_log=True).is_log


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [(0.25, 3.6, [0.5, 1, 2]), (30, 40, []), (1, 1000, [1, 10, 100, 1000])],
)
def test_a_logarithmic_axis_of_any_length_has_its_ticks(low, high, ticks):
    assert Axis(low, high, 0.0, 1.0, is_log=True).ticks() == pytest.approx(ticks)


def test_a_horizontal_axis_may_be_logarithmic_and_count_anything():
    """Equal factors are equal steps, and it begins where the curve does."""
    figure = charts.figure("right", [Series("a", [10, 100, 1000], [1, 2, 3])], unit="labels", is_log=True)
    first, second, third = (float(at) for at in re.findall(r'cx="([\d.]+)"', figure))
    assert second - first == pytest.approx(third - second, abs=0.2)
    assert LEFT < first < LEFT + 30
    assert "labels 100: 2" in figure
    assert charts.figure("right", [Series("a", [5], [1])], is_log=True)


def test_points_stand_where_their_values_say():
    figure = charts.figure("loss", [Series("loss", [0, 50, 100], [0.0, 5.0, 10.0])])
    (left, bottom), (middle, centre), (right, top) = circles(figure)
    assert LEFT <= left < middle < right <= WIDTH - RIGHT
    assert TOP <= top < centre < bottom <= HEIGHT - BOTTOM
    assert middle == pytest.approx((left + right) / 2, abs=0.1)
    assert centre == pytest.approx((top + bottom) / 2, abs=0.1)
    assert points(figure) == [[(left, bottom), (middle, centre), (right, top)]]
    # The tick of 5 stands where the value of 5 does.
    lines = re.findall(r'y1="([\d.]+)" y2="[\d.]+" class="grid"', figure)
    assert f"{centre:.1f}" in lines


def test_intervals_are_a_band_around_the_curve():
    figure = charts.figure("wer", [Series("wer", [1, 2], [0.5, 0.4], [0.45, 0.35], [0.55, 0.45])], written=charts.share)
    (high1, high2, low2, low1), curve = *points(figure, "band"), *points(figure)
    assert high1[1] < curve[0][1] < low1[1]
    assert high2[1] < curve[1][1] < low2[1]
    assert high1[0] == low1[0] == curve[0][0]
    assert "step 1: 50% [45%, 55%]" in figure
    assert {"40%", "45%", "50%"} <= set(texts(figure))


def test_a_dense_curve_is_its_average_within_its_noise():
    noise = [math.sin(7 * i) for i in range(5000)]
    figure = charts.figure("loss", [Series("loss", range(5000), noise)])
    (curve,), (band,) = points(figure), points(figure, "band")
    assert len(curve) == charts.POINTS
    assert len(band) == 2 * charts.POINTS
    heights = [y for _, y in curve[10:]]
    assert max(heights) - min(heights) < 0.3 * (max(y for _, y in band) - min(y for _, y in band))
    assert not circles(figure)


def test_a_schedule_is_drawn_as_it_is():
    rates = [1 - i / 99 for i in range(100)]
    figure = charts.figure("lr", [Series("lr", range(100), rates, is_noisy=False)])
    ((*_, last),) = points(figure)
    assert not points(figure, "band")
    assert last == (pytest.approx(WIDTH - RIGHT, abs=10), HEIGHT - BOTTOM)


def test_one_peak_does_not_press_the_rest_flat():
    losses = [1.0 + 0.1 * math.sin(i) for i in range(1000)]
    losses[500] = 1e6
    ((*curve,),) = points(charts.figure("loss", [Series("loss", range(1000), losses)]))
    assert max(y for _, y in curve[:70]) > TOP + 0.5 * (HEIGHT - TOP - BOTTOM)
    assert all(TOP <= y <= HEIGHT - BOTTOM for _, y in curve)


def test_several_curves_have_names_and_colours():
    figure = charts.figure("parts", [Series(name, [0, 1], [0, 1]) for name in ("right", "<short>")])
    assert '<i class="legend series-1" style="font-style: normal">right</i>' in figure
    assert "&lt;short&gt;" in figure
    assert re.findall(r'<g class="(series-\d)"', figure) == ["series-1", "series-2"]


def test_what_a_curve_is_compared_with():
    figure = charts.figure("wer", [Series("wer", [0, 1], [0.5, 0.4])], references=[("naive <Bayes>", 0.9)])
    assert "naive &lt;Bayes&gt;" in texts(figure)
    ((at,),) = [re.findall(r'y1="([\d.]+)" y2="[\d.]+" class="reference"', figure)]
    assert TOP <= float(at) < min(y for _, y in circles(figure))


VALUES = st.none() | st.booleans() | st.text(max_size=3) | st.floats() | st.integers() | st.lists(st.integers())


@given(st.lists(VALUES, max_size=70))
def test_anything_can_stand_in_a_log(values):
    figure = charts.figure("loss", [Series("loss", list(range(len(values))), values)], may_be_log=True)
    drawable = [value for value in values if charts.is_number(value)]
    assert bool(figure) == bool(drawable)
    assert "nan" not in figure
    assert "inf" not in figure


def test_an_interval_is_a_whisker_around_its_dot():
    values = [Value("accuracy", Interval(0.8, 0.7, 0.9)),
              Value("<Bayes>", Interval(0.6, 0.5, 0.7), is_own=False)]  # fmt: skip
    table = charts.intervals(values)
    whiskers = [tuple(map(float, at)) for at in re.findall(r'd="M([\d.]+) 7H([\d.]+)" class="whisker"', table)]
    dots = [float(at) for at in re.findall(r'd="M([\d.]+) 7h0.001"', table)]
    assert [sum(each) / 2 for each in whiskers] == pytest.approx(dots, abs=0.01)
    assert whiskers[0][0] == pytest.approx(whiskers[1][1])  # 0.7 is one place
    assert table.count('class="own"') == 1
    assert "&lt;Bayes&gt;" in table
    assert {"60%", "80%"} <= set(texts(table))
    assert charts.intervals([]) == ""


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (999, "999"), (12_000, "12k"), (1.5e6, "1.5M"), (3e-4, "0.0003")]
)
def test_short(value, text):
    assert charts.short(value) == text
    assert charts.share(0.285) == "28.5%"
