# SPDX-License-Identifier: Apache-2.0
"""Every parser of untrusted bytes on its corpus, and on some damage of a fixed seed.

`make fuzz` does the same for any length of time; its finds are in the corpus.
"""

from __future__ import annotations

import random
import resource
import time

import pytest
from tests.fuzz.targets import MEMORY_BYTES, SECONDS, TARGETS, corpus, damage

ROUNDS = 150


@pytest.mark.parametrize("name", TARGETS)
def test_valid_bytes_are_accepted(name: str) -> None:
    target = TARGETS[name]
    assert any(target(seed) for seed in target.seeds())


@pytest.mark.parametrize("name", TARGETS)
def test_a_result_or_the_documented_error_soon_and_in_bounded_memory(name: str) -> None:
    target = TARGETS[name]
    known = [*target.seeds(), *corpus(name)]
    for data in known:
        target(data)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rng = random.Random(name)
    for _ in range(ROUNDS):
        data = damage(rng.choice(known), known, target.tokens, rng)
        started = time.process_time()
        target(data)
        assert time.process_time() - started < SECONDS
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown * 1024 < MEMORY_BYTES
