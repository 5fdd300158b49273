# SPDX-License-Identifier: Apache-2.0
"""What a new version tries before it takes the place of an old one that serves.

It loads all that supervisor and fetcher will need, and reads what the old one has on the disk.
Changes nothing, mounts nothing, asks no registry.
"""

from __future__ import annotations

from pathlib import Path

from firstread.errors import NodeError
from firstread.node import serve, supervisor
from firstread.node.handover import FORMAT
from firstread.node.images import ImageStore
from firstread.node.mounts import MountTable
from firstread.sectors.store import SectorStore

PROCESSES = (supervisor.main, serve.main)  # imported here: an installation that is not whole shows


def rehearse(root: Path, wanted: int = FORMAT) -> None:
    """Try what this version needs to go on with the mounts of `root`.

    Args:
        root: of store, images and mount table.
        wanted: the `FORMAT` in which the old supervisor would leave its state.

    Raises:
        FirstreadError: it would not work.
    """
    if wanted != FORMAT:
        raise NodeError(f"the daemon leaves its state in format {wanted}, this reads {FORMAT}")
    SectorStore(root).close()
    images = ImageStore(root, tidy=False)
    for mount in MountTable(root).load(tidy=False):
        images.load(mount.digest)
