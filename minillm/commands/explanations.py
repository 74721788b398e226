"""`--explain`: what drove a prediction, in the terminal, as JSON, and as a page."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.text import Text

from minillm import cli
from minillm.errors import UserError
from minillm.explain import Explanation
from minillm.files import write_text
from minillm.pages.explanation_page import explanation_page
from minillm.report import without_control_characters

FOR, AGAINST = (70, 150, 255), (255, 110, 90)  # colours of the strongest words
FAINT = 0.08  # strength under which a word has no colour
STRONGEST = 5  # words that are told with their numbers


@dataclass(frozen=True, kw_only=True)
class Explained:
    """Options of the commands that can explain themselves."""

    explain: bool = cli.option(
        False,
        "show which words drove it: the output for a text without words → the output for this one, and what each word "
        "adds on the way (integrated gradients); takes some 50 times as long",
    )
    html: Path | None = cli.option(None, "write that to a page, too")

    def check(self) -> None:
        """UserError for options that do not go together."""
        if self.html and not self.explain:
            raise UserError("--html FILE is a page of what --explain finds: give both")
        if self.explain and vars(self).get("precision") != "fp32":
            raise UserError("--explain sums many small gradients: leave --precision out")

    def write_page(self, model: str, found: Sequence[Explanation]) -> None:
        if self.html:
            write_text(self.html, explanation_page(model, found))


def for_json(found: Explanation) -> dict[str, Any]:
    """`share` of each word in `output` − `without_words`."""
    shares = [{"word": word, "share": share} for word, share in zip(found.words, found.shares, strict=True)]
    return {"of": found.what, "output": found.value, "without_words": found.start, "words": shares}


def coloured(found: Explanation) -> Text:
    """The output without words and with them, the text, each word coloured by its share, and the greatest shares."""
    shown, at = Text(f"  {found.what} {found.start:+.2f} → {found.value:+.2f}  "), 0
    for (start, stop), strength in zip(found.spans, found.strengths(), strict=True):
        shown.append(without_control_characters(found.text[at:start]))
        shown.append(without_control_characters(found.text[start:stop]), style=style_of(strength))
        at = stop
    shown.append(without_control_characters(found.text[at:]))
    pairs = sorted(zip(found.words, found.shares, strict=True), key=lambda pair: -abs(pair[1]))[:STRONGEST]
    numbers = ", ".join(f"{share:+.2f} {word}" for word, share in pairs)
    more = len(found.shares) - len(pairs)
    rest = f", {sum(found.shares) - sum(share for _, share in pairs):+.2f} {more} more" if more else ""
    shown.append(f"  ({without_control_characters(numbers)}{rest})", style="dim")
    return shown


def style_of(strength: float) -> str:
    """From white to the full colour, letters in black."""
    if abs(strength) < FAINT:
        return ""
    channels = (round(255 + (c - 255) * abs(strength)) for c in (FOR if strength > 0 else AGAINST))
    return f"black on rgb({','.join(map(str, channels))})"
