"""Marks the entities of a text, or what each word is, and of what class the whole is where the model knows.

  python -m minillm tag runs/tag-sft "play westbam on google music"
  python -m minillm tag runs/tag-sft --file queries.txt --json       a text a line → a line of JSON each
  python -m minillm tag MODEL --split blanks "What 's on , Bob ?"    texts that are cut into words already
  python -m minillm tag runs/tag-sft "play westbam" --explain --html page.html   which words drove each decision

Words end at blanks; signs around them, such as quotes and commas, are words of their own. Where the training data was
cut otherwise, cut the text likewise and say --split blanks.

Train one with: python train_sft.py --task tag --init MODEL --train a.jsonl --dev b.jsonl
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, pairwise
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.text import Text

from minillm import cli
from minillm.commands import explanations
from minillm.commands.common import MODEL, as_json, load_reader, open_model, texts_of
from minillm.commands.explanations import Explained, for_json
from minillm.device import PRECISIONS
from minillm.explain import Explanation, of_tags
from minillm.report import without_control_characters
from minillm.tagging import Tagged, tagged
from minillm.tags import in_order, mark

OPENING, CLOSING = """(["'“‘«„¿¡{<""", """)]}>"'”’»,;:!?…."""  # signs that are words of their own at the ends of others
ABBREVIATION = re.compile(r"(\w\.)+")  # keeps its full stop: p.m., U.S.
COLOURS = ("cyan", "green", "magenta", "yellow", "blue", "red")


class Word(NamedTuple):
    text: str
    start: int  # its first character in the text
    stop: int  # behind its last one


@dataclass(frozen=True, kw_only=True)
class Args(Explained):
    model: str = cli.argument(MODEL)
    text: tuple[str, ...] = cli.argument("a text", default=())
    file: Path | None = cli.option(None, "file with a text a line; - is the standard input")
    split: str = cli.option("signs", "where words end: at blanks and signs, or at blanks alone", ("signs", "blanks"))
    json: bool = cli.option(False, "print a line of JSON for each text")
    precision: str = cli.option("fp32", "of weights and activations", choices=PRECISIONS)


def main(args: Args) -> None:
    args.check()
    lines = texts_of(args.text, args.file, "TEXT")
    texts = [words_of(line, args.split) for line in lines]
    model, tokenizer = load_reader(open_model(args.model, "tag", "tag"), "tag", args.precision)
    filled = [[word.text for word in words] for words in texts if words]
    found = iter(tagged(model, tokenizer, filled) if filled else [])
    colours = colours_of(model.classes)
    explained: list[Explanation] = []
    console = Console(soft_wrap=True)
    for line, words in zip(lines, texts, strict=True):
        answer = next(found) if words else Tagged([], [], None, None)
        fields = described(line, words, answer, marks_entities=mark(model.classes))
        spans = [(word.start, word.stop) for word in words]
        reasons = of_tags(model, tokenizer, line, spans, answer) if args.explain and words else []
        explained += reasons
        if args.json:
            print(as_json(**fields, **({"explanations": list(map(for_json, reasons))} if args.explain else {})))
        else:
            console.print(coloured(line, fields, colours))
            for each in reasons:
                console.print(explanations.coloured(each))
    args.write_page(args.model, explained)


def words_of(text: str, split: str) -> list[Word]:
    found = []
    for match in re.finditer(r"\S+", text):
        start, stop = match.span()
        cuts = [start, stop] if split == "blanks" else [*cuts_within(text, start, stop)]
        found += [Word(text[a:b], a, b) for a, b in pairwise(cuts)]
    return found


def cuts_within(text: str, start: int, stop: int) -> list[int]:
    """Where the words of what stands between blanks begin, and `stop`: one for each sign at its ends, full stops in a
    row being one."""
    first, last = start, stop
    while first < last and text[first] in OPENING:
        first += 1
    while last > first and text[last - 1] in CLOSING and not ABBREVIATION.fullmatch(text, first, last):
        last -= 1
    ends = [i for i in range(last, stop) if not (i > last and text[i - 1] == text[i] == ".")]
    return [*range(start, first), *([first] if first < last else []), *ends, stop]


def described(text: str, words: Sequence[Word], answer: Tagged, marks_entities: bool) -> dict[str, Any]:
    """All that there is to say of a text. The score of an entity is the mean probability of its words' tags."""
    fields = {"text": text, "words": [word.text for word in words], "tags": answer.tags}
    if marks_entities:
        fields["entities"] = [
            {
                "type": kind,
                "text": text[words[first].start : words[stop - 1].stop],
                "start": words[first].start,
                "end": words[stop - 1].stop,
                "score": sum(answer.probabilities[first:stop]) / (stop - first),
            }
            for kind, first, stop in in_order(answer.tags)
        ]
    else:
        fields["scores"] = answer.probabilities
    if answer.intent is not None:
        fields |= {"intent": answer.intent, "intent_probability": answer.intent_probability}
    return fields


def colours_of(tags: Sequence[str]) -> dict[str, str]:
    """One for each type of entity; where there are more types than colours, they take turns."""
    kinds = sorted({tag.partition("-")[2] for tag in tags} - {""})
    return dict(zip(kinds, cycle(COLOURS), strict=False))


def coloured(line: str, fields: dict[str, Any], colours: dict[str, str]) -> Text:
    """The text with its entities marked, or its words with their tags; behind it, of what class it is."""
    shown, at = Text(), 0
    for entity in fields.get("entities", ()):
        shown.append(without_control_characters(line[at : entity["start"]]))
        shown.append(f"[{without_control_characters(entity['text'])}]", style=f"bold {colours[entity['type']]}")
        shown.append(f" {entity['type']}", style=colours[entity["type"]])
        at = entity["end"]
    if "entities" in fields:
        shown.append(without_control_characters(line[at:]))
    else:
        pairs = zip(fields["words"], fields["tags"], strict=True)
        shown.append(without_control_characters(" ".join(f"{word}/{tag}" for word, tag in pairs)))
    if "intent" in fields:
        shown.append(f"  → {fields['intent']} {fields['intent_probability']:.1%}", style="dim")
    return shown
