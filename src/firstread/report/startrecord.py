# SPDX-License-Identifier: Apache-2.0
"""The record of one start: a file that outlives the mount, and needs no other file.

Owns the document and its bounds. Its text and numbers are hostile: somebody may have sent it.
Invariant: a record that `read_record` returns has sane numbers, and names sectors that it has.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import msgspec

from firstread.documents import Bytes, Document, Seconds
from firstread.errors import UnsupportedError, UsageError
from firstread.fetch.imagehistory import Step
from firstread.mounts.nodestatus import MountHistory
from firstread.traces.tracefile import MAX_READS
from firstread.units import MAX_SECONDS, MiB, TiB
from firstread.wholefile import read_limited

VERSION: Final = 1
MAX_RECORD_SIZE: Final = 64 * MiB
MAX_NUMBER: Final = 1024 * TiB  # of bytes, reads or sectors
MAX_SECTORS: Final = 65_535
MAX_STEPS: Final = 64
MAX_FILES: Final = 5_000  # with a row of their own


class FileRead(Document):
    """A file of the image, and what was read of it.

    path: within the image
    reads: that waited for data of it
    bytes: that they wanted, each byte once
    first: of these reads, in seconds since `began`
    seconds: that they waited, together
    cached: bytes of it in memory, whether or not their read waited; null if nobody looked
    """

    path: str
    reads: int
    bytes: Bytes
    first: Seconds | None
    seconds: Seconds
    cached: Bytes | None


class StartRecord(MountHistory, kw_only=True):
    """What a start has done and read.

    firstread_start: version of this format
    files: that were read; the 5,000 with the most bytes
    more_files: others that were read
    used: bytes of each sector that were in memory, by device slot; null if nobody looked
    """

    firstread_start: int = VERSION
    files: list[FileRead] = msgspec.field(default_factory=list)
    more_files: int = 0
    used: list[Bytes] | None = None


def is_record(beginning: bytes) -> bool:
    """Return whether a file that begins so may be the record of a start, and no trace."""
    return b'"firstread_trace"' not in beginning


def read_record(path: Path) -> StartRecord:
    """Return the record in a file.

    Raises:
        UsageError: it is no such record, a damaged one, or larger than one can be.
        UnsupportedError: its format has another version.
        NodeError: it cannot be read.
    """
    data = read_limited(path, MAX_RECORD_SIZE)
    try:
        record = msgspec.json.decode(data, type=StartRecord)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise UsageError(
            f"{path} is neither a record of a start nor a trace: {exc}",
            hint="firstread report MOUNT --json > FILE writes a record",
        ) from exc
    if record.firstread_start != VERSION:
        raise UnsupportedError(
            f"{path} has format version {record.firstread_start}, not {VERSION}",
            hint="make the report with the version of firstread that has written it",
        )
    if not all(_checks(record)):
        raise UsageError(f"{path} is a damaged record: its numbers contradict each other")
    return record


def rebased(history: MountHistory, began: float, steps: Iterable[Step]) -> MountHistory:
    """Return a history that begins at another moment, as what happened since.

    Args:
        history: of a mount that others may have used before.
        began: seconds since 1970.
        steps: of the start that began then, in seconds since that.
    """
    shift = history.began - began
    for read in history.reads:
        read.at += shift
    for request in history.requests:
        request.at += shift
    for sector in history.sectors:
        if sector.at is not None:
            sector.at += shift
            if sector.at < 0:
                sector.at = sector.cause = None
    return msgspec.structs.replace(
        history,
        began=began,
        elapsed=max(0.0, history.elapsed + shift),
        steps=list(steps),
        reads=[read for read in history.reads if read.at >= 0],
        requests=[request for request in history.requests if request.at >= 0],
    )


def _checks(record: StartRecord) -> Iterable[bool]:
    """Yield for each rule whether the numbers of a record keep it."""
    slots = len(record.sectors)
    yield slots <= MAX_SECTORS
    yield len(record.steps) <= MAX_STEPS
    yield len(record.files) <= MAX_FILES
    yield max(len(record.reads), len(record.requests)) <= MAX_READS
    yield record.used is None or len(record.used) == slots
    yield all(0 <= read.sector < slots for read in record.reads)
    yield all(0 <= request.sector < slots for request in record.requests)
    yield all(map(_is_sane, _numbers(msgspec.to_builtins(record))))


def _numbers(value: Any) -> Iterable[float]:
    """Yield the numbers in a document, but moments."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name != "began":
                yield from _numbers(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _numbers(inner)
    elif isinstance(value, int | float):
        yield value


def _is_sane(number: float) -> bool:
    return 0 <= number <= (MAX_SECONDS if isinstance(number, float) else MAX_NUMBER)
