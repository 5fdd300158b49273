# SPDX-License-Identifier: Apache-2.0
"""Documents: how they are encoded, and that docs/json.md describes them as they are."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Annotated

import msgspec
import pytest
from tools import jsonpage

import firstread
from firstread.documents import Bytes, Document, ErrorDocument, decode, encode
from firstread.errors import ImageError, NodeError


class Inner(Document):
    """The inner document.

    size: of it
    """

    size: Bytes


class Outer(Document):
    """The outer document.

    inner, others: see there; of more
        than one
    """

    inner: Inner
    others: list[Inner]
    name: str | msgspec.UnsetType = msgspec.UNSET


def test_the_page_is_what_the_structs_say() -> None:
    assert jsonpage.PAGE.read_text() == jsonpage.page(), "run: python tools/jsonpage.py"


@pytest.mark.parametrize("name", ["a\udcff", "é", "\n"])
def test_a_document_is_one_line_of_ascii_whatever_is_in_it(name: str) -> None:
    line = encode(Outer(Inner(1), [], name))
    assert line.isascii()
    assert "\n" not in line
    assert json.loads(line) == {"inner": {"size": 1}, "others": [], "name": name}


def test_unknown_fields_are_left_out() -> None:
    assert "name" not in json.loads(encode(Outer(Inner(1), [])))


def test_fields_of_a_later_version_are_ignored_and_missing_ones_are_an_error() -> None:
    assert decode({"size": 1, "later": 2}, Inner) == Inner(1)
    with pytest.raises(NodeError, match="does not understand"):
        decode({}, Inner)


def test_an_error_is_the_document_that_is_described() -> None:
    error = ImageError("went wrong", hint="do this", image="i", layer="sha256:1")
    assert msgspec.to_builtins(decode(error.to_dict(), ErrorDocument)) == error.to_dict()


def test_rows_have_names_types_and_meanings() -> None:
    class Told(Document):
        """All of it.

        inner: one
        others: of more
            than one
        count: how many
        """

        inner: Inner
        others: list[Inner]
        count: Annotated[int, "nothing of ours"] | None = None

    assert list(jsonpage.rows(Told, "")) == [
        "| `inner` | object | one |",
        "| `inner.size` | bytes | of it |",
        "| `others` | array of objects | of more than one |",
        "| `others[].size` | bytes | of it |",
        "| `count` | number or null | how many |",
    ]


def test_a_docstring_that_tells_of_no_field_is_an_error() -> None:
    class Wrong(Document):
        """It is.

        other: gone
        """

        size: Bytes

    with pytest.raises(ValueError, match="has no field for 'other: gone'"):
        list(jsonpage.rows(Wrong, ""))


def test_a_field_that_no_docstring_tells_of_is_an_error() -> None:
    class Silent(Document):
        """It is."""

        size: Bytes

    with pytest.raises(ValueError, match="does not tell of"):
        list(jsonpage.rows(Silent, ""))


def test_all_that_a_decoder_raises_is_expected() -> None:
    """msgspec itself, text that is not UTF-8, and nesting each have an exception of their own."""
    top = Path(firstread.__file__).parent
    for path in top.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if not isinstance(node, ast.ExceptHandler) or node.type is None:
                continue
            caught = ast.unparse(node.type)
            if "msgspec.DecodeError" in caught or "msgspec.MsgspecError" in caught:
                assert "Unicode" in caught, (path, node.lineno)
                assert "RecursionError" in caught, (path, node.lineno)
