"""The number that an answer ends with: what graders of word problems compare, exactly."""

import math
import re
from fractions import Fraction

MARKER = "####"  # behind the last of them stands the answer, as in GSM8K (arXiv:2110.14168)
WHOLE = r"[-+]?[$€]?(?:\d{1,3}(?:,\d{3}){1,5}|\d{1,18})"
PART = r"(?:\.\d{1,18}|(?: \d{1,18})?/\d{1,18})?"  # .5, /2, or the 1/2 of 1 1/2
NUMBER = re.compile(rf"(?<![\w.,/%]){WHOLE}{PART}(?![\w/]|[.,]\d)", re.ASCII)
# What comes before a number that is only the end of a range, or of a sum that nobody has done.
JOINED = re.compile(r"[\d%](?:[eE]?[-+]|[*^~×÷–—:]| [-+*^~×÷–—] )[$€]?$", re.ASCII)
MOST_READ = 10_000  # characters of an answer


def last_number(text: str) -> Fraction | None:
    """The one number behind the last MARKER, whatever words are there, too; or without a marker the number that a text
    ends with, but for a unit's sign, a full stop and blanks. None where there is none, or several.

    It is exact: 1,250.50 is 2501/2, and 1 1/2 is 3/2. Nothing is computed, so that a problem is not its own answer: a
    fraction counts in lowest terms alone, and neither 9+9 nor 3-5, which may be a range, ends with a number."""
    if len(text) > MOST_READ:
        return None
    _, marker, tail = text.rpartition(MARKER)
    tail = tail.replace("−", "-").strip().rstrip(".").rstrip("%€$ ").lstrip("$€ ")
    found = list(NUMBER.finditer(tail))
    if not found or (len(found) > 1 if marker else found[-1].end() != len(tail)):
        return None
    return None if JOINED.search(tail[: found[-1].start()]) else exactly(found[-1].group())


def exactly(number: str) -> Fraction | None:
    """What NUMBER matched; None of a fraction that can be reduced, or beside a whole number is above 1."""
    whole, _, part = re.sub("[,$€]", "", number).rpartition(" ")
    above, bar, below = part.partition("/")
    if bar and (int(below) < 2 or math.gcd(int(above), int(below)) > 1 or (whole and int(above) > int(below))):
        return None
    value = Fraction(above) / int(below or 1)
    return Fraction(whole or 0) + (-value if whole.startswith("-") else value)
