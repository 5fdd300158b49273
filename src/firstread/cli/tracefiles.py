# SPDX-License-Identifier: Apache-2.0
"""Trace files on this machine, for several verbs.

Invariant: a file gets its name when it is complete.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from firstread.errors import FirstreadError, LimitError, UsageError, from_os_error
from firstread.units import counted, format_size

if TYPE_CHECKING:
    from collections.abc import Iterable

    from firstread.cache.nodeimage import NodeImage
    from firstread.traces.sectorreads import SectorRead
    from firstread.traces.tracefile import Trace


def load_trace(path: Path) -> Trace:
    """Return the trace in a file.

    Raises:
        ImageError: it is no trace that this version reads; names the file.
        NodeError: it cannot be read.
    """
    from firstread.traces.tracefile import read_trace

    try:
        with path.open("rb") as file:
            return read_trace(file)
    except OSError as exc:
        raise from_os_error(exc, "cannot read the trace") from exc
    except FirstreadError as exc:
        exc.hint = "trace the image again: firstread trace"
        exc.about(image=str(path))
        raise


def check_output(path: Path) -> None:
    """Check that a file can be made, before anything is done for it.

    Raises:
        UsageError: there is no such directory, or it cannot be written.
    """
    parent = path.absolute().parent
    if path.is_dir() or not parent.is_dir() or not os.access(parent, os.W_OK):
        raise UsageError(f"{path} cannot be written", hint="choose a file in a writable directory")


def save_trace(path: Path, trace: Trace) -> None:
    """Write a trace to a file, which appears whole.

    Raises:
        NodeError: it cannot be written.
        LimitError: no version would read so large a file.
    """
    from firstread.traces.tracefile import MAX_TRACE_SIZE, write_trace

    in_place = path.exists() and not path.is_file()  # a pipe, or a terminal
    scratch: Path | None = None
    try:
        if in_place:
            with path.open("wb") as out:
                write_trace(trace, out)
            return
        fd, name = tempfile.mkstemp(prefix=f".{path.name[:100]}.", dir=path.absolute().parent)
        scratch = Path(name)
        with os.fdopen(fd, "wb") as out:
            write_trace(trace, out)
            if out.tell() > MAX_TRACE_SIZE:
                raise LimitError(
                    f"the trace is larger than {format_size(MAX_TRACE_SIZE)}",
                    hint="end it earlier: --until, or --seconds",
                )
        scratch.chmod(0o644)
        scratch.replace(path)
        scratch = None
    except OSError as exc:
        raise from_os_error(exc, "cannot write the trace") from exc
    finally:
        if scratch is not None:
            with contextlib.suppress(OSError):
                scratch.unlink()


def trace_of(
    image: NodeImage,
    reads: Iterable[SectorRead],
    command: Iterable[str],
    read_ahead_kib: int,
    ready_us: int | None,
) -> Trace:
    """Return the trace of a start.

    Args:
        image: that was read.
        reads: of its sectors.
        command: that ran; its longest words are cut.
        read_ahead_kib: of the mount.
        ready_us: when the workload was ready, or None.

    Raises:
        ImageError: the image's tree is damaged.
    """
    from firstread.erofs.reader import read_tree
    from firstread.sectors.image import SOURCE_DIGEST
    from firstread.traces.filemap import FileMap
    from firstread.traces.sectorreads import to_trace
    from firstread.traces.tracefile import MAX_WORD, MAX_WORDS, VERSION, TraceHeader

    block_image = image.block_image
    words = (os.fsencode(word).decode(errors="replace") for word in command)
    header = TraceHeader(
        version=VERSION,
        image=(block_image.manifest.annotations or {}).get(SOURCE_DIGEST, ""),
        command=[word[:MAX_WORD] for word in words][:MAX_WORDS],
        read_ahead_kib=read_ahead_kib,
        ready_us=ready_us,
    )
    return to_trace(reads, FileMap(read_tree(block_image.erofs)), header)


def describe(trace: Trace) -> str:
    """Return what people want to know of a trace, in one line."""
    size = sum(read.length for read in trace.reads)
    files = len({read.path for read in trace.reads})
    ready = trace.header.ready_us
    when = "" if ready is None else f", ready after {ready / 1e6:.2f} s"
    reads = counted(len(trace.reads), "read")
    return f"{reads} of {counted(files, 'file')}, {format_size(size)}{when}"
