"""Names of classes that look like a mistake in the data."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping

from minillm.wording import counted

# How programs and people write that a value is missing.
MISSING = {
    "nan",
    "null",
    "none",
    "nil",
    "na",
    "n/a",
    "n.a.",
    "#n/a",
    "<na>",
    "undefined",
    "missing",
    "-",
    "--",
    "?",
    ".",
}
QUOTES = "'\"`\u2018\u2019\u201c\u201d"
RARE = 0.05  # of a class: a name that occurs less often may be its misspelling
SHORTEST = 5  # letters of a name that may be misspelled: among shorter ones, many words are neighbours
SHOWN = 5  # names in a sentence


def suspicious(counts: Mapping[str, int]) -> list[str]:
    """Sentences for a person on names of classes, given with their numbers of examples."""
    return [*missing(counts), *variants(counts), *misspelled(counts), *singles(counts)]


def missing(counts: Mapping[str, int]) -> list[str]:
    return [
        f"the class {name!r} ({counted(count, 'example')}) is how programs write a missing value; "
        "remove the lines if it is none"
        for name, count in counts.items()
        if name.casefold() in MISSING
    ]


def variants(counts: Mapping[str, int]) -> list[str]:
    """Names that differ only in case, blanks, hyphens, underscores, quotes around them, a full stop behind them, how an
    emoji is drawn, or characters that Unicode calls compatible."""
    return [
        f"{listed(names, counts)} differ only in how they are written; make them one if they mean one class"
        for names in alike((bare(name), name) for name in counts)
    ]


def bare(name: str) -> str:
    name = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    name = re.sub("[\ufe00-\ufe0f]", "", name)  # as text or in colours
    if not any(map(str.isalpha, name)):
        return name  # -1 is not 1
    name = name.strip(QUOTES).rstrip(".")
    name = re.sub(r"(?<=[^\W_])[\s_\u2010-\u2015-]+(?=[^\W_])", "", name)  # but A- is not A
    return "".join(character for character in name if unicodedata.category(character) != "Cf")  # of zero width


def misspelled(counts: Mapping[str, int]) -> list[str]:
    """Rare names that are another one but for a letter missing, added, changed, or swapped with its neighbour."""
    long = [name for name in counts if len(name) >= SHORTEST and not any(map(str.isdigit, name))]
    sentences = []
    for names in alike((shorter, name) for name in long for shorter in without_a_letter(name)):
        rare, common = sorted(names, key=counts.__getitem__)[:: len(names) - 1]
        if counts[rare] <= RARE * counts[common] and bare(rare) != bare(common):
            sentences.append(f"is {listed([rare], counts)} a misspelling of {listed([common], counts)}?")
    return list(dict.fromkeys(sentences))


def without_a_letter(name: str) -> set[str]:
    name = name.casefold()
    return {name, *(name[:i] + name[i + 1 :] for i in range(len(name)))}


def singles(counts: Mapping[str, int]) -> list[str]:
    names = [name for name, count in counts.items() if count == 1]
    if not names:
        return []
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    has = "classes have" if len(names) > 1 else "class has"
    shown = ", ".join(map(repr, names[:SHOWN])) + more
    return [f"{len(names):,} {has} one example only, too few to learn from: {shown}"]


def alike(pairs: Iterable[tuple[str, str]]) -> list[list[str]]:
    """Names that share a key, where there are several, each such group once."""
    groups = defaultdict(list)
    for key, name in pairs:
        groups[key].append(name)
    return list({tuple(names): names for names in groups.values() if len(names) > 1}.values())


def listed(names: Iterable[str], counts: Mapping[str, int]) -> str:
    return " and ".join(f"{name!r} ({counts[name]:,})" for name in names)
