# SPDX-License-Identifier: Apache-2.0
"""The lazy images of this node, which the snapshotter uses through the daemon."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, Final, Protocol

from firstread.cache.imagestore import image_directory
from firstread.control.client import Client, connected
from firstread.errors import ImageError, NotFoundError
from firstread.mounts.pulls import Seats
from firstread.oci.reference import parse_reference
from firstread.registry.credentials import Credentials
from firstread.snapshotter.caller import current
from firstread.snapshotter.directories import usage
from firstread.snapshotter.inflight import PullsInFlight

HOLDER = "containerd-snapshot-"
TOLD_S: Final = 5.0  # for what needs no registry: a kubelet waits for it
WAITING: Final = (64, 32)  # calls at a time that wait for registries; of them, for one registry
EARLY: Final = (32, 16)  # likewise, besides them: questions that nobody waits for yet


class Images(Protocol):
    """Provides lazy images."""

    def pull(self, reference: str) -> str:
        """Bring manifest, config and metadata of an image to this node; return its digest.

        Raises:
            FirstreadError: they cannot be had, or the image is not converted.
        """

    def usage(self, reference: str) -> tuple[int, int]:
        """Return the bytes and inodes of an image on this node, without its sectors.

        All images share the sector store, which has a limit of its own.
        """

    def mount(self, reference: str, snapshot: int) -> Path:
        """Mount an image for a snapshot, until `release`, and return where; repeat it at will.

        Raises:
            FirstreadError: it cannot be mounted.
        """

    def release(self, snapshot: int) -> None:
        """Release the mount of a snapshot, if it has one.

        Raises:
            FirstreadError: the daemon does not answer.
        """

    def drop(self, references: Collection[str]) -> None:
        """Remove images that are not mounted, with the sectors that no other image has.

        Raises:
            FirstreadError: the daemon does not answer.
        """

    def held(self) -> set[int]:
        """Return the snapshots that have a mount.

        Raises:
            FirstreadError: the daemon does not answer.
        """


class DaemonImages:
    """The images of the daemon of a run directory, which is started on demand.

    The daemon ends the work for a caller that has gone.

    Args:
        root: of the daemon.
        run_dir: of the daemon.
        access: to registries, in the daemon's form; {} for the daemon's own settings.
        pulls: in flight, whose credentials the daemon may use meanwhile.
    """

    def __init__(
        self,
        root: Path,
        run_dir: Path,
        access: dict[str, Any] | None = None,
        pulls: PullsInFlight | None = None,
    ) -> None:
        self._root, self._run_dir = root, run_dir
        self._access = access or {}
        self._pulls = pulls or PullsInFlight()
        self._waiting, self._early = Seats(*WAITING), Seats(*EARLY)

    def pull(self, reference: str) -> str:
        return str(self._have(reference, Client.pull, self._waiting)["digest"])

    def foretell(self, image: str) -> None:
        """Have an image of a pull in flight on this node soon; what has its name here will do.

        Args:
            image: as a kubelet names it.

        Raises:
            UnsupportedError: the image is an ordinary one.
            BusyError: there are many such questions already.
            FirstreadError: it cannot be had now.
        """
        self._have(str(parse_reference(image)), Client.pull, self._early, foretold=True)

    def usage(self, reference: str) -> tuple[int, int]:
        digest = parse_reference(reference).digest or ""
        return usage(image_directory(self._root, digest))

    def mount(self, reference: str, snapshot: int) -> Path:
        request = {"directory": None, "holder": f"{HOLDER}{snapshot}"}
        mounted = self._have(reference, Client.mount, self._waiting, **request)
        return Path(mounted["mountpoint"])

    def _have(self, image: str, ask: Callable[..., Any], seats: Seats, **request: Any) -> Any:
        """Ask the daemon for an image; only one that is not on this node needs a seat."""
        request |= {"image": image, "access": self._access, "context": current().context}
        with self._asked() as daemon:
            with contextlib.suppress(NotFoundError, ImageError):
                return ask(daemon, policy="never", **request)
            secrets = [_login(each) for each in self._pulls.secrets(image)]
            with seats.taken(parse_reference(image).host):
                return ask(daemon, policy="missing", pull_secrets=secrets, **request)

    def pulled(self, image: str, credentials: Credentials | None) -> None:
        """Have the daemon keep what a successful pull of an image has shown, if anything.

        Raises:
            FirstreadError: it does not answer, or does not take it.
        """
        login = _login(credentials) if credentials else None
        Client(self._run_dir, TOLD_S).pulled(image=image, login=login)

    def wants_pull(self, image: str) -> bool:
        """Return whether the registry refuses the daemon, and a pull may bring credentials.

        Raises:
            FirstreadError: it does not answer.
        """
        return bool(Client(self._run_dir, TOLD_S).post("/wants-pull", image=image)["wants_pull"])

    @contextlib.contextmanager
    def _asked(self) -> Iterator[Client]:
        """Connect to the daemon, in the block and for as long as the caller waits."""
        daemon = connected(self._root, self._run_dir)
        with current().waiting(daemon.hang_up):
            yield daemon

    def release(self, snapshot: int) -> None:
        connected(self._root, self._run_dir).release(f"{HOLDER}{snapshot}")

    def drop(self, references: Collection[str]) -> None:
        digests = [parse_reference(reference).digest for reference in references]
        connected(self._root, self._run_dir).post("/cache/drop", digests=digests)

    def held(self) -> set[int]:
        if not Client(self._run_dir).alive() and not any((self._root / "mounts").glob("*.json")):
            return set()  # no daemon, no mounts: there is no reason to start one
        status = connected(self._root, self._run_dir).get("/status")
        holders = [holder for mount in status["mounts"] for holder in mount["holders"]]
        return {int(h.removeprefix(HOLDER)) for h in holders if h.startswith(HOLDER)}


def _login(credentials: Credentials) -> dict[str, str]:
    username, password = credentials.given()
    return {"username": username, "password": password}
