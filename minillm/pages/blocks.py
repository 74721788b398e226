"""What pages are made of: markup that can hold any text, tables, a matrix, sections, the page around them.

Each function takes plain values and returns `Html`. Whatever is not `Html` yet is a text and is escaped, so that no
label, sample or option of a user can become markup. A page asks nothing of any network: one file with its style in it,
no script, and a policy that forbids the browser to load or run anything else.
"""

import html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

STYLE = Path(__file__).with_name("style.css")
UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")  # what HTML, or UTF-8, cannot hold
POLICY = "default-src 'none'; style-src 'unsafe-inline'"
MARKS = {"✓": "right", "✗": "wrong"}  # cells of tables that get a colour, too
FIGURE = re.compile(r"-?\d[\d,]*(\.\d+)?%|-?\d[\d,]*\.\d+")  # texts that are numbers, but no labels such as 1
MOST_CLASSES = 20  # in a matrix; of more only the worst confusions can be read
CONFUSIONS = 20


class Html(str):
    """Markup."""


def tag(name: str, *parts: Any, **attributes: Any) -> Html:
    """An element. `class_` is the attribute class, `aria_label` aria-label; those that are None are left out."""
    given = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items() if value is not None}
    written = "".join(f' {key}="{escaped(value)}"' for key, value in given.items())
    return Html(f"<{name}{written}>{joined(parts)}</{name}>")


def joined(parts: Sequence[Any], between: str = "") -> Html:
    return Html(between.join(part if isinstance(part, Html) else escaped(part) for part in parts))


def escaped(text: Any) -> str:
    return html.escape(UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", str(text)))


def page(title: str, *parts: Html) -> str:
    """A whole file. `title` is that of the browser's tab, `parts` what stands in the page."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escaped(title)}</title>\n<style>\n{STYLE.read_text(encoding='utf-8')}</style>\n</head>\n<body>\n"
        f"{tag('main', *parts)}\n</body>\n</html>\n"
    )


def header(kicker: str, sentence: Any, *lines: Any) -> Html:
    """The head of a page: what it is about, in one sentence what came out, and what else a reader must know."""
    below = [tag("p", line, class_="quiet") for line in lines]
    return tag("header", tag("p", kicker, class_="kicker"), tag("h1", sentence), *below)


def section(heading: str, *parts: Html, note: Any = "") -> Html:
    """Nothing where there are no parts to show."""
    if not any(parts):
        return Html()
    said = [tag("p", note, class_="quiet")] if note else []
    return Html("\n" + tag("section", tag("h2", heading), *said, *parts))


def table(columns: Sequence[Any], rows: Sequence[Sequence[Any]], caption: str = "", class_: str | None = None) -> Html:
    """Numbers stand to the right. ✓ and ✗ alone in a cell are coloured."""
    head = tag("thead", tag("tr", *(tag("th", name, scope="col") for name in columns))) if any(columns) else ""
    body = tag("tbody", *(Html("\n" + tag("tr", *map(cell, row))) for row in rows))
    caption = tag("caption", caption) if caption else ""
    return tag("div", tag("table", caption, head, body, class_=class_), class_="wide")


def cell(value: Any) -> Html:
    if isinstance(value, Html) and value.startswith(("<td", "<th")):
        return value
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    kind = "number" if is_number or FIGURE.fullmatch(str(value)) else MARKS.get(str(value))
    return tag("td", number(value) if is_number else value, class_=kind)


def pairs(values: Mapping[str, Any], caption: str = "") -> Html:
    """Names and what they stand for, a row each."""
    rows = [(tag("th", name, scope="row"), tag("td", value)) for name, value in values.items()]
    return table((), rows, caption, class_="pairs") if rows else Html()


def command(line: str) -> Html:
    """What to type in a terminal."""
    return tag("pre", tag("code", line))


def beside(*parts: Html) -> Html:
    """Tables and texts side by side, where there is room."""
    return tag("div", *parts, class_="columns")


def bullets(items: Sequence[Any]) -> Html:
    return tag("ul", *(tag("li", item) for item in items)) if items else Html()


def clock(text: str) -> Html:
    """What only the clock says, marked so that two pages can be compared without it."""
    return tag("span", text, class_="clock")


def number(value: float) -> str:
    """As a person writes it: four digits, and all of a whole number."""
    if isinstance(value, int) or (float(value).is_integer() and abs(value) < 1e15):
        return f"{int(value):,}"
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e15 else f"{value:.4g}"


# ---- who is taken for whom -----------------------------------------------------------------------


def confusion(counts: Mapping[str, Mapping[str, int]]) -> Html:
    """From counts[truth][answer]: a matrix, its rows shaded by their shares; of many classes the worst confusions."""
    classes = [*counts, *sorted({answer for row in counts.values() for answer in row} - counts.keys())]
    return matrix(classes, counts) if len(classes) <= MOST_CLASSES else worst_confusions(counts)


def matrix(classes: Sequence[str], counts: Mapping[str, Mapping[str, int]]) -> Html:
    rows = [(tag("th", name, scope="row"), *shaded(classes, name, counts[name])) for name in classes if name in counts]
    return table(("truth ╲ answer", *classes, "examples", "right"), rows, class_="matrix")


def shaded(classes: Sequence[str], truth: str, row: Mapping[str, int]) -> list[Html]:
    """A row's cells: its counts, how many examples it has, and the share of them that is right. The shade of a count
    rises fast at first, so that rare mistakes are seen, too."""
    total = sum(row.values())
    cells = []
    for answer in classes:
        share = row.get(answer, 0) / max(1, total)
        style, kind = f"--share: {share**0.6:.3f}", "hit" if answer == truth else "miss"
        hint = f"{share:.1%} of {truth} taken for {answer}"
        cells.append(tag("td", f"{row.get(answer, 0):,}", class_=f"number {kind}", style=style, title=hint))
    right = f"{row.get(truth, 0) / total:.1%}" if total else "–"
    return [*cells, *(tag("td", text, class_="number quiet") for text in (f"{total:,}", right))]


def worst_confusions(counts: Mapping[str, Mapping[str, int]]) -> Html:
    """The commonest of them, with their share of the examples of the true class."""
    found = [
        (truth, answer, count, f"{count / sum(row.values()):.1%}")
        for truth, row in counts.items()
        for answer, count in row.items()
        if answer != truth and count
    ]
    rows = sorted(found, key=lambda each: -each[2])[:CONFUSIONS]
    return table(("truth", "answer", "examples", "of the true class"), rows) if rows else Html()
