"""A page of what drove predictions: every text with its words shaded by their shares."""

from collections.abc import Sequence

from minillm.explain import Explanation
from minillm.pages.blocks import Html, header, joined, page, section, tag

NOTE = "Blue words speak for it, red ones against it, by their integrated gradients: together they make the difference \
between the output for this text and that for one of which nothing is known."


def explanation_page(model: str, found: Sequence[Explanation]) -> str:
    """Of what `model` said; consecutive ones of a text stand together."""
    by_text: dict[str, list[Explanation]] = {}
    for each in found:
        by_text.setdefault(each.text, []).append(each)
    count = f"{len(by_text):,} text{'s' if len(by_text) != 1 else ''}"
    return page(
        f"What drove it · {model}",
        header(f"explanations · {model}", f"Which words drove what it says of {count}", NOTE),
        *(section(f"{number}", *map(explanation, each)) for number, each in enumerate(by_text.values(), 1)),
    )


def explanation(found: Explanation) -> Html:
    difference = f"{found.value:+.2f}, of a text of which nothing is known {found.start:+.2f}"
    return joined([tag("h3", found.what, " ", tag("span", difference, class_="quiet")), shaded(found)])


def shaded(found: Explanation) -> Html:
    """The text; a word's share is told by whoever points at it."""
    parts, at = [], 0
    for (start, stop), share, strength in zip(found.spans, found.shares, found.strengths(), strict=True):
        kind, style = "for" if share >= 0 else "against", f"--share: {abs(strength):.3f}"
        word = tag("span", found.text[start:stop], class_=kind, style=style, title=f"{share:+.3f}")
        parts += [found.text[at:start], word]
        at = stop
    return tag("p", *parts, found.text[at:], class_="words")
