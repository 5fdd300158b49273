# SPDX-License-Identifier: Apache-2.0
"""Starts a daemon: collects the descriptors of a supervisor, and becomes the supervisor.

They are new, or come from the previous daemon: from this process (`inherited`), from another one
(`replace`), or from systemd or an anchor if all processes have died.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from firstread.config import Config
from firstread.control.client import Client, socket_path
from firstread.control.daemonlog import daemon_log
from firstread.control.metricaddress import check_address
from firstread.daemon import anchor, systemd
from firstread.daemon.choice import choose
from firstread.daemon.confinement import confine
from firstread.daemon.handover import (
    FIXED,
    Handover,
    Settings,
    all_events,
    become_supervisor,
    move_descriptor,
    raise_fd_limit,
    read_handover,
    reserve,
)
from firstread.daemon.journal import SPARE_FDS, Journal, is_journal, make_journal
from firstread.daemon.kept import of_anchors, of_systemd, release
from firstread.daemon.logs import configure_logging
from firstread.daemon.protocol import BUFFER_FD, GROUP_FD
from firstread.daemon.succession import take_over
from firstread.device.fanotify import Group
from firstread.errors import NodeError, from_os_error
from firstread.mounts.secrets import no_core_dumps, secret_memory
from firstread.private import bind_private, private_directory
from firstread.sectors.sectorstore import SectorStore

log = logging.getLogger("daemon")

DIRECTORIES = ("images", "mounts", "references", "sectors")  # below the root


def serve(
    root: Path,
    run_dir: Path,
    config: Config,
    arguments: list[str],
    *,
    replace: bool = False,
    inherited: int | None = None,
) -> NoReturn:
    """Become a daemon in the foreground.

    Args:
        root: of store, images and mount table.
        run_dir: of the control socket.
        config: of the node.
        arguments: of the command, to start the next version with.
        replace: take the place of the daemon that runs, if one does.
        inherited: descriptor of what the supervisor that this process was has left.

    Raises:
        NodeError: not root, no such kernel or one that reads zeros where data is missing, a store
            that another daemon has, or a daemon that refuses to be replaced.
        UsageError: the address for metrics is none.
    """
    configure_logging(config.node.log_level, daemon_log(run_dir))
    raise_fd_limit()
    no_core_dumps()
    settings = Settings(str(root), str(run_dir), config.to_builtins(), arguments)
    try:
        handover: Handover | None = None
        if inherited is not None:
            handover, _ = read_handover(inherited)
        elif replace:
            handover = take_over(str(run_dir), str(root))
        if handover is None:
            handover = _started(root, run_dir, config)
        if inherited is None:
            for problem in confine():
                log.warning("more privileges than needed: %s", problem)
        become_supervisor(settings, handover)
    except OSError as exc:
        raise from_os_error(exc, "cannot start the daemon") from exc


def _started(root: Path, run_dir: Path, config: Config) -> Handover:
    """Have all descriptors in `FIXED`: what systemd or an anchor has kept, the rest made anew."""
    kept = systemd.kept()
    reserve(kept)
    pairs = of_systemd(kept)
    made = [root / name for name in DIRECTORIES if os.path.lexists(root / name)]
    for directory in (run_dir, root, *made):
        private_directory(directory)
    store = SectorStore(root, filesystems=None)
    if "lock" not in kept:
        store.claim()
        kept["lock"] = store.detach_lock()
    anchors = list(anchor.anchors(str(root)))
    _take_kept(anchors, kept)
    if "listener" not in kept:
        _require_no_other(run_dir)
    if config.node.metrics:
        check_address(config.node.metrics)
    makers: dict[str, Callable[[], int]] = {
        "group": lambda: choose(root, config),
        "listener": lambda: _listen(socket_path(run_dir)),
        "events": make_journal,
        "secrets": secret_memory,
    }
    restored = "group" in kept
    if "events" in kept and not (restored and is_journal(kept["events"])):
        os.close(kept.pop("events"))
    for name, make in makers.items():
        if name not in kept:
            systemd.notify("FDSTOREREMOVE=1", f"FDNAME={name}")
            kept[name] = make()
    for name, number in FIXED.items():
        move_descriptor(kept[name], number)
    if not restored:
        release(pairs)
        return Handover()
    pairs |= of_anchors(anchors, pairs)
    configure_logging(config.node.log_level, daemon_log(run_dir))
    journal = Journal(BUFFER_FD)
    # Only now that each descriptor has its number can files come to lie anywhere.
    held = all_events([], Group(GROUP_FD), journal, anchor.files(str(root), anchors))
    journal.close()
    return Handover(held=held, cause="restored", kept=pairs)


def _take_kept(anchors: list[int], kept: dict[str, int]) -> None:
    """Add to `kept` what anchors have of it."""
    if highest := anchor.highest(anchors):
        raise_fd_limit(highest + SPARE_FDS)
    for name, fd in anchor.descriptors(anchors).items():
        if name in kept:
            os.close(fd)
        else:
            kept[name] = fd


def _require_no_other(run_dir: Path) -> None:
    if Client(run_dir).alive():
        raise NodeError(
            f"a daemon of another --root listens in {run_dir}", hint="choose another --run-dir"
        )


def _listen(path: Path) -> int:
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    bind_private(listener, path)
    listener.listen(128)
    return listener.detach()
