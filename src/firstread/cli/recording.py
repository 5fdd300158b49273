# SPDX-License-Identifier: Apache-2.0
"""Records of starts, made of what the daemon remembers and of the image's metadata; for verbs.

Owns what a record takes from where. The daemon knows sectors; this process finds their files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from firstread.cli.output import check_output, complain, write_whole
from firstread.errors import FirstreadError

if TYPE_CHECKING:
    from firstread.cli.timeline import Timeline
    from firstread.control.client import Client
    from firstread.mounts.nodestatus import MountHistory
    from firstread.report.startrecord import StartRecord
    from firstread.run.containers import Record


def recording_into(path: Path, root: Path) -> Callable[[Client, str, Timeline], None]:
    """Return what writes the record of a container's start to a file.

    The container has run by then, so a record that cannot be made is a warning.

    Args:
        path: of the file.
        root: of the daemon.

    Raises:
        UsageError: the file cannot be written.
    """
    check_output(path)

    def keep(client: Client, mountpoint: str, timeline: Timeline) -> None:
        from firstread.documents import encode
        from firstread.report.startrecord import rebased

        try:
            history = rebased(history_of(client, mountpoint), timeline.began(), timeline.in_a_row())
            write_whole(path, encode(record_of(history, root)) + "\n")
        except FirstreadError as exc:
            complain([f"firstread: the start is not recorded: {exc}"])

    return keep


def history_of(client: Client, mountpoint: str) -> MountHistory:
    """Return what the daemon remembers of a mount.

    Raises:
        FirstreadError: nothing of ours is mounted there, or no daemon answers.
    """
    from firstread.documents import decode
    from firstread.mounts.nodestatus import MountHistory

    return decode(client.post("/history", directory=mountpoint), MountHistory)


def record_of(history: MountHistory, root: Path) -> StartRecord:
    """Return the record of a start: its history, and the files that it has read.

    Raises:
        FirstreadError: the image's metadata cannot be read below `root`.
    """
    from msgspec import structs

    from firstread.cache.imagestore import ImageStore
    from firstread.report.filesread import FilesRead
    from firstread.report.startrecord import StartRecord

    try:
        image = ImageStore(root, tidy=False).load(history.digest)
    except FirstreadError as exc:
        exc.hint = "is --root that of the daemon?"
        raise
    files = FilesRead(image.block_image)
    files.note(history.reads)
    used = files.look_in_memory(Path(history.mountpoint))
    rows, more = files.document()
    return StartRecord(**structs.asdict(history), files=rows, more_files=more, used=used)


def add_container(history: MountHistory, containers: Iterable[Record]) -> None:
    """Add the start of the container that the mount was made for, if it is among these."""
    from firstread.fetch.imagehistory import Step

    mounted = max((step.at + step.seconds for step in history.steps), default=None)
    if mounted is None:
        return
    for container in sorted(containers, key=lambda record: record.created):
        if container.started is not None and container.created <= history.began + mounted:
            started = max(container.started - history.began, mounted)
            history.steps.append(Step("container", mounted, started - mounted))
            return
