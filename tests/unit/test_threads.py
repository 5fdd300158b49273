# SPDX-License-Identifier: Apache-2.0
"""A pool where no more threads can be had."""

from __future__ import annotations

from firstread.testing.patience import PATIENCE_S
from firstread.testing.shortage import no_threads
from firstread.threads import SteadyPool


def test_a_pool_goes_on_with_the_thread_that_it_has() -> None:
    with SteadyPool(8, "test") as pool:
        with no_threads():
            futures = [pool.submit(pow, 2, number) for number in range(20)]
        assert [future.result(PATIENCE_S) for future in futures] == [2**n for n in range(20)]
