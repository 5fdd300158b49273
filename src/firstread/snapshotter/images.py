# SPDX-License-Identifier: Apache-2.0
"""The lazy images of this node, as the snapshotter uses them: through the daemon."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, Protocol

from firstread.errors import ImageError, NotFoundError
from firstread.node.client import Client, connected
from firstread.node.images import ImageStore
from firstread.node.pulls import Seats
from firstread.oci.reference import parse_reference
from firstread.snapshotter.caller import current
from firstread.snapshotter.directories import usage

HOLDER = "containerd-snapshot-"
WAITING: Final = (64, 32)  # calls at a time that wait for registries; of them, for one registry


class Images(Protocol):
    """Where lazy images come from."""

    def pull(self, reference: str) -> str:
        """Have manifest, config and metadata of an image on this node; return its digest.

        Raises:
            FirstreadError: they cannot be had, or it is not a converted image.
        """

    def usage(self, reference: str) -> tuple[int, int]:
        """Return bytes and inodes that an image takes on this node besides its sectors.

        Those are in a store that all images share, with a limit of its own.
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

    What the daemon does for a caller that has gone, it ends.

    Args:
        root: of the daemon.
        run_dir: of the daemon.
        access: how registries are reached, as the daemon takes it; {} for as it was told itself.
    """

    def __init__(self, root: Path, run_dir: Path, access: dict[str, Any] | None = None) -> None:
        self._root, self._run_dir = root, run_dir
        self._access = access or {}
        self._waiting = Seats(*WAITING)

    def pull(self, reference: str) -> str:
        return str(self._have(reference, Client.pull)["digest"])

    def usage(self, reference: str) -> tuple[int, int]:
        digest = parse_reference(reference).digest or ""
        return usage(ImageStore(self._root, tidy=False).metadata_path(digest).parent)

    def mount(self, reference: str, snapshot: int) -> Path:
        holder = f"{HOLDER}{snapshot}"
        return Path(
            self._have(reference, Client.mount, directory=None, holder=holder)["mountpoint"]
        )

    def _have(self, image: str, ask: Callable[..., Any], **request: Any) -> Any:
        """Ask the daemon for an image; what is on this node needs no seat among those that wait."""
        request |= {"image": image, "access": self._access}
        with self._asked() as daemon:
            with contextlib.suppress(NotFoundError, ImageError):
                return ask(daemon, policy="never", **request)
            with self._waiting.taken(parse_reference(image).host):
                return ask(daemon, policy="missing", **request)

    @contextlib.contextmanager
    def _asked(self) -> Iterator[Client]:
        """Give the daemon, to be asked in the block for as long as the caller waits."""
        daemon = connected(self._root, self._run_dir)
        with current().waiting(daemon.hang_up):
            yield daemon

    def release(self, snapshot: int) -> None:
        connected(self._root, self._run_dir).release(f"{HOLDER}{snapshot}")

    def held(self) -> set[int]:
        if not Client(self._run_dir).alive() and not any((self._root / "mounts").glob("*.json")):
            return set()  # no reason to start one
        status = connected(self._root, self._run_dir).get("/status")
        holders = [holder for mount in status["mounts"] for holder in mount["holders"]]
        return {int(h.removeprefix(HOLDER)) for h in holders if h.startswith(HOLDER)}
