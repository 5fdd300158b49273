# SPDX-License-Identifier: Apache-2.0
"""The annotation about what is hot: read as it was written, and never trusted."""

from __future__ import annotations

import logging
import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstread.errors import ImageError
from firstread.sectors.hotnote import MAX_RANGES, MAX_SIZE, NO_TRACE, HotNote
from firstread.sectors.image import HOT
from firstread.testing.images import File, Image, Layer
from firstread.testing.packed import converted, opened

TRACE = "sha256:" + "0123456789abcdef" * 4
START = f"v1 granule=4096 reads=812 trace={TRACE}"


@pytest.mark.parametrize(
    ("whole", "text"),
    [
        ((), ""),
        ((7,), " whole=7"),
        ((3, 4, 5, 9, 8, 0), " whole=3-5,9,8,0"),
    ],
)
def test_both_directions(whole: tuple[int, ...], text: str) -> None:
    note = HotNote(4096, 812, TRACE, whole)
    assert str(note) == START + text
    assert HotNote.parse(str(note), 10) == note


@pytest.mark.parametrize(("trace", "is_traced"), [(TRACE, True), (NO_TRACE, False)])
def test_a_start_set_is_told_from_a_trace(trace: str, is_traced: bool) -> None:
    assert HotNote.parse(str(HotNote(4096, 812, trace)), 10).is_traced is is_traced


@given(st.lists(st.integers(0, 65534), unique=True, max_size=600))
def test_a_long_list_is_bounded_and_readable(whole: list[int]) -> None:
    text = str(HotNote(4096, 1, TRACE, tuple(whole)))
    assert len(text) <= MAX_SIZE
    found = HotNote.parse(text, 65535).whole
    assert set(found) <= set(whole)
    assert len(found) >= min(len(whole), MAX_RANGES)


def test_many_runs_are_joined_in_about_the_order_of_the_start() -> None:
    # Two threads multiply by a matrix, each by a half of it, and the file has the layers by name.
    matrices = [range(at, at + 4) for at in (*range(2000, 4000, 4), *range(0, 2000, 4))]
    whole = tuple(each[half] for each in matrices for half in (0, 2, 1, 3))
    found = HotNote.parse(str(HotNote(4096, 1, TRACE, whole)), 4000).whole
    assert set(found) == set(whole)
    assert max(abs(found.index(slot) - at) for at, slot in enumerate(whole)) < 4


@pytest.mark.parametrize(
    "text",
    [
        "",
        "v2 granule=4096",
        START[:-1],
        START.replace("812", "-1"),
        START + " ",
        START + " whole=",
        START + " whole=10",
        START + " whole=5-4",
        START + " whole=1,,2",
        START + " whole=1-2-3",
        START + " whole=0-9,0-9",
        START + " whole=99999999",
        START + " whole=" + "1," * 4000,
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ImageError, match="hot sectors"):
        HotNote.parse(text, 10)


@pytest.mark.parametrize("text", [START + " whole=7", "nonsense", START + " whole=1-0"])
def test_a_damaged_annotation_is_ignored_with_a_warning(
    text: str, caplog: pytest.LogCaptureFixture
) -> None:
    place, manifest = converted(Image([Layer([File("a", b"a" * 5000)])]))
    image = opened(place, msgspec.structs.replace(manifest, annotations={HOT: text}))
    with caplog.at_level(logging.WARNING):
        assert image.hot_sectors() == []
    assert f"the image of metadata {manifest.layers[0].digest}: " in caplog.text
    assert "hot sectors" in caplog.text


def test_whole_sectors_of_layers_are_hot() -> None:
    place, manifest = converted(Image([Layer([File("a", random.Random(1).randbytes(1 << 18))])]))
    annotations = {HOT: START + " whole=2-3,0"}
    image = opened(place, msgspec.structs.replace(manifest, annotations=annotations))
    assert image.hot_sectors() == [2, 3, 0]
