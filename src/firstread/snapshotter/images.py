# SPDX-License-Identifier: Apache-2.0
"""The lazy images of this node, as the snapshotter uses them: through the daemon."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from firstread.node.client import Client, connected

HOLDER = "containerd-snapshot-"


class Images(Protocol):
    """Where lazy images come from."""

    def pull(self, reference: str) -> None:
        """Have manifest, config and metadata of an image on this node.

        Raises:
            FirstreadError: they cannot be had, or it is not a converted image.
        """

    def mount(self, reference: str, snapshot: int) -> Path:
        """Return where an image is mounted, for a snapshot until `release`; as often as wanted.

        Raises:
            FirstreadError: it cannot be mounted.
        """

    def release(self, snapshot: int) -> None:
        """Give back the mount of a snapshot, if it has one.

        Raises:
            FirstreadError: the daemon does not answer.
        """

    def held(self) -> set[int]:
        """Return the snapshots that have a mount.

        Raises:
            FirstreadError: the daemon does not answer.
        """


class DaemonImages:
    """The images of the daemon of a run directory, which is started when it is needed.

    Args:
        root: of the daemon.
        run_dir: of the daemon.
        access: how registries are reached, as the daemon takes it; {} for as it was told itself.
    """

    def __init__(self, root: Path, run_dir: Path, access: dict[str, Any] | None = None) -> None:
        self._root, self._run_dir = root, run_dir
        self._access = access or {}

    def pull(self, reference: str) -> None:
        self._daemon().pull(image=reference, access=self._access)

    def mount(self, reference: str, snapshot: int) -> Path:
        holder = f"{HOLDER}{snapshot}"
        answer = self._daemon().mount(
            image=reference, directory=None, holder=holder, access=self._access
        )
        return Path(answer["mountpoint"])

    def release(self, snapshot: int) -> None:
        self._daemon().release(f"{HOLDER}{snapshot}")

    def held(self) -> set[int]:
        if not Client(self._run_dir).alive() and not any((self._root / "mounts").glob("*.json")):
            return set()  # no reason to start one
        holders = [h for m in self._daemon().get("/status")["mounts"] for h in m["holders"]]
        return {int(h.removeprefix(HOLDER)) for h in holders if h.startswith(HOLDER)}

    def _daemon(self) -> Client:
        return connected(self._root, self._run_dir)
