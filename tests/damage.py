"""Ways to spoil the bytes of a file, each drawn from `rng`; crashes.py and mutations.py."""


def place(content, rng):
    """Where a chunk of the content begins and ends."""
    start = rng.randrange(len(content) + 1)
    return start, min(len(content), start + rng.randint(1, 300))


def cut_off(content, rng):
    return content[: place(content, rng)[0]]


def zeros(content, rng):
    start, stop = place(content, rng)
    return content[:start] + bytes(stop - start) + content[stop:]


def bits(content, rng):
    spoiled = bytearray(content)
    for _ in range(rng.randint(1, 3) if content else 0):
        spoiled[rng.randrange(len(spoiled))] ^= 1 << rng.randrange(8)
    return bytes(spoiled)


def nothing(content, rng):
    return b""


def nuls(content, rng):
    start = place(content, rng)[0]
    return content[:start] + bytes(300) + content[start:]


def chunk_lost(content, rng):
    start, stop = place(content, rng)
    return content[:start] + content[stop:]


def chunk_twice(content, rng):
    start, stop = place(content, rng)
    return content[:stop] + content[start:]


def noise(content, rng):
    start, stop = place(content, rng)
    return content[:start] + rng.randbytes(stop - start) + content[stop:]


BYTES = (cut_off, zeros, bits, nothing, nuls, chunk_lost, chunk_twice, noise)
OTHERS = (None, True, -1, 10**30, 0.5, "x", [], {"a": 1}, "\0", [None])  # values in place of what JSON holds
