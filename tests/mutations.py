"""Ways to damage a file."""

import numpy as np


def mutated(data: bytes, seed: int) -> bytes:
    """The bytes with one thing wrong; never the same bytes."""
    random, out = np.random.default_rng(seed), bytearray(data)
    # Most of a file is vectors; half of the mutations go where its structure is.
    reach = len(out) if seed % 2 else min(len(out), 400)
    place = int(random.integers(reach))
    match (seed // 2) % 6:
        case 0:
            out[place] ^= 1 << int(random.integers(8))
        case 1:
            del out[place:]
        case 2:
            out[place : place + 64] = random.bytes(64)
        case 3:
            out += b"\0"
        case 4:
            out[place : place + 8] = (1 << int(random.integers(63))).to_bytes(8, "little")
        case 5:
            del out[place : place + 1 + int(random.integers(16))]
    return bytes(out) if bytes(out) != data else data + b"x"
