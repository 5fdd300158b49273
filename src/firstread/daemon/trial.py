# SPDX-License-Identifier: Apache-2.0
"""The trial of a new version, before it takes over from the old one.

It loads everything that supervisor and fetcher need, and reads what the old version left on disk.
Changes nothing, mounts nothing, asks no registry.
"""

from __future__ import annotations

from pathlib import Path

from firstread.cache.imagestore import ImageStore
from firstread.daemon import serve, supervisor
from firstread.daemon.handover import FORMAT, FORMATS
from firstread.errors import NodeError
from firstread.mounts.table import MountTable
from firstread.sectors.sectorstore import SectorStore

PROCESSES = (supervisor.main, serve.main)  # imported here: an installation that is not whole shows


def rehearse(root: Path, wanted: int = FORMAT) -> None:
    """Try what this version needs to go on with the mounts of `root`.

    Args:
        root: of store, images and mount table.
        wanted: the format in which the old supervisor would leave its state.

    Raises:
        FirstreadError: it would not work.
    """
    if wanted not in FORMATS:
        raise NodeError(
            f"the daemon leaves its state in format {wanted},"
            f" this reads {' and '.join(map(str, FORMATS))}"
        )
    SectorStore(root, filesystems=None).close()  # the old version has chosen its device
    images = ImageStore(root, tidy=False)
    for mount in MountTable(root).load(tidy=False):
        images.load(mount.digest)
