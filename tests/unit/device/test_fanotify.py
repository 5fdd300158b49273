# SPDX-License-Identifier: Apache-2.0
"""Parsing of fanotify events, on bytes alone."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstread.device.base import WHOLE_SECTOR
from firstread.device.fanotify import (
    EVENT_BYTES,
    FAN_ACCESS_PERM,
    FAN_PRE_ACCESS,
    FAN_Q_OVERFLOW,
    NO_FD,
    Event,
    parse_events,
)
from firstread.errors import NodeError


def encoded(event: Event, *, records: bytes | None = None, version: int = 3) -> bytes:
    """Return `event` as the kernel sends it, with its range record or with `records`."""
    if records is None:
        records = struct.pack("=BBHIQQ", 6, 0, 24, 0, event.offset, event.count)
    length = 24 + len(records)
    head = struct.pack("=IBBHQii", length, version, 0, 24, event.mask, event.fd, event.pid)
    return head + records


FIRST = Event(fd=7, pid=4321, mask=FAN_PRE_ACCESS, offset=499712, count=131072)
SECOND = Event(fd=8, pid=99, mask=FAN_PRE_ACCESS, offset=1 << 40, count=4096)
OVERFLOW = Event(fd=NO_FD, pid=0, mask=FAN_Q_OVERFLOW, offset=0, count=0)
ACCESS = Event(fd=9, pid=99, mask=FAN_ACCESS_PERM, offset=0, count=WHOLE_SECTOR)
UNKNOWN = struct.pack("=BBH12x", 200, 0, 16)


def test_event_as_linux_6_18_sends_it() -> None:
    kernel = bytes.fromhex(
        "3000000003001800000010000000000007000000e1100000"
        "060018000000000000a00700000000000000020000000000"
    )
    assert len(kernel) == EVENT_BYTES
    assert kernel == encoded(FIRST)
    assert parse_events(kernel) == [FIRST]


@pytest.mark.parametrize(
    ("buffer", "events"),
    [
        pytest.param(b"", [], id="nothing"),
        pytest.param(encoded(FIRST) + encoded(SECOND), [FIRST, SECOND], id="two"),
        pytest.param(encoded(FIRST) + bytes(200), [FIRST], id="zeroed buffer behind it"),
        pytest.param(encoded(FIRST) + encoded(SECOND)[:20], [FIRST], id="cut short"),
        pytest.param(
            encoded(ACCESS, records=b""),
            [ACCESS],
            id="one that says no range",
        ),
        pytest.param(encoded(OVERFLOW, records=b""), [OVERFLOW], id="queue overflow"),
        pytest.param(
            encoded(FIRST, records=UNKNOWN + encoded(FIRST)[24:]), [FIRST], id="unknown record"
        ),
        pytest.param(
            encoded(FIRST, records=UNKNOWN),
            [Event(7, 4321, FAN_PRE_ACCESS, 0, 0)],
            id="no range record",
        ),
        pytest.param(
            encoded(FIRST, records=struct.pack("=BBH20x", 6, 0, 8)),
            [Event(7, 4321, FAN_PRE_ACCESS, 0, 0)],
            id="range record too short",
        ),
        pytest.param(
            encoded(FIRST, records=bytes(8)),
            [Event(7, 4321, FAN_PRE_ACCESS, 0, 0)],
            id="record of no length",
        ),
    ],
)
def test_parse(buffer: bytes, events: list[Event]) -> None:
    assert parse_events(buffer) == events
    assert parse_events(memoryview(bytearray(buffer))) == events


def test_another_version_of_the_protocol_is_refused() -> None:
    with pytest.raises(NodeError, match="version 4"):
        parse_events(encoded(FIRST, version=4))


@pytest.mark.parametrize("length", [1, 23, 1000, 0xFFFFFFFF])
def test_impossible_length_is_refused(length: int) -> None:
    buffer = bytearray(encoded(FIRST))
    struct.pack_into("=I", buffer, 0, length)
    with pytest.raises(NodeError, match=f"impossible length {length}"):
        parse_events(bytes(buffer))


@given(st.binary(max_size=300))
def test_any_bytes_give_events_or_a_node_error(buffer: bytes) -> None:
    try:
        events = parse_events(buffer)
    except NodeError:
        return
    assert len(events) <= len(buffer) // 24


@given(
    st.lists(
        st.builds(
            Event,
            fd=st.integers(-1, 2**31 - 1),
            pid=st.integers(0, 2**31 - 1),
            mask=st.sampled_from([FAN_PRE_ACCESS, FAN_Q_OVERFLOW]),
            offset=st.integers(0, 2**64 - 1),
            count=st.integers(0, 2**64 - 1),
        ),
        max_size=6,
    )
)
def test_round_trip(events: list[Event]) -> None:
    assert parse_events(b"".join(map(encoded, events))) == events
