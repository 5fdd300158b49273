# SPDX-License-Identifier: Apache-2.0
"""A node to measure: a daemon that starts with an empty store, and its status.

Owns the command lines and requests for this node; `firstread.testing.daemon` owns its processes and
directories. Invariant: the store is empty at first, so the node fetches every sector that it reads,
and `Host.check_lazy` can tell.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.measure import pss_bytes
from firstread.testing.daemon import Daemon


class Host(Daemon):
    """A node below `directory`, which it creates; a context manager.

    Args:
        directory: a path that does not exist, on ext4, xfs or btrfs.
        options: more of the daemon's command line.
    """

    def __init__(self, directory: Path, *options: str) -> None:
        directory.mkdir(parents=True)
        super().__init__(directory, "--log-level", "WARNING", *options)

    def pss_bytes(self) -> int:
        """Return the resident memory of all processes, with shared memory counted once."""
        return sum(map(pss_bytes, (self.supervisor, self.fetcher)))

    def command(self, verb: str, *arguments: str) -> tuple[str, ...]:
        """Return a ``firstread`` command line for this node."""
        place = ("--root", str(self.root), "--run-dir", str(self.run_dir))
        return (sys.executable, "-m", "firstread", verb, *place, *arguments)

    def attach(self, image: str, name: str = "mnt", *, policy: str = "missing") -> Path:
        """Mount an image at a directory `name`: one request to the daemon."""
        place = self.scratch / name
        place.mkdir(exist_ok=True)
        access = {"plain_http": True}
        self.client.post("/mount", image=image, directory=str(place), policy=policy, access=access)
        return place

    def detach(self, place: Path) -> None:
        """Unmount it again; fetched sectors stay."""
        self.client.post("/umount", directory=str(place))

    def complete(self, place: Path) -> None:
        """Fetch all of a mounted image."""
        fetch = self.command("fetch", "--all", str(place))
        subprocess.run(fetch, check=True, capture_output=True)

    def stats(self) -> dict[str, Any]:
        """Return the status of the one mount."""
        (mount,) = self.status()["mounts"]
        return dict(mount)

    def check_lazy(self) -> dict[str, Any]:
        """Return `stats`; fail if all sectors are present, or none was ever absent."""
        stats = self.stats()
        if not stats["events"] or stats["present"] == stats["sectors"]:
            raise RuntimeError(f"the mount was not lazy: {stats}")
        return stats
