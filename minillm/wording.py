"""Numbers in sentences."""


def counted(number: int, one: str, many: str = "") -> str:
    """`1 example`, `2,000 examples`: a count and the noun that goes with it, in the plural with an s where `many` does
    not say otherwise, as in counted(n, "text is", "texts are")."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"
