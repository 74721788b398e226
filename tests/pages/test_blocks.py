"""Markup that can hold any text, and tables."""

import html
import re
from html.parser import HTMLParser
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up import EVIL

from minillm.pages import blocks
from minillm.pages.blocks import STYLE, Html, tag


class Parsed(HTMLParser):
    """Elements, their attributes, texts; and that every element that was begun ends."""

    def __init__(self, markup):
        super().__init__()
        self.open, self.elements, self.texts = [], [], []
        self.feed(markup)
        self.close()
        assert not self.open

    def handle_starttag(self, name, attributes):
        self.elements.append((name, dict(attributes)))
        if name not in ("meta",):
            self.open.append(name)

    def handle_endtag(self, name):
        assert self.open.pop() == name

    def handle_data(self, data):
        self.texts.append(data)


def cells(markup):
    return [html.unescape(re.sub("<[^>]*>", "", cell)) for cell in re.findall(r"<t[dh].*?</t[dh]>", markup, re.S)]


@given(st.text(), st.text())
def test_a_text_stays_a_text(text, value):
    """Whatever it is, it comes back, but for what HTML cannot hold."""
    parsed = Parsed(tag("p", text, title=value))
    ((name, attributes),) = parsed.elements
    sign = "\N{REPLACEMENT CHARACTER}"
    assert name == "p"
    assert "".join(parsed.texts) == blocks.UNPRINTABLE.sub(sign, text)
    assert attributes == {"title": blocks.UNPRINTABLE.sub(sign, value)}


def test_markup_is_kept_and_all_else_escaped():
    assert tag("p", Html("<b>x</b>"), "<i>", 3, class_="a") == '<p class="a"><b>x</b>&lt;i&gt;3</p>'
    assert tag("p", class_=None) == "<p></p>"
    assert not isinstance(Html("<b>") + "<i>", Html)  # so that a sum is a text, and escaped


def test_a_page_forbids_all_that_could_leave_it():
    page = blocks.page(EVIL, tag("p", EVIL))
    page.encode()
    elements = Parsed(page).elements
    assert not [name for name, _ in elements if name in ("script", "img", "link", "iframe", "a", "base")]
    policy = next(a["content"] for _, a in elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"
    assert not re.findall(r"url\(|@import|http", STYLE.read_text())


def test_tables():
    rows = [("a<b", 1234567, 0.12345678), ("c", True, Html("<b>d</b>")), ("✓", "12.5%", "✗"), ("1", "2.74", "1.2.3")]
    table = blocks.table(("name", "n", ""), rows, "a caption")
    assert cells(table) == [
        "name",
        "n",
        "",
        "a<b",
        "1,234,567",
        "0.1235",
        "c",
        "True",
        "d",
        "✓",
        "12.5%",
        "✗",
        "1",
        "2.74",
        "1.2.3",
    ]
    assert [a.get("class") for name, a in Parsed(table).elements if name == "td"] == [
        *(None, "number", "number"),
        *(None, None, None),
        *("right", "number", "wrong"),
        *(None, "number", None),
    ]
    assert blocks.pairs({}) == ""
    assert blocks.section("nothing", Html(), Html()) == ""


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (3.0, "3"),
        (6e-05, "6e-05"),
        (0.0005, "0.0005"),
        (12345.678, "12,346"),
        (1e30, "1e+30"),
        (-2.5, "-2.5"),
    ],
)
def test_numbers(value, text):
    assert blocks.number(value) == text


def test_a_matrix_has_every_count_and_the_share_that_is_right():
    counts = {"a": {"a": 8, "b": 2}, "b": {"b": 3, "c": 1}, "n": {}}
    rows = [("a", "8", "2", "0", "0", "10", "80.0%"), ("b", "0", "3", "0", "1", "4", "75.0%")]
    rows.append(("n", "0", "0", "0", "0", "0", "–"))
    found = cells(blocks.confusion(counts))
    assert found == ["truth ╲ answer", "a", "b", "n", "c", "examples", "right", *chain(*rows)]


def test_of_many_classes_the_worst_confusions_are_listed():
    counts = {str(i): {str(i): 10, str((i + 1) % 30): i % 7} for i in range(30)}
    found = cells(blocks.confusion(counts))
    assert found[:4] == ["truth", "answer", "examples", "of the true class"]
    assert found[4:8] == ["6", "7", "6", "37.5%"]
    numbers = [int(n) for n in found[6::4]]
    assert numbers == sorted(numbers, reverse=True)
    assert len(numbers) == blocks.CONFUSIONS
    assert 0 not in numbers


# ---- colours -------------------------------------------------------------------------------------


def themes():
    """Names of colours → their red, green and blue, in light and in dark."""
    blocks_of_root = re.findall(r":root \{(.*?)\}", STYLE.read_text(), re.S)
    light, dark = (dict(re.findall(r"--([\w-]+): #(\w{6});", block)) for block in blocks_of_root)
    assert light.keys() == dark.keys()
    return [{name: tuple(bytes.fromhex(code)) for name, code in theme.items()} for theme in (light, dark)]


def contrast(first, second):
    """WCAG 2.2."""

    def luminance(colour):
        parts = [c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_what_wcag_says():
    assert contrast((255, 255, 255), (0, 0, 0)) == pytest.approx(21)
    assert contrast((119, 119, 119), (255, 255, 255)) == pytest.approx(4.48, abs=0.005)


@pytest.mark.parametrize("theme", themes(), ids=["light", "dark"])
def test_all_colours_can_be_read(theme):
    """AA: 4.5 for texts."""
    for name in ("ink", "quiet", "accent", "wrong", "series-2", "series-3", "series-4"):
        assert contrast(theme[name], theme["paper"]) >= 4.5, name
    assert contrast(theme["ink"], theme["shade"]) >= 4.5
    most = float(re.search(r"calc\((\d+)% \* var\(--share\)\)", STYLE.read_text()).group(1)) / 100
    for name in ("accent", "wrong"):
        mixed = [most * a + (1 - most) * b for a, b in zip(theme[name], theme["paper"], strict=True)]
        assert contrast(theme["ink"], mixed) >= 4.5, name
