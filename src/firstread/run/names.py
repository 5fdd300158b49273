# SPDX-License-Identifier: Apache-2.0
"""Makes up names for containers.

Owns the words. Invariant: `parse.check_name` accepts each name.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Container, Sequence

_KINDS = (
    "amber brisk calm clear cobalt crisp distant early even fair fleet fresh gentle golden green "
    "hidden honest keen late light lucid mellow misty nimble patient plain quick quiet ready sharp "
    "silent silver slow small steady still swift warm western wide"
)
_THINGS = (
    "alder anchor arch basin beacon birch bridge brook canyon cedar cliff comet cove creek delta "
    "dune ember falcon fern field fjord forest glacier grove harbor heron hill island lagoon lake "
    "maple marsh meadow mesa otter pine prairie reef ridge river sparrow summit thicket valley"
)


def make_name(taken: Container[str]) -> str:
    """Return a name such as ``quiet_harbor`` that is not in `taken`."""
    for attempt in itertools.count():
        name = f"{_choose(_KINDS.split())}_{_choose(_THINGS.split())}"
        if attempt >= 8:
            name += str(_random(10**6))
        if name not in taken:
            return name
    raise AssertionError  # the loop has no end


def _choose(words: Sequence[str]) -> str:
    return words[_random(len(words))]


def _random(limit: int) -> int:
    # Importing random or secrets would cost each start some milliseconds.
    return int.from_bytes(os.urandom(4), "big") % limit
