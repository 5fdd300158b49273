# SPDX-License-Identifier: Apache-2.0
"""Filter expressions of containerd."""

from __future__ import annotations

import pytest

from firstread.snapshotter.filters import parse_filters
from firstread.snapshotter.refusal import Refusal, RefusalError

FIELDS = {
    ("name",): "sha256:abc",
    ("kind",): "active",
    ("parent",): "",
    ("labels", "a"): "1",
    ("labels", "x.y/z"): 'say "hi"',
}


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ([], True),
        ([""], True),
        (["name"], True),
        (["labels.b"], False),
        (["name==sha256:abc"], True),
        (["name==sha256:abc,kind==view"], False),
        (["kind==view", "kind==active"], True),
        (["name == sha256:abc , kind==active"], True),
        (['parent==""'], True),
        (['parent!=""'], False),
        (["labels.b!=1"], True),
        (["labels.b==1"], False),
        (["labels.a!=2"], True),
        ([r'labels."x.y/z"=="say \"hi\""'], True),
        (["name~=^sha256:"], True),
        (["name~=/a.c$/"], True),
        (["name~=|^x|"], False),
        ([r'name=="\x73ha256:\u0061bc"'], True),
    ],
)
def test_matches(filters: list[str], expected: bool) -> None:
    assert parse_filters(filters)(FIELDS.get) is expected


@pytest.mark.parametrize(
    "expression",
    ["name=x", "name==", "==x", "name==x,", "name.", "name==x y", 'name=="x', "name<x", "name~=("],
)
def test_invalid_filters(expression: str) -> None:
    with pytest.raises(RefusalError, match="filter") as raised:
        parse_filters(["name==x", expression])
    assert raised.value.kind is Refusal.INVALID_ARGUMENT


@pytest.mark.parametrize(
    "pattern", ["(a+)+b", "(a|a)*b", "a*a*b", "a?" * 30, "(a|b)" * 9, "[a]" * 99]
)
def test_a_pattern_that_can_take_long_is_refused(pattern: str) -> None:
    with pytest.raises(RefusalError, match="can take long"):
        parse_filters([f'name~="{pattern}"'])


@pytest.mark.parametrize("pattern", ["^a.*z$", "(foo|bar|a[*+?]+)-1", r"\\*\\+\\?a", "(?i:A)"])
def test_a_pattern_that_takes_no_time_is_not(pattern: str) -> None:
    assert parse_filters([f'name~="{pattern}"']) is not None


def test_a_filter_of_too_many_characters() -> None:
    with pytest.raises(RefusalError, match="more than 8192 characters") as caught:
        parse_filters(["a," * 50_000])
    assert len(str(caught.value)) < 500
