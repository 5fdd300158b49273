# SPDX-License-Identifier: Apache-2.0
"""Trace files on this machine.

Invariant: a file gets its name when it is complete.
"""

from __future__ import annotations

from pathlib import Path

from firstread.errors import FirstreadError, LimitError, from_os_error
from firstread.traces.tracefile import MAX_TRACE_SIZE, Trace, read_trace, write_trace
from firstread.units import format_size
from firstread.wholefile import whole_file


def load_trace(path: Path) -> Trace:
    """Return the trace in a file.

    Raises:
        ImageError: it is no trace that this version reads; names the file.
        NodeError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return read_trace(file)
    except OSError as exc:
        raise from_os_error(exc, "cannot read the trace") from exc
    except FirstreadError as exc:
        exc.hint = "trace the image again: firstread trace"
        exc.about(image=str(path))
        raise


def save_trace(path: Path, trace: Trace) -> None:
    """Write a trace to a file, which appears whole.

    Raises:
        NodeError: it cannot be written.
        LimitError: no version would read so large a file.
    """
    is_file = path.is_file() or not path.exists()  # rather than a pipe, or a terminal
    try:
        with whole_file(path) as out:
            write_trace(trace, out)
            if is_file and out.tell() > MAX_TRACE_SIZE:
                raise LimitError(
                    f"the trace is larger than {format_size(MAX_TRACE_SIZE)}",
                    hint="end it earlier: --until, or --seconds",
                )
    except OSError as exc:
        raise from_os_error(exc, "cannot write the trace") from exc
