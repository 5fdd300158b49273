# SPDX-License-Identifier: Apache-2.0
"""Traces given to a verb, and the lines about the hot sectors that became of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from firstread.units import counted, format_size

if TYPE_CHECKING:
    from firstread.convert.outcome import HotSectors

TRACES = click.Path(exists=True, path_type=Path)
TRACE_HELP = (
    "Put what this trace reads into hot sectors; repeatable. A directory stands for all its *.jsonl"
    " files."
)


def hot_lines(hot: HotSectors | None) -> list[str]:
    """Return lines for people; none without a trace."""
    if hot is None:
        return []
    if not hot.reads:
        return ["  hot       nothing: no read of the trace fits the image"]
    lines = [
        f"  hot       {format_size(hot.blob_size)} for {format_size(hot.size)} in"
        f" {counted(hot.sectors, 'sector')}: {counted(hot.reads, 'read')} of"
        f" {counted(hot.files, 'file')}"
    ]
    if hot.whole_sectors:
        where = "read as a whole, which stay where they are"
        lines.append(f"  whole     {counted(hot.whole_sectors, 'sector')} {where}")
    reads, missing = counted(hot.unfit_reads, "read"), counted(hot.missing_files, "missing file")
    parts = [f"{reads} of {missing} or beyond a file's end"] if hot.unfit_reads else []
    parts += [f"{counted(hot.hole_reads, 'read')} of holes"] if hot.hole_reads else []
    return [*lines, *([f"  left out  {', '.join(parts)}"] if parts else [])]
