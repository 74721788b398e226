"""Numbers in sentences, and what no reader sees."""

# What no reader sees at the ends of a text: blanks, of zero width too, and marks of direction, which come with copies.
INVISIBLE = "".join(filter(str.isspace, map(chr, range(0x3001)))) + "\xad\u180e\u200b\u200c\u200d\u2060\ufeff"
INVISIBLE += "\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def counted(number: int, one: str, many: str = "") -> str:
    """`1 example`, `2,000 examples`: a count and the noun that goes with it, in the plural with an s where `many` does
    not say otherwise, as in counted(n, "text is", "texts are")."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"
