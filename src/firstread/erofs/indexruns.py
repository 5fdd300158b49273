# SPDX-License-Identifier: Apache-2.0
"""Where the chunk indexes of an image lie in its metadata: what the flat form rewrites. Pure.

Owns the form in which that is kept, 8 bytes for each file with data. Does not look at the indexes.
Invariant: runs come from a whole scan, so a range of metadata says which indexes are in it.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable
from hashlib import blake2b
from typing import TYPE_CHECKING, Self, TypeVar

from firstread.erofs.format import CHUNK_INDEX_SIZE

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Number = TypeVar("Number", int, "NDArray[np.int64]")

# A run is one number, so that sorting and searching need no key: where it begins, in indexes from
# the beginning of the metadata, above the count of its indexes.
_COUNT_BITS = 32
_COUNT_MASK = (1 << _COUNT_BITS) - 1
_DIGEST_BYTES = 8


class IndexRuns:
    """The runs of chunk indexes of an image, each of one file.

    Args:
        ordered: of every file with chunks, by `pack_run`, from the lowest.
    """

    def __init__(self, ordered: Iterable[int]) -> None:
        self._runs = array("Q", ordered)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Return the runs that `to_bytes` has given on this machine.

        Raises:
            ValueError: it has given something else, or a power cut has left a part of it. An index
                of a run that is missing would not be rewritten, and show metadata instead of a
                file.
        """
        runs, digest = data[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
        if digest != _digest(runs):
            raise ValueError("the runs of chunk indexes are damaged")
        return cls(array("Q", runs))

    def to_bytes(self) -> bytes:
        """Return the runs in the byte order of this machine, and their BLAKE2b in 8 bytes."""
        runs = self._runs.tobytes()
        return runs + _digest(runs)

    def indexes(self, first: int, stop: int) -> list[int]:
        """Return the offsets of the chunk indexes in a range of metadata, in order.

        Args:
            first: offset where the range begins, a multiple of 8.
            stop: offset behind it, a multiple of 8.
        """
        runs, size = self._runs, CHUNK_INDEX_SIZE
        before = max(0, bisect_left(runs, _begin(first)) - 1)  # it can reach into the range
        return [
            at
            for run in runs[before : bisect_left(runs, _begin(stop))]
            for start in ((run >> _COUNT_BITS) * size,)
            for at in range(max(start, first), min(start + (run & _COUNT_MASK) * size, stop), size)
        ]


def pack_run(offset: Number, count: Number) -> Number:
    """Return the run of a file: where its chunk indexes begin, and how many there are.

    Of many files, it takes and returns columns.
    """
    return _begin(offset) | count


def _digest(runs: bytes) -> bytes:
    return blake2b(runs, digest_size=_DIGEST_BYTES).digest()


def _begin(offset: Number) -> Number:
    return offset // CHUNK_INDEX_SIZE << _COUNT_BITS
