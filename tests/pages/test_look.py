"""Pages as a browser shows them: narrow and wide, light and dark."""

import browser
import made_up
import pytest

from minillm.pages.run_page import run_page

if browser.executable() is None:
    pytest.skip("needs Chromium on the path, as apt-get install chromium gives", allow_module_level=True)

# Every element with a text of its own, and how well it can be read on what lies behind it.
UNREADABLE = """
(() => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", {willReadFrequently: true});
  const parts = colour => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data]; };
  const light = rgb => rgb.slice(0, 3).map(c => c / 255).map(c => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [.2126, .7152, .0722][i], 0);
  const behind = e => { for (; e; e = e.parentElement) { const c = parts(getComputedStyle(e).backgroundColor);
    if (c[3] > 250) return c; } return [255, 255, 255, 255]; };
  const own = e => [...e.childNodes].some(n => n.nodeType == 3 && n.textContent.trim());
  return [...document.body.querySelectorAll("*")].filter(own).filter(e => !e.closest("title")).map(e => {
    const style = getComputedStyle(e), svg = e instanceof SVGElement;
    const [a, b] = [light(parts(svg ? style.fill : style.color)), light(behind(e))].sort((a, b) => a - b);
    const scale = svg ? e.getScreenCTM().a : 1;
    return [e.tagName, e.textContent.slice(0, 30), (b + .05) / (a + .05), parseFloat(style.fontSize) * scale];
  }).filter(([, , contrast, size]) => contrast < 4.5 || size < 10.5);
})()
"""
# Figures, tables and texts that are not where a person can see them.
HIDDEN = """
[...document.querySelectorAll("svg, figure, h1, h2, p, pre, .wide")].map(e => [e.tagName, e.getBoundingClientRect()])
  .filter(([, box]) => box.width < 20 || box.height < 8 || box.left < 0 || box.right > innerWidth + 0.5)
  .map(([name, box]) => [name, box.left, box.right, box.height])
"""
# Lines of the curves that have no colour of their own, or leave their figure.
PALE = """
[...document.querySelectorAll("figure .curve, .marks .dot, .marks .whisker")].filter(e => {
  const style = getComputedStyle(e), box = e.getBoundingClientRect(), frame = e.ownerSVGElement.getBoundingClientRect();
  return style.stroke == "none" || parseFloat(style.strokeWidth) < 1
    || box.left < frame.left - 1 || box.right > frame.right + 1
    || box.top < frame.top - 1 || box.bottom > frame.bottom + 1;
}).map(e => e.outerHTML.slice(0, 80))
"""


@pytest.fixture(scope="module")
def chromium():
    with browser.Browser() as chromium:
        yield chromium


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """One of all there is, with few classes and with many, and one of a run that has only begun."""
    folder = tmp_path_factory.mktemp("pages")
    many = [f"class number {i}" for i in range(20)]
    parts = (made_up.options(), made_up.findings())
    (folder / "few.html").write_text(run_page("few", *parts, made_up.metrics(), made_up.log()))
    (folder / "many.html").write_text(run_page("many", *parts, made_up.metrics(many), made_up.log(9)))
    (folder / "begun.html").write_text(run_page("begun", made_up.options(), {}, {}, made_up.log(2)))
    return folder


@pytest.mark.parametrize("name", ["few", "many", "begun"])
@pytest.mark.parametrize("width", [390, 1440])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_everything_can_be_seen(chromium, pages, name, width, dark):
    chromium.requests.clear()
    chromium.complaints.clear()
    chromium.open(pages / f"{name}.html", width, dark=dark)
    assert chromium.evaluate("innerWidth") == width
    assert chromium.evaluate("document.documentElement.scrollWidth") <= width
    assert chromium.evaluate("document.querySelectorAll('figure svg').length") >= 6
    assert chromium.evaluate(HIDDEN) == []
    assert chromium.evaluate(UNREADABLE) == []
    assert chromium.evaluate(PALE) == []
    background = chromium.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert (sum(map(int, background.strip("rgb()").split(","))) < 200) == dark
    assert chromium.complaints == []
    assert chromium.requests == [(pages / f"{name}.html").as_uri()]
    assert chromium.picture().startswith(b"\x89PNG")


def test_it_can_be_printed(chromium, pages):
    """In ink on paper, though the reader's screen is dark."""
    chromium.open(pages / "few.html", 800, dark=True, media="print")
    assert chromium.evaluate("getComputedStyle(document.body).color") == "rgb(28, 33, 39)"
    assert chromium.evaluate(UNREADABLE) == []


def test_the_look_would_notice(chromium, tmp_path):
    """What a page must not do: load, run, leave its frame, whisper."""
    chromium.requests.clear()
    chromium.complaints.clear()
    page = tmp_path / "page.html"
    page.write_text(
        "<img src='http://127.0.0.1:9/x.png'><script>nothing.here</script><p style='color: #999'>pale</p>"
        "<p style='width: 3000px'>wide</p>"
        "<svg viewBox='0 0 2000 100' width='300'><text y='50' font-size='12'>x</text></svg>"
    )
    chromium.open(page, 390)
    assert len(chromium.requests) == 2
    assert len(chromium.complaints) >= 2
    assert [name for name, *_ in chromium.evaluate(UNREADABLE)] == ["P", "text"]
    assert "P" in [name for name, *_ in chromium.evaluate(HIDDEN)]
