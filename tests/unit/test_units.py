# SPDX-License-Identifier: Apache-2.0
"""Sizes as people write them, and back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstread.errors import UsageError
from firstread.units import GiB, KiB, MiB, TiB, counted, format_size, parse_size, round_up


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("512B", 512),
        ("4k", 4 * KiB),
        ("4K", 4 * KiB),
        ("4KB", 4 * KiB),
        ("256KiB", 256 * KiB),
        (" 4 MiB ", 4 * MiB),
        ("1.5g", 3 * GiB // 2),
        ("2T", 2 * TiB),
    ],
)
def test_parse_size(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MiB", "-1", "4 X", "4MiBs", "0x10", "1e6", "1.0001k", "٤"])
def test_invalid_sizes(text: str) -> None:
    with pytest.raises(UsageError):
        parse_size(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (KiB, "1.0 KiB"),
        (MiB * 3 // 2, "1.5 MiB"),
        (GiB, "1.0 GiB"),
        (5000 * TiB, "5000.0 TiB"),
        (-2048, "-2.0 KiB"),
    ],
)
def test_format_size(size: int, text: str) -> None:
    assert format_size(size) == text


@given(st.integers(0, 1 << 80), st.integers(1, 1 << 40))
def test_round_up(value: int, multiple: int) -> None:
    rounded = round_up(value, multiple)
    assert rounded % multiple == 0
    assert value <= rounded < value + multiple


@given(st.integers(0, 1 << 50))
def test_a_plain_number_is_itself(size: int) -> None:
    assert parse_size(str(size)) == size


def test_counted() -> None:
    assert [counted(n, "read") for n in (0, 1, 2)] == ["0 reads", "1 read", "2 reads"]
