# SPDX-License-Identifier: Apache-2.0
"""Conversions that are attached to their originals, image by image."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

from msgspec import structs

from firstread.convert.attach import attach
from firstread.convert.progress import Progress
from firstread.oci.reference import Reference
from firstread.oci.repository import Repository
from firstread.oci.resolve import Leaves, choose_in
from firstread.sectors.attached import find_attached
from firstread.sync.conversiontarget import Done, Target, Work, converted
from firstread.sync.synced import PRESENT, SyncedImage, skipped


class Beside(Target):
    """Attaches conversions to their originals."""

    def _open_results(self, place: Reference, sources: Repository, stack: ExitStack) -> Repository:
        return sources

    def _compare(
        self, name: Reference, found: Leaves, sources: Repository, results: Repository
    ) -> Iterator[SyncedImage | Work]:
        entries = found.images
        if found.index is not None and self.options.platform is not None:
            entries = [choose_in(sources, found.index, self.options.platform)]
        for entry in {each.digest: each for each in entries}.values():
            platform = str(entry.platform) if entry.platform else None
            if entry.platform and entry.platform.os not in ("", "linux"):
                yield skipped(name, f"it is for {entry.platform.os}", platform)
                continue
            there = find_attached(results, entry)
            if there is None:
                source = replace(name, digest=entry.digest)
                yield Work(name, source, platform=platform)
                continue
            yield SyncedImage(
                image=str(name), platform=platform, result=PRESENT, digest=there.descriptor.digest
            )

    def convert(self, work: Work, progress: Progress) -> Done:
        options = replace(self.options, platform=None)
        done = attach(
            work.source, options, progress=progress, executor=self._executor, claims=self._claims
        )
        return Done([converted(work, image) for image in done.images], done.images[0].digest)

    def repeat(self, work: Work, done: Done) -> list[SyncedImage]:
        return [
            structs.replace(
                row, image=str(work.name), result=PRESENT, seconds=0.0, size=0, packed_bytes=0
            )
            for row in done.rows
        ]
