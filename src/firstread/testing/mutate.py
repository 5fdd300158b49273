# SPDX-License-Identifier: Apache-2.0
"""Random damage to bytes, for tests of whatever reads bytes that it cannot trust.

Invariant: a function of its arguments and of the state of the generator that it is given.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

_EDGES = (0, 1, 0x7F, 0x80, 0xFF)
_PIECES = (12, 32, 64, 4096)  # bytes that are often a unit of a format


def mutate(data: bytes, places: Sequence[int], rng: random.Random) -> bytes:
    """Return `data` with a few bytes changed, numbers overwritten, pieces copied, or its end cut.

    Args:
        data: what is valid.
        places: offsets to change; those where there is something, rather than padding.
        rng: with a fixed seed, so that a failure can be seen again.
    """
    damaged = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        place = rng.choice(places)
        kind = rng.randrange(10)
        if kind < 5:
            damaged[place] = rng.choice((rng.randrange(256), rng.choice(_EDGES), data[place] ^ 1))
        elif kind < 9:
            size = rng.choice((2, 4, 8))
            most = (1 << 8 * size) - 1
            number = rng.choice((rng.randint(0, most), rng.randrange(256), most))
            place -= place % size
            damaged[place : place + size] = number.to_bytes(size, "little")
        else:
            source = rng.choice(places)
            piece = data[source : source + rng.choice(_PIECES)]
            damaged[place : place + len(piece)] = piece
    if rng.random() < 0.05:
        del damaged[rng.randrange(len(damaged)) :]
    return bytes(damaged)
