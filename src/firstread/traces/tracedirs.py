# SPDX-License-Identifier: Apache-2.0
"""Traces on the command line: files, and directories of them.

Owns which files of a directory are traces, and what an error says of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from pathlib import Path

from firstread.errors import LimitError, UsageError
from firstread.traces.savedtrace import load_trace
from firstread.traces.tracefile import Trace

SUFFIX = ".jsonl"
MAX_FILES = 4096  # of one directory: a node collects far fewer


def read_traces(paths: Iterable[Path]) -> list[Trace]:
    """Return the traces in files, in order.

    Args:
        paths: of files; a directory stands for all in it that end in `SUFFIX`, in order of name.

    Raises:
        FirstreadError: names the file that cannot be read, or is no valid trace.
    """
    return [load_trace(path) for path in chain.from_iterable(map(_files, paths))]


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    found = sorted(path.glob(f"*{SUFFIX}"))
    if not found:
        raise UsageError(f"there is no trace in {path}", hint=f"their names end in {SUFFIX}")
    if len(found) > MAX_FILES:
        raise LimitError(
            f"{path} has {len(found)} traces, {MAX_FILES} is the limit",
            hint="merge some of them, or name those that count",
        )
    return found
