# SPDX-License-Identifier: Apache-2.0
"""Files with the record of a start; some of them from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from firstread.documents import encode
from firstread.errors import NodeError, UnsupportedError, UsageError
from firstread.fetch.imagehistory import Step
from firstread.report import startrecord
from firstread.report.startrecord import MAX_SECTORS, is_record, read_record, rebased
from firstread.testing.startrecords import start_record


def written(place: Path, change: Callable[[dict[str, Any]], object] = lambda _: None) -> Path:
    document = json.loads(encode(start_record()))
    change(document)
    path = place / "run.json"
    path.write_text(json.dumps(document))
    return path


def test_a_record_comes_back(tmp_path: Path) -> None:
    path = written(tmp_path)
    assert read_record(path) == start_record()
    assert is_record(path.read_bytes())
    assert not is_record(b'{"firstread_trace":1}\n')


def test_fields_of_a_later_version_are_ignored(tmp_path: Path) -> None:
    assert read_record(written(tmp_path, lambda d: d.update(more=1))) == start_record()


DAMAGED: dict[str, Callable[[dict[str, Any]], object]] = {
    "a sector that is not there": lambda d: d["reads"][0].update(sector=8),
    "a negative sector": lambda d: d["requests"][0].update(sector=-1),
    "a negative time": lambda d: d["reads"][0].update(at=-0.5),
    "a time without end": lambda d: d["steps"][0].update(seconds=1e300),
    "a size without end": lambda d: d["sectors"][0].update(size=1 << 60),
    "a used sector too many": lambda d: d["used"].append(0),
    "sectors without end": lambda d: d.update(
        sectors=d["sectors"][:1] * (MAX_SECTORS + 1), used=None
    ),
    "steps without end": lambda d: d.update(steps=d["steps"] * 100),
}


@pytest.mark.parametrize("change", DAMAGED.values(), ids=DAMAGED.keys())
def test_a_record_whose_numbers_are_wrong(
    tmp_path: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    with pytest.raises(UsageError, match=r"run.json is a damaged record"):
        read_record(written(tmp_path, change))


@pytest.mark.parametrize(
    "data",
    [b"", b"{}", b"[]", b"\xff", b'{"began": NaN}', b"[" * 100_000, b'{"firstread_start":"1"}'],
)
def test_a_file_that_is_no_record(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(UsageError, match=r"x is neither a record of a start nor a trace") as caught:
        read_record(tmp_path / "x")
    assert caught.value.hint == "firstread report MOUNT --json > FILE writes a record"


def test_a_record_of_a_later_version(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="format version 2, not 1"):
        read_record(written(tmp_path, lambda d: d.update(firstread_start=2)))


def test_a_file_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startrecord, "MAX_RECORD_SIZE", 1000)
    with pytest.raises(UsageError, match="is larger than 1000 B"):
        read_record(written(tmp_path))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NodeError, match="cannot read"):
        read_record(tmp_path / "x")


def test_a_later_start_on_the_same_mount_has_only_what_came_since() -> None:
    record, steps = start_record(), [Step("start", 0.0, 0.2)]
    found = rebased(record, record.began + 1.0, steps)
    assert (found.began, found.elapsed, found.steps) == (record.began + 1.0, 2.0, steps)
    assert [read.at for read in found.reads] == [0.25, 0.625]  # of 0.5, 0.875, 1.25 and 1.625
    assert [request.at for request in found.requests] == [0.25, 0.625]
    assert [sector.cause for sector in found.sectors[:4]] == [None, "demand", "demand", "demand"]
    assert found.sectors[0].at is None
    assert found.sectors[1].at == pytest.approx(0.0625)
