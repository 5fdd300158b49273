# SPDX-License-Identifier: Apache-2.0
"""The process of the snapshotter: composes its parts, and runs until SIGTERM."""

from __future__ import annotations

import fcntl
import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from firstread.control.metricaddress import check_address
from firstread.control.metricfamily import Families
from firstread.control.metricserver import serve_metrics
from firstread.daemon.systemd import notify
from firstread.errors import FirstreadError, NodeError, from_os_error
from firstread.mounts.secrets import no_core_dumps
from firstread.private import private_directory
from firstread.signals import ending_on_signals
from firstread.snapshotter import imagefs, imageservice
from firstread.snapshotter.attachedimages import AttachedImages
from firstread.snapshotter.directories import Directories
from firstread.snapshotter.imagelookup import ImageLookup
from firstread.snapshotter.imageservice import ImageService
from firstread.snapshotter.inflight import PullsInFlight
from firstread.snapshotter.lazyimages import DaemonImages
from firstread.snapshotter.nodepolicy import Policy
from firstread.snapshotter.records import Records
from firstread.snapshotter.service import server_of, start
from firstread.snapshotter.snapshotmetrics import FAMILIES, SnapshotterFacts
from firstread.snapshotter.snapshots import Snapshotter
from firstread.snapshotter.sockets import CONTAINERD, Awaited
from firstread.snapshotter.unpack import Unpacker

log = logging.getLogger("snapshotter")

GRACE_S = 10.0  # for calls in flight at the end
LOOK_S = 1.0  # between looks whether containerd listens


@dataclass(frozen=True)
class Settings:
    """Settings of a snapshotter.

    Args:
        root: of the daemon; records and directories lie below ``snapshotter``.
        run_dir: of the daemon.
        address: the socket for containerd.
        policy: for all images.
        containerd: its socket, for the image lookup.
        metrics: ``HOST:PORT`` for Prometheus, or empty.
        access: to registries, in the daemon's form.
        image_service: socket for the kubelet's image calls, if it is to be served.
    """

    root: Path
    run_dir: Path
    address: Path
    policy: Policy
    containerd: Path = CONTAINERD
    metrics: str = ""
    access: dict[str, Any] = field(default_factory=dict)
    image_service: Path | None = None


def serve(settings: Settings) -> None:
    """Serve until SIGTERM, SIGINT or SIGHUP.

    Raises:
        FirstreadError: the snapshotter cannot start.
    """
    with ending_on_signals() as await_end:
        _serve(settings, await_end)


def _serve(settings: Settings, await_end: Callable[[], None]) -> None:
    home = imagefs.home(settings.root)
    for directory in (settings.root, home):
        private_directory(directory)
    directories = Directories(home / "snapshots")
    lock = _lock(home)
    records = Records(home / "records.db")
    pulls = PullsInFlight()
    images = DaemonImages(settings.root, settings.run_dir, settings.access, pulls)
    snapshotter = Snapshotter(
        records,
        directories,
        images,
        settings.policy,
        AttachedImages(images.pull),
        find_image=ImageLookup(settings.containerd),
        unpack=Unpacker(settings.containerd),
    )
    facts = SnapshotterFacts(snapshotter.fallbacks)
    if settings.metrics:
        check_address(settings.metrics)
        serve_metrics(settings.metrics, Families(FAMILIES, lambda: facts).text)
    try:
        snapshotter.cleanup()
    except FirstreadError as exc:  # ordinary images work without a daemon
        log.warning("cannot remove what the last run left: %s", exc)
    except Exception:  # without a snapshotter containerd starts nothing at all
        log.exception("cannot remove what the last run left")
    servers = [server_of(snapshotter, facts.calls)]
    start(servers[0], settings.address)
    log.info("the snapshotter serves %s", settings.address)
    if settings.image_service is not None:
        no_core_dumps()  # passwords pass
        image_service = ImageService(settings.containerd, pulls, images)
        servers.append(imageservice.server_of(image_service))
        start(servers[1], settings.image_service)
        log.info("CRI's image service is passed on at %s", settings.image_service)
    notify("READY=1")
    name, where = "containerd", (settings.containerd,)
    threading.Thread(target=_look_for, args=where, name=name, daemon=True).start()
    await_end()
    notify("STOPPING=1")
    for stopped in [server.stop(GRACE_S) for server in servers]:
        stopped.wait(2 * GRACE_S)
    records.close()
    os.close(lock)


def _look_for(containerd: Path) -> None:
    """Say once if containerd does not listen at its socket, until it does."""
    awaited = Awaited(containerd, time.monotonic())
    while not awaited.look(time.monotonic()):
        time.sleep(LOOK_S)


def overlay_options() -> tuple[str, ...]:
    """Return the options that overlay mounts need here, by containerd's rules.

    On kernels before 5.11, where firstread does not run, containerd tries ``userxattr`` by a mount.
    """
    options = []
    if not _is_initial_user_namespace():
        options.append("userxattr")  # trusted.* attributes need the initial user namespace
    if Path("/sys/module/overlay/parameters/index").exists():
        options.append("index=off")
    return tuple(options)


def _is_initial_user_namespace() -> bool:
    try:
        return Path("/proc/self/uid_map").read_text().split() == ["0", "0", "4294967295"]
    except OSError:
        return True


def _lock(home: Path) -> int:
    try:
        lock = os.open(home / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        raise NodeError(
            f"another snapshotter uses {home}", hint="choose another --root and --address"
        ) from exc
    except OSError as exc:
        raise from_os_error(exc, "cannot lock the snapshots") from exc
    return lock
