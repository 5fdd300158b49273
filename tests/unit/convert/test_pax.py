# SPDX-License-Identifier: Apache-2.0
"""Records of extended headers, on their own."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstread.convert.pax import decimal, merge, parse_records
from firstread.errors import ImageError
from firstread.testing.entries import extended

KEYS = st.binary(max_size=20).filter(lambda key: b"=" not in key).map(b"SCHILY.xattr.%b".__mod__)


@given(st.dictionaries(KEYS, st.binary(max_size=150)))
def test_pax_records_survive_a_round_trip(records: dict[bytes, bytes]) -> None:
    header = extended(list(records.items()))
    size = int(header[124:135], 8)
    assert parse_records(header[512 : 512 + size]) == records


def test_the_last_of_a_kind_wins() -> None:
    assert parse_records(b"8 uid=1\n8 uid=2\n") == {b"uid": b"2"}


def test_keywords_without_meaning_are_left_out() -> None:
    assert parse_records(b"11 atime=1\n8 uid=2\n16 SCHILY.ino=3\n") == {b"uid": b"2"}


def test_pairs_become_a_map() -> None:
    data = extended(
        [(f"GNU.sparse.{key}", str(n)) for n in range(2) for key in ("offset", "numbytes")]
    )
    size = int(data[124:135], 8)
    assert parse_records(data[512 : 512 + size]) == {b"GNU.sparse.map": b"0,0,1,1"}


@pytest.mark.parametrize(
    "data",
    [
        b"a",
        b"6 a=1",
        b"7 a=1\n",
        b"5 a=1\n",
        b"6 a=1 ",
        b"5 a1\n",
        b"5 =1\n",
        b" a=1\n",
        b"-6 a=1\n",
        b"+6 a=1\n",
        b"0 a=1\n",
        b"2 \n",
        b"6  =1\n\0",
        b"6 a=1\n\0\0\0",
        b"no length in front\n",
        b" \n",
        b"\n",
        b"\xc2\xb2 a=1\n",
        b"9" * 5000 + b" a=1\n",
        b"99999999999999999 a=1\n",
    ],
)
def test_bad_records(data: bytes) -> None:
    with pytest.raises(ImageError):
        parse_records(data)


@given(st.binary(max_size=200))
def test_any_bytes_are_records_or_an_error(data: bytes) -> None:
    try:
        parse_records(data)
    except ImageError:
        return


def test_own_records_replace_and_delete_common_ones() -> None:
    common = {b"uid": b"1", b"gid": b"2", b"SCHILY.xattr.a": b"3"}
    own = {b"uid": b"", b"gid": b"9", b"SCHILY.xattr.a": b"", b"SCHILY.xattr.b": b"", b"path": b""}
    assert merge(common, own) == {b"gid": b"9", b"SCHILY.xattr.b": b""}
    assert merge(common, {}) == common


def test_decimals_fit_64_bits() -> None:
    assert decimal(b"9223372036854775807") == 2**63 - 1
    assert decimal(b"-9223372036854775807") == 1 - 2**63
    for bad in (b"", b"9223372036854775808", b"1 ", b"0x1", b"1_1", b"--1", b"\xd9\xa1", b"1" * 99):
        with pytest.raises(ImageError):
            decimal(bad)
