# SPDX-License-Identifier: Apache-2.0
"""JSON as Go reads it: keys without regard to case, nulls as zero values."""

from __future__ import annotations

import json
import time
from typing import Any

import msgspec
import pytest

from firstread.oci import gojson
from firstread.oci.imageconfig import ConfigFields
from firstread.oci.model import Descriptor, Index, Manifest


class Inner(msgspec.Struct):
    name: str = ""
    names: list[str] = []


class Outer(msgspec.Struct, rename="camel"):
    """One field of each kind."""

    size: int
    mask: int = 0
    some_text: str | None = None
    labels: dict[str, str] = {}
    one: Inner | None = None
    many: list[Inner] = []
    free: Any = None


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"size": 1, "someText": "x"}, Outer(1, some_text="x")),
        ({"SIZE": 1, "sometext": "x"}, Outer(1, some_text="x")),
        ({"\u017fize": 1, "mas\u212a": 2}, Outer(1, mask=2)),  # ſ and the Kelvin sign
        ({"size": 1, "Size": 2}, Outer(1)),
        ({"Size": 2, "size": 1}, Outer(1)),
        ({"Size": 1, "SIZE": 2}, Outer(2)),
        ({"size": 1, "some_text": "another field"}, Outer(1)),
        ({"size": None}, Outer(0)),
        ({"size": 1, "mask": None, "someText": None, "labels": None, "many": None}, Outer(1)),
        ({"size": 1, "Mask": 3, "mask": None}, Outer(1, mask=3)),
        ({"size": None, "Size": 3}, Outer(3)),
        ({"Size": 3, "size": None, "SIZE": None}, Outer(3)),
        ({"size": 1, "labels": None, "Labels": {"a": "b"}}, Outer(1, labels={"a": "b"})),
        ({"size": 1, "labels": {"A": None, "a": "b"}}, Outer(1, labels={"A": "", "a": "b"})),
        ({"size": 1, "One": {"NAME": "x"}}, Outer(1, one=Inner("x"))),
        ({"size": 1, "one": {"Names": [None, "x"]}}, Outer(1, one=Inner(names=["", "x"]))),
        ({"size": 1, "many": [None, {"Name": "x"}]}, Outer(1, many=[Inner(), Inner("x")])),
        ({"size": 1, "Free": {"X": None, "x": None}}, Outer(1, free={"X": None, "x": None})),
    ],
)
def test_a_value(document: dict[str, Any], expected: Outer) -> None:
    assert gojson.decode(json.dumps(document), Outer) == expected
    assert gojson.decode(json.dumps(document, ensure_ascii=False).encode(), Outer) == expected


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (rb"\ud800", "\ufffd"),
        (rb"a\uDC00b", "a\ufffdb"),
        (rb"\uD83D\uDE00", "\U0001f600"),
        (rb"\ud800\ud83d\ude00", "\ufffd\U0001f600"),
        (rb"\ud800\n\udc00", "\ufffd\n\ufffd"),
        (rb"\\ud800\ud800", "\\ud800\ufffd"),
        (b"\xff\xc3\xa9\xed\xa0\x80", "\ufffd\u00e9\ufffd\ufffd\ufffd"),
    ],
)
def test_lone_surrogates_are_replaced(written: bytes, read: str) -> None:
    document = b'{"size":1,"someText":"%s","free":["%s"]}' % (written, written)
    assert gojson.decode(document, Outer) == Outer(1, some_text=read, free=[read])


def test_what_does_not_fit_is_left_to_be_told_of() -> None:
    wrong: object
    for wrong in ({"size": "1"}, {"size": 1, "many": {}}, {"size": 1, "labels": [1]}, [], 5):
        with pytest.raises(msgspec.ValidationError):
            gojson.decode(json.dumps(wrong), Outer)
    assert gojson.normal({"labels": 5, "one": [], "many": "x"}, Outer) == {
        "labels": 5,
        "one": [],
        "many": "x",
    }


def test_unknown_keys_stay_and_known_ones_are_there_once() -> None:
    document = {
        "rootfS": 1,
        "RootFS": 2,
        "config": {"cmd": ["x"], "CMD": ["y"], "Labels": {"A": None}, "Mine": {"Cmd": None}},
        "X": None,
        "x": 1,
        "history": [None, {"Created_By": "x"}],
    }
    assert gojson.normal(document, ConfigFields) == {
        "rootfs": 2,
        "config": {"Cmd": ["y"], "Labels": {"A": ""}, "Mine": {"Cmd": None}},
        "X": None,
        "x": 1,
        "history": [{}, {"created_by": "x"}],
    }


@pytest.mark.parametrize("kind", [ConfigFields, Manifest, Index, Descriptor, Outer])
def test_normal_documents_stay_as_they_are(kind: type) -> None:
    fields = {field.encode_name: None for field in msgspec.structs.fields(kind)}
    document = gojson.normal(fields | {"annotations": {"a": ""}}, kind)
    assert gojson.normal(document, kind) == document


def test_a_document_of_too_many_values_is_refused_before_it_is_read() -> None:
    started = time.process_time()
    with pytest.raises(msgspec.ValidationError, match="more than 524288 values"):
        gojson.decode("[" + "[]," * 600_000 + "0", Outer)
    assert time.process_time() - started < 1


@pytest.mark.parametrize(
    "text",
    [
        '{"size":1,"many":[' + "{}," * 260_000 + "{}]}",
        '{"size":1,' + ",".join(f'"{"k" * 4}{number}":1' for number in range(400_000)) + "}",
        '{"size":1,' + ",".join(['"SIZE":1'] * 500_000) + "}",
        '{"size":1,"' + "K" * (4 << 20) + '":1}',
    ],
    ids=["objects", "keys", "the-same-key", "a-long-key"],
)
def test_the_worst_that_4_mib_can_say_is_read_in_linear_time(text: str) -> None:
    started = time.process_time()
    assert gojson.decode(text, Outer).size == 1
    assert time.process_time() - started < 5  # it is a few tenths


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"[" * 100_000, b'{"x":' * 100_000])
def test_damaged_json(data: bytes) -> None:
    with pytest.raises((msgspec.DecodeError, UnicodeDecodeError, RecursionError)):
        gojson.decode(data, Outer)
