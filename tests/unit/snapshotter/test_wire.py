# SPDX-License-Identifier: Apache-2.0
"""The encoding of messages: bytes from its description, round trips, and what is none."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstread.snapshotter.messages import (
    Info,
    InfoResponse,
    Mount,
    MountsResponse,
    PrepareRequest,
    Timestamp,
    UsageResponse,
)
from firstread.snapshotter.wire import decode, encode

WORDS = st.text(max_size=20)
NUMBERS = st.integers(-(1 << 63), (1 << 63) - 1)
INFOS = st.builds(
    Info,
    name=WORDS,
    parent=WORDS,
    kind=st.integers(0, 3),
    created_at=st.none() | st.builds(Timestamp, NUMBERS, st.integers(0, 10**9 - 1)),
    labels=st.dictionaries(WORDS, WORDS, max_size=4),
)


@pytest.mark.parametrize(
    ("document", "data"),
    [
        # Source: protobuf.dev, "Encoding"
        (UsageResponse(150), b"\x08\x96\x01"),
        (UsageResponse(-2), b"\x08" + b"\xfe" + b"\xff" * 8 + b"\x01"),
        (PrepareRequest(key="testing"), b"\x12\x07testing"),
        (
            PrepareRequest(labels={"a": "b", "c": ""}),
            b"\x22\x06\x0a\x01a\x12\x01b\x22\x03\x0a\x01c",
        ),
        (
            MountsResponse([Mount("bind", options=["ro", ""])]),
            b"\x0a\x0c\x0a\x04bind\x22\x02ro\x22\0",
        ),
        (InfoResponse(Info(updated_at=Timestamp())), b"\x0a\x02\x2a\x00"),
        (InfoResponse(), b""),
    ],
)
def test_bytes(document: object, data: bytes) -> None:
    assert encode(document) == data
    assert decode(type(document), data) == document


@given(INFOS)
def test_round_trip(info: Info) -> None:
    assert decode(Info, encode(info)) == info


def test_unknown_fields_are_passed_over() -> None:
    unknown = b"\x78\x01" + b"\x7a\x02hi" + b"\x7d1234" + b"\x7912345678"
    assert decode(UsageResponse, unknown + b"\x08\x05") == UsageResponse(5)


@pytest.mark.parametrize(
    "data",
    [
        b"\x12",
        b"\x12\x05abc",
        b"\x08",
        b"\x08" + b"\xff" * 11,
        b"\x12\x01\xff",
        b"\x0b",
        b"\x10\x01",
    ],
)
def test_what_is_no_message(data: bytes) -> None:
    with pytest.raises(ValueError):  # UnicodeDecodeError is one
        decode(PrepareRequest, data)


@given(st.binary(max_size=60))
def test_any_bytes_are_a_message_or_a_value_error(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        assert isinstance(decode(InfoResponse, data), InfoResponse)
