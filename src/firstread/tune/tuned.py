# SPDX-License-Identifier: Apache-2.0
"""The table of ``firstread tune``: a JSON document, and lines for people.

Owns its fields and its look; `firstread.tune.comparison` fills it.
"""

from __future__ import annotations

from firstread.documents import Bytes, Digest, Document, Seconds
from firstread.fetch.startplan import Mode
from firstread.tune.settings import Setting
from firstread.units import counted, format_size


class SettingTuned(Document):
    """A setting, and its starts over one link.

    link: its rate and round trip time
    layout: `plain`, `hot`, `files` or `chunks`
    unit_size: of a sector, or of a chunk of a file; 0 for whole files
    frame_size: of a frame; 0 where a unit is verified as a whole
    granule: to which hot ranges are padded; 0 if nothing is hot
    prefetch: what the node fetches though nobody reads it: `none`, `hot`, `all`
    ready: from the beginning of the pull, on average of the traces
    wait_p50, wait_p99, wait_p999: of the first reads of all traces
    bytes: fetched until ready, on average
    requests: made until ready, on average
    image_size: of the image in the registry
    """

    link: str
    layout: str
    unit_size: Bytes
    frame_size: Bytes
    granule: Bytes
    prefetch: Mode
    ready: Seconds
    wait_p50: Seconds
    wait_p99: Seconds
    wait_p999: Seconds
    bytes: Bytes
    requests: float
    image_size: Bytes

    @property
    def setting(self) -> Setting:
        return Setting(self.layout, self.unit_size, self.frame_size, self.granule, self.prefetch)


class CacheTuned(Document):
    """A store of bounded size, under starts that follow each other.

    limit: of the store
    starts: that followed each other
    touched: how often a start needed a sector
    missed: how often it was absent
    hit_ratio: share of needed sectors that were present
    fetched: uncompressed
    """

    limit: Bytes
    starts: int
    touched: int
    missed: int
    hit_ratio: float
    fetched: Bytes


class Tuned(Document):
    """What ``firstread tune`` found.

    reference: of the image
    digest: of its manifest
    traces: that were replayed
    reads: of them, until ready
    impossible: settings that the image cannot have, and why
    left_out: reads of files that this image does not have
    later: reads after ready
    local: the time that a start takes when nothing is fetched, on average
    settings: one entry for each setting and link
    chosen: number of the chosen setting in `settings`, for the first link
    why: the reason
    stores: with `--cache`: what a store of each size saves the chosen setting
    """

    reference: str
    digest: Digest
    traces: int
    reads: int
    impossible: list[str]
    left_out: int
    later: int
    local: Seconds
    settings: list[SettingTuned]
    chosen: int
    why: str
    stores: list[CacheTuned]


def lines(tuned: Tuned) -> list[str]:
    """Return the table for people, a block for each link."""
    shown = [
        f"{tuned.reference}: {counted(tuned.traces, 'trace')}, {counted(tuned.reads, 'read')};"
        f" {tuned.local:.2f} s with all data local"
    ]
    shown += [f"  left out  {wrong}" for wrong in tuned.impossible]
    if tuned.left_out:
        shown.append(f"  left out  {counted(tuned.left_out, 'read')} of files not in this image")
    if tuned.later:
        shown.append(f"  left out  {counted(tuned.later, 'read')} after ready")
    width = max(len(str(row.setting)) for row in tuned.settings)
    for link in dict.fromkeys(row.link for row in tuned.settings):
        head = ("ready", "p50", "p99", "p99.9", "fetched", "requests", "image")
        shown += ["", f"{link:<{width + 2}}" + "".join(f"{word:>11}" for word in head)]
        shown += [
            f"  {row.setting!s:<{width}}{_cells(row)}" for row in tuned.settings if row.link == link
        ]
    shown += ["", f"choose {tuned.settings[tuned.chosen].setting}: {tuned.why}"]
    if tuned.stores:
        shown += ["", f"{'store':<12}{'hit ratio':>11}{'missed':>11}{'fetched':>12}"]
        shown += [
            f"{format_size(hits.limit):<12}{hits.hit_ratio:>11.1%}"
            f"{hits.missed:>5}/{hits.touched:<5}{format_size(hits.fetched):>12}"
            for hits in tuned.stores
        ]
    return shown


def _cells(row: SettingTuned) -> str:
    cells = (
        f"{row.ready:.2f} s",
        *(f"{wait * 1000:.1f} ms" for wait in (row.wait_p50, row.wait_p99, row.wait_p999)),
        format_size(row.bytes),
        f"{row.requests:.0f}",
        format_size(row.image_size),
    )
    return "".join(f"{cell:>11}" for cell in cells)
