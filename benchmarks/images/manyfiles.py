# SPDX-License-Identifier: Apache-2.0
"""A tree of many small files, like a dependency folder: ``DIR COUNT SEED``.

Owns the distribution: sizes are log-normal (median 1.5 KB, mean about 4.6 KB, at most 1 MB), nine
of ten files are text that compresses like source code, one is noise. Invariant: same count and
seed, same names and contents.
"""

from __future__ import annotations

import math
import random
import sys
from pathlib import Path

MEDIAN_BYTES = 1500
SIGMA = 1.5
LARGEST_BYTES = 1_000_000
# To be quick, text comes from one pool, much larger than the window of any compressor.
POOL_BYTES = 64_000_000
FILES_PER_DIRECTORY = 12
PARTS = ("src", "lib", "dist", "test", "types", "docs")


def write(root: Path, count: int, seed: int, pool_bytes: int = POOL_BYTES) -> None:
    """Write `count` files under `root`, which is created; text comes from `pool_bytes` of it."""
    rng = random.Random(seed)
    pool = _text(rng, pool_bytes)
    for start in range(0, count, FILES_PER_DIRECTORY):
        number = start // FILES_PER_DIRECTORY
        folder = root / f"package{number // 40:03}" / f"{rng.choice(PARTS)}{number:05}"
        folder.mkdir(parents=True)
        for index in range(start, min(start + FILES_PER_DIRECTORY, count)):
            size = min(int(rng.lognormvariate(math.log(MEDIAN_BYTES), SIGMA)), LARGEST_BYTES)
            if index % 10 == 9:
                (folder / f"asset{index:06}.bin").write_bytes(rng.randbytes(size))
            else:
                begin = rng.randrange(len(pool) - size)
                (folder / f"module{index:06}.js").write_bytes(pool[begin : begin + size])


def _text(rng: random.Random, size: int) -> memoryview:
    """Return `size` bytes of made-up words, with few distinct ones in one place, like code."""
    letters = "etaoinshrdlucmfwypvbgk"
    words = ["".join(rng.choices(letters, k=rng.randint(2, 11))) for _ in range(20_000)]
    marks = [" ", " ", " ", ".", "(", ") ", ", ", " = ", ";\n    ", ";\n", " {\n", "}\n"]
    cumulative = [math.log(rank + 2) for rank in range(len(words))]
    parts: list[str] = []
    done = 0
    while done < size:
        spoken_of = rng.choices(words, cum_weights=cumulative, k=120)
        some = rng.choices(spoken_of, k=1500)
        text = "".join(
            word + mark for word, mark in zip(some, rng.choices(marks, k=len(some)), strict=True)
        )
        parts.append(text)
        done += len(text)
    return memoryview("".join(parts).encode()[:size])


if __name__ == "__main__":
    write(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
