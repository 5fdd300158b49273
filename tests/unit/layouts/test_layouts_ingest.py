# SPDX-License-Identifier: Apache-2.0
"""New blobs that are written where they belong."""

import io
import os
from pathlib import Path

import pytest

from firstread.errors import DigestError
from firstread.layouts.ingest import open_scratch
from firstread.oci.model import describe
from firstread.oci.reference import parse_reference
from firstread.registry.open import open_destination
from firstread.registry.options import AccessOptions

DATA = b"sector" * 100_000
BLOB = describe(DATA, "application/vnd.oci.image.layer.firstread.sectors.v1+zstd")


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    return tmp_path / "layout"


def blobs(layout: Path) -> list[Path]:
    return sorted(path for path in layout.rglob("*") if len(path.name) == 64)


def test_a_layout_takes_the_file_itself(layout: Path) -> None:
    with open_destination(parse_reference(f"oci:{layout}:1"), AccessOptions()) as place:
        assert place.scratch_dir == layout.parent
        with open_scratch(place.scratch_dir) as file:
            file.write(DATA)
            assert place.put_blob(BLOB, file, verified=True)
            assert [path.stat().st_ino for path in blobs(layout)] == [
                os.fstat(file.fileno()).st_ino
            ]
    assert blobs(layout)[0].read_bytes() == DATA
    assert blobs(layout)[0].stat().st_mode & 0o777 == 0o644


def test_a_file_of_another_length_is_refused(layout: Path) -> None:
    place = open_destination(parse_reference(f"oci:{layout}:1"), AccessOptions())
    with place, open_scratch(place.scratch_dir) as file:
        file.write(DATA + b"more")
        file.seek(0)
        with pytest.raises(DigestError):
            place.put_blob(BLOB, file, verified=True)
    assert not blobs(layout)


def test_a_file_of_another_place_is_copied(layout: Path, tmp_path: Path) -> None:
    named = tmp_path / "named"
    place = open_destination(parse_reference(f"oci:{layout}:1"), AccessOptions())
    with place, named.open("w+b") as file:
        file.write(DATA)
        file.seek(0)
        assert place.put_blob(BLOB, file, verified=True)
    assert blobs(layout)[0].stat().st_ino != named.stat().st_ino
    assert blobs(layout)[0].read_bytes() == DATA


def test_nothing_is_left_of_a_file_that_is_not_put(layout: Path) -> None:
    place = open_destination(parse_reference(f"oci:{layout}:1"), AccessOptions())
    with place, open_scratch(place.scratch_dir) as file:
        file.write(DATA)
        assert os.listdir(layout.parent) == []
    assert os.listdir(layout.parent) == []


@pytest.mark.parametrize(
    "damaged",
    [
        pytest.param(DATA[:10], id="cut-off"),
        pytest.param(b"S" + DATA[1:], id="flipped"),
        pytest.param(DATA + b"more", id="too-long"),
    ],
)
@pytest.mark.parametrize("verified", [True, False])
def test_a_damaged_blob_is_repaired_by_its_bytes(
    layout: Path, damaged: bytes, verified: bool
) -> None:
    with open_destination(parse_reference(f"oci:{layout}:1"), AccessOptions()) as place:
        place.put_blob(BLOB, io.BytesIO(DATA))
        blobs(layout)[0].write_bytes(damaged)
        with open_scratch(place.scratch_dir) as file:
            file.write(DATA)
            file.seek(0)
            assert place.put_blob(BLOB, file, verified=verified)
        assert not place.put_blob(BLOB, io.BytesIO(DATA))
    assert [path.read_bytes() for path in blobs(layout)] == [DATA]
