"""Mistakes of the user, as opposed to mistakes of this program."""


class UserError(Exception):
    """One sentence that names the thing that is wrong and what to do; the scripts print it and exit with code 2."""
