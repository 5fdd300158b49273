# SPDX-License-Identifier: Apache-2.0
"""Settings to compare, and the layouts that they mean. Pure.

Owns what can be chosen, how it is called, and which combinations make sense. Invariant: a setting
is valid: its layout can be built.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import NamedTuple

from firstread.errors import UsageError
from firstread.fetch.startplan import Mode
from firstread.sectors.format import BLOCK_SIZE, Geometry
from firstread.traces.tracefile import Trace
from firstread.tune.layercontent import Content, FileKey
from firstread.tune.layout import FileLayout, HotLayout, Layout, PlainLayout
from firstread.tune.workload import hot_content
from firstread.units import KiB, MiB, format_size

KINDS = ("plain", "hot", "files", "chunks")
GRANULES = (4 * KiB,)
MAX_SETTINGS = 256


class Setting(NamedTuple):
    """How an image is laid out, and whether its hot sectors are streamed.

    Args:
        kind: of the layout, see `firstread.tune.layout`.
        unit_size: bytes of a sector, or of a chunk of a file; 0 for whole files.
        frame_size: bytes of a frame; 0 where a unit is verified as a whole.
        granule: bytes to which hot ranges are padded; 0 if nothing is hot.
        prefetch: what the node fetches though nobody reads it.
    """

    kind: str
    unit_size: int
    frame_size: int = 0
    granule: int = 0
    prefetch: Mode = "none"

    def __str__(self) -> str:
        if self.kind == "files":
            return "whole files"
        size = format_size(self.unit_size).replace(".0 ", " ")
        if self.kind == "chunks":
            return f"{size} of files"
        frames = f"{size} sectors, {format_size(self.frame_size).replace('.0 ', ' ')} frames"
        if self.kind == "plain":
            return frames + (", then all" if self.prefetch == "all" else "")
        granule = format_size(self.granule).replace(".0 ", " ")
        how = {"none": "on demand", "hot": "streamed", "all": "streamed, then all"}
        return f"{frames}, hot by {granule} {how[self.prefetch]}"


def settings(
    kinds: Sequence[str],
    sector_sizes: Sequence[int],
    frame_sizes: Sequence[int],
    granules: Sequence[int],
    prefetch: Sequence[Mode],
) -> list[Setting]:
    """Return each combination that makes sense, once.

    Raises:
        UsageError: a size is impossible, or there are too many combinations.
    """
    found = dict.fromkeys(_combined(kinds, sector_sizes, frame_sizes, granules, prefetch))
    if len(found) > MAX_SETTINGS:
        raise UsageError(
            f"these are {len(found)} settings, {MAX_SETTINGS} at most can be compared",
            hint="give fewer sizes",
        )
    return list(found)


def _combined(
    kinds: Sequence[str],
    sector_sizes: Sequence[int],
    frame_sizes: Sequence[int],
    granules: Sequence[int],
    prefetch: Sequence[Mode],
) -> Iterator[Setting]:
    for kind in kinds:
        if kind == "files":
            yield Setting(kind, 0)
            continue
        for size in sector_sizes:
            Geometry(size, min(size, *frame_sizes, 4 * MiB))
            if kind == "chunks":
                yield Setting(kind, size)
                continue
            for frame_size in frame_sizes:
                frame = Geometry(size, min(frame_size, size)).frame_size
                if kind == "plain":
                    for how in prefetch:
                        yield Setting(kind, size, frame, 0, "none" if how == "hot" else how)
                    continue
                for granule in granules:
                    _check_granule(granule, size)
                    for how in prefetch:
                        yield Setting(kind, size, frame, granule, how)


def _check_granule(granule: int, sector_size: int) -> None:
    if granule < BLOCK_SIZE or granule & (granule - 1) or granule > sector_size:
        raise UsageError(
            f"granule {granule} is not a power of two from 4 KiB to the sector size",
            hint="use for example --granule 4KiB,16KiB",
        )


class Layouts:
    """The layouts of an image; those that several settings share are built once.

    Args:
        content: of the image.
        traces: of starts, for what is hot.
        keys: files that they read.
    """

    def __init__(self, content: Content, traces: Sequence[Trace], keys: frozenset[FileKey]) -> None:
        self._content, self._traces, self._keys = content, traces, keys
        self._plain = cache(self._build_plain)
        self._hot = cache(self._build_hot)

    def get(self, setting: Setting) -> Layout:
        """Return the layout of a setting.

        Raises:
            LimitError: the image cannot have it.
        """
        if setting.kind in ("files", "chunks"):
            return FileLayout(self._content, setting.unit_size)
        if setting.kind == "plain":
            return self._plain(setting.unit_size, setting.frame_size)
        return self._hot(setting.unit_size, setting.frame_size, setting.granule)

    def _build_plain(self, sector_size: int, frame_size: int) -> PlainLayout:
        return PlainLayout(self._content, sector_size, frame_size, self._keys)

    def _build_hot(self, sector_size: int, frame_size: int, granule: int) -> HotLayout:
        plain = self._plain(sector_size, frame_size)
        return HotLayout(plain, sector_size, *hot_content(self._content, self._traces, granule))
