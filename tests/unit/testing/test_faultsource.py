# SPDX-License-Identifier: Apache-2.0
"""A source that fails as a script says."""

from __future__ import annotations

from collections import Counter

import pytest

from firstread.errors import AuthError, FirstreadError, NotFoundError, TransportError
from firstread.testing.faultsource import FaultSource
from firstread.testing.memorysource import MemorySource, make_sectors

SECTORS = make_sectors(2)
BLOB = SECTORS.wanted[0].blob


def source(script: str = "", **options: object) -> FaultSource:
    return FaultSource(MemorySource(SECTORS), script, **options)  # type: ignore[arg-type]


def read(place: FaultSource, length: int = 1000) -> bytes:
    with place.open_blob(BLOB, offset=10, length=length) as stream:
        return stream.readall()


def outcome(place: FaultSource) -> str:
    """Return the letter of what a request was like."""
    kinds: dict[type[FirstreadError], str]
    kinds = {
        TransportError: "E",
        NotFoundError: "n",
        AuthError: "u",
    }
    try:
        data = read(place)
    except FirstreadError as exc:
        return kinds[type(exc)]
    return "r" if data == SECTORS.blob[10:1010] else "f"


def test_a_script_is_followed_and_then_all_goes_well() -> None:
    place = source("rrEnuf")
    assert "".join(outcome(place) for _ in range(8)) == "rrEnufrr"
    assert place.injected == Counter("Enuf")
    assert place.requests == [(10, 1000)] * 8


def test_a_star_repeats_the_last_letter() -> None:
    place = source("rE*")
    assert "".join(outcome(place) for _ in range(5)) == "rEEEE"
    place.script("")
    assert outcome(place) == "r"


def test_a_request_that_breaks_off_has_given_half() -> None:
    place = source("b")
    with place.open_blob(BLOB, offset=10, length=1000) as stream:
        half = bytearray(500)
        assert stream.readinto(half) == 500
        assert half == SECTORS.blob[10:510]
        with pytest.raises(TransportError, match="hung up"):
            stream.readinto(bytearray(1))


def test_one_bit_is_wrong_and_it_is_in_the_last_byte() -> None:
    data = read(source("f"))
    assert data[:-1] == SECTORS.blob[10:1009]
    assert data[-1] ^ 1 == SECTORS.blob[1009]


def test_chances_follow_the_seed() -> None:
    first, second = (source(chances={"E": 0.3, "f": 0.1}, seed=7) for _ in range(2))
    seen = "".join(outcome(first) for _ in range(200))
    assert seen == "".join(outcome(second) for _ in range(200))
    assert 30 < seen.count("E") < 90
    assert first.injected == Counter(seen.replace("r", ""))


@pytest.mark.parametrize("script", ["x", "rrz", "*", "r*r"])
def test_a_letter_that_means_nothing_is_refused(script: str) -> None:
    with pytest.raises(ValueError, match=r"no fault is called|a star repeats"):
        source(script)


def test_what_a_place_without_faults_gives_is_what_the_inner_one_gives() -> None:
    place = source()
    assert place.has_blob(BLOB)
    with place.open_blob(BLOB) as stream:
        assert stream.readall() == SECTORS.blob
