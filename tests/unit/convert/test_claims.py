# SPDX-License-Identifier: Apache-2.0
"""Claims of layers, where several images are converted at a time."""

from __future__ import annotations

import threading

import pytest

from firstread.convert.claims import Claim, LayerClaims

SHARED, OWN, OTHER = (Claim(name, "parameters", "place") for name in "abc")


def test_a_claim_is_exclusive() -> None:
    claims = LayerClaims()
    with claims.claiming([SHARED, OWN]) as mine:
        assert mine == [SHARED, OWN]
        with claims.claiming([SHARED, OTHER]) as rest:
            assert rest == [OTHER]
    with claims.claiming([SHARED, OTHER]) as all_of_them:
        assert all_of_them == [SHARED, OTHER]


def test_a_conversion_waits_for_a_layer_that_another_one_packs() -> None:
    claims = LayerClaims()
    order: list[str] = []

    def wait() -> None:
        with claims.claiming([SHARED]):
            order.append("second")

    with claims.claiming([SHARED, OWN]) as mine:
        thread = threading.Thread(target=wait)
        thread.start()
        order.append("first")
        claims.release(mine, SHARED)
        thread.join()  # though the other layer is not packed yet
        order.append("third")
    assert order == ["first", "second", "third"]


def test_a_failure_gives_everything_back() -> None:
    claims = LayerClaims()

    def fail() -> None:
        with claims.claiming([SHARED, OWN]) as mine:
            claims.release(mine, OWN)
            with claims.claiming([OWN]):
                raise ValueError("failed")

    with pytest.raises(ValueError, match="failed"):
        fail()
    with claims.claiming([SHARED, OWN]) as mine:
        assert mine == [SHARED, OWN]
