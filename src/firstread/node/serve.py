# SPDX-License-Identifier: Apache-2.0
"""The process of the fetcher: started by the supervisor, ended by it or by accident.

Owns the composition of a node and the event loop: requests in, heartbeats out. The loop is the
heartbeat's thread, so a loop that hangs shows. If the supervisor goes away, this process takes its
place. If another fetcher takes its own, it answers the commands that it has and ends; reads that
wait are the supervisor's, and the next fetcher gets them.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, NoReturn

from firstread import __version__
from firstread.config import Config
from firstread.device.fanotify import Group
from firstread.errors import FirstreadError
from firstread.memory import keep_large_buffers
from firstread.node import anchor
from firstread.node.control import ControlServer
from firstread.node.fetcher import Fetcher
from firstread.node.handover import (
    Handover,
    Settings,
    all_events,
    become_supervisor,
    raise_fd_limit,
)
from firstread.node.journal import Journal, most_waiting
from firstread.node.logfile import daemon_log
from firstread.node.logs import configure_logging
from firstread.node.metrics import NodeMetrics
from firstread.node.metricserver import serve_metrics
from firstread.node.namespace import mount_namespace
from firstread.node.network import Network
from firstread.node.node import Node
from firstread.node.secrets import SecretMemory
from firstread.node.wire import (
    BUFFER_FD,
    GROUP_FD,
    LISTENER_FD,
    SECRETS_FD,
    Order,
    receive_request,
    send_answered,
)
from firstread.sectors.store import SectorStore

log = logging.getLogger("serve")

HEARTBEAT_S = 1.0
SHORT_S = 0.2  # before another attempt, when too many files are open
DRAIN_S = 30.0  # for commands to be answered before a fetcher retires


def main(arguments: dict[str, Any]) -> None:
    """Serve until the supervisor says otherwise.

    Args:
        arguments: ``settings``, ``channel`` (descriptor), ``supervisor`` (what status tells of it),
            ``restarts``, ``standby``: load everything, and wait for the order to start.
    """
    settings = Settings(**arguments["settings"])
    config = Config.from_builtins(settings.config)
    configure_logging(settings.log_level, daemon_log(Path(settings.run_dir)))
    open_files = raise_fd_limit()
    keep_large_buffers()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal: the supervisor's business
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    threading.excepthook = end_with_thread
    channel = socket.socket(fileno=arguments["channel"])
    if arguments.get("standby"):
        arguments |= _await_start(channel)
    store = SectorStore(Path(settings.root))
    group = Group(GROUP_FD)
    workers, limits, policy = config.node.workers, config.cache, config.policy
    fetcher = Fetcher(
        store,
        group,
        channel,
        workers=workers,
        policy=policy,
        limits=limits,
        most_waiting=most_waiting(open_files),
    )
    root, run_dir = Path(settings.root), Path(settings.run_dir)
    network = Network(config.registry, SecretMemory(SECRETS_FD), fetcher.feed)
    node = Node(root, run_dir, store, fetcher, policy, network, verify=limits.verify)
    node.recover()
    fetcher.cache.start()

    def complete(status: dict[str, Any]) -> dict[str, Any]:
        status["supervisor"] = arguments["supervisor"]
        status["namespace"] = mount_namespace()
        status["configuration"] = {
            "file": settings.config_file(),
            "registry": settings.config["registry"],
        }
        status["fetcher"] = {
            "pid": os.getpid(),
            "version": __version__,
            "restarts": arguments["restarts"],
            "healthy": True,
            "waiting_reads": fetcher.waiting(),
        }
        return status

    metrics = NodeMetrics(lambda: complete(node.status()))
    if config.node.metrics:
        try:
            serve_metrics(config.node.metrics, metrics.text)
        except FirstreadError as exc:
            log.warning("no metrics over TCP: %s", exc)  # reads are more important
    server = ControlServer(
        socket.socket(fileno=LISTENER_FD), node, fetcher.feed, complete, metrics.text
    )
    threading.Thread(target=server.serve_forever, name="control", daemon=True).start()
    _loop(channel, fetcher, server, arguments)
    _take_place(settings, fetcher, arguments)


def _await_start(channel: socket.socket) -> dict[str, Any]:
    """Say that all is loaded; return what the order to start says."""
    send_answered(channel)
    while (order := receive_request(channel)) is not None:
        if isinstance(order, Order) and order.what == "start":
            return order.details
    os._exit(0)  # the supervisor is gone, and the fetcher that serves takes its place


def _loop(
    channel: socket.socket, fetcher: Fetcher, server: ControlServer, arguments: dict[str, Any]
) -> None:
    """Handle requests until the supervisor is gone; end if another fetcher is to go on."""
    channel.settimeout(HEARTBEAT_S)
    beat, retire_at, is_short = 0.0, None, False
    while True:
        now = time.monotonic()
        if now - beat >= HEARTBEAT_S:
            with contextlib.suppress(OSError):  # what a dead supervisor has sent must still be read
                send_answered(channel)
            fetcher.expire()
            beat = now
        if retire_at is not None and (server.retired() or now > retire_at):
            fetcher.freeze()
            os._exit(0)
        try:
            request = receive_request(channel)
        except TimeoutError:
            continue
        except OSError as exc:
            if not is_short:
                log.warning("reads wait: %s", exc)
            is_short = True
            time.sleep(SHORT_S)
            continue
        is_short = False
        if request is None:
            return
        if not isinstance(request, Order):
            fetcher.handle(request)
        elif request.what == "inform":
            arguments |= request.details
        elif request.what == "retire":
            server.retire()  # commands that come from now on wait for the next fetcher
            retire_at = now + DRAIN_S
            channel.settimeout(0.01)


def _take_place(settings: Settings, fetcher: Fetcher, arguments: dict[str, Any]) -> NoReturn:
    """Become the supervisor in place of the one that has died."""
    held = fetcher.freeze()
    # If the installation is being changed just now, or broken, the reads wait until it is whole:
    # with this process the group would be lost.
    check = [sys.executable, "-c", "import firstread.node.supervisor"]
    while subprocess.run(check, stdin=subprocess.DEVNULL, check=False).returncode:
        log.critical("the supervisor is gone, and the installation of firstread is broken")
        time.sleep(1.0)
    journal = Journal(BUFFER_FD)
    root, known = settings.root, [request.number for request in held]
    files = anchor.files(root, anchor.anchors(root), known)
    held = all_events(held, Group(GROUP_FD), journal, files)
    upgrades = arguments["supervisor"].get("upgrades", 0)
    restarts = arguments["restarts"]
    become_supervisor(settings, Handover(held, "fetcher", restarts, upgrades))


def end_with_thread(failure: threading.ExceptHookArgs) -> None:
    """End the process with the first of its threads that fails: a `threading.excepthook`.

    Reads may wait for what the thread had in hand, and nobody else would ever answer them. The next
    fetcher is given their events anew.
    """
    error = failure.exc_value
    log.critical("the fetcher ends, a thread of it failed: %s", error, exc_info=error)
    os._exit(1)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
