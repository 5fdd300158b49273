# SPDX-License-Identifier: Apache-2.0
"""The process of the fetcher: started by the supervisor, ended by it or by accident.

Owns the composition of a node and the event loop: reads in, heartbeats out. The loop sends the
heartbeats, so a loop that hangs shows. If the supervisor dies, this process becomes the supervisor.
If another fetcher takes over, this one finishes its commands and ends; the supervisor keeps the
reads that wait, and gives them to the next fetcher.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from msgspec import convert, structs

from firstread import __version__
from firstread.config import Config
from firstread.control.daemonlog import daemon_log
from firstread.control.daemonstatus import (
    ConfigurationStatus,
    FetcherStatus,
    Status,
    SupervisorStatus,
)
from firstread.control.metrics import NodeMetrics
from firstread.control.metricserver import serve_metrics
from firstread.control.namespace import mount_namespace
from firstread.control.server import ControlServer
from firstread.daemon import anchor, systemd
from firstread.daemon.choice import Kind, Served, chosen, kind_of, proof_of
from firstread.daemon.handover import (
    Handover,
    Settings,
    all_events,
    become_supervisor,
    raise_fd_limit,
    read_document,
)
from firstread.daemon.journal import Journal, most_waiting
from firstread.daemon.logs import configure_logging
from firstread.daemon.process import why_broken
from firstread.daemon.protocol import (
    BUFFER_FD,
    GROUP_FD,
    LISTENER_FD,
    SECRETS_FD,
    Drop,
    Keep,
    Order,
    receive_requests,
    send_answered,
    send_held,
    set_patience,
)
from firstread.daemon.spanexporter import SpanExporter, is_installed, wants_traces
from firstread.daemon.tracecollector import Collector
from firstread.device.base import Device, Pair, Read, ServedDevice, no_ranges
from firstread.device.fanotify import Group
from firstread.device.fusedevice import FIRST_NUMBER
from firstread.device.sizes import Sizes
from firstread.errors import FirstreadError
from firstread.fetch.fetcher import Fetcher
from firstread.memory import keep_large_buffers
from firstread.mounts.network import Network
from firstread.mounts.node import Node
from firstread.mounts.nodestatus import NodeStatus
from firstread.mounts.puller import prepare
from firstread.mounts.secrets import SecretMemory
from firstread.sectors.sectorstore import SectorStore

log = logging.getLogger("serve")

HEARTBEAT_S = 1.0
SHORT_S = 0.2  # before another attempt, when too many files are open
DRAIN_S = 30.0  # for commands to be answered before a fetcher retires
MOST_UNTOLD = 64  # answered reads that the supervisor does not know of
SETTLE_S = 1.0  # for answers to reach the kernel then
_RETIRING_S = 0.01  # between two looks whether they are


def main(arguments: dict[str, Any]) -> None:
    """Serve until the supervisor says otherwise.

    Args:
        arguments: ``settings``, ``channel`` and ``sizes`` (descriptors), ``supervisor`` (what
            status tells of it), ``restarts``, ``standby``: load everything, and wait for the order
            to start; ``kept``: descriptor of a document, the descriptors of mounts by device.
    """
    settings = Settings(**arguments["settings"])
    configure_logging(settings.log_level, daemon_log(Path(settings.run_dir)))
    keep_large_buffers()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal: the supervisor's business
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    threading.excepthook = end_with_thread
    channel = socket.socket(fileno=arguments["channel"])
    kept = read_document(arguments["kept"])
    arguments["kept"] = {int(device): (a, b) for device, (a, b) in kept.items()}
    if arguments.get("standby"):
        arguments |= _await_start(channel, arguments["kept"])
    process = FetcherServer(settings, channel, arguments)
    signal.signal(signal.SIGTERM, lambda *_: process.stop())
    process.serve()
    process.succeed()


def _await_start(channel: socket.socket, kept: dict[int, Pair]) -> dict[str, Any]:
    """Say that all is loaded; return what the order to start says. Keeps `kept` up to date."""
    send_answered(channel)
    while (order := receive_requests(channel)) is not None:
        if isinstance(order, Keep | Drop):
            for fd in kept.pop(order.device, ()):
                os.close(fd)
        if isinstance(order, Keep):
            if order.pair is None:
                raise OSError(errno.EMFILE, "no room for the descriptors of a mount")
            kept[order.device] = order.pair
        if isinstance(order, Order) and order.what == "start":
            return order.details
    os._exit(0)  # the supervisor is gone, and the fetcher that serves takes its place


class FetcherServer:
    """A node, and the loop that serves it.

    Args:
        settings: of the daemon.
        channel: to the supervisor.
        arguments: of `main`.
    """

    def __init__(
        self, settings: Settings, channel: socket.socket, arguments: dict[str, Any]
    ) -> None:
        self._settings, self._channel, self._arguments = settings, channel, arguments
        self._thread = threading.get_ident()
        self._answered: list[int] = []  # by this thread, and the supervisor does not know
        self._served: ServedDevice | None = None  # the device, if it is such
        self._sizes = Sizes(arguments["sizes"])
        os.close(arguments["sizes"])
        self._most = most_waiting(raise_fd_limit())
        self._fetcher, node = self._compose()
        self._server = self._listen(node)
        self._retire_at = math.inf

    def _compose(self) -> tuple[Fetcher, Node]:
        """Make what answers reads and commands, and serve the mounts that stand."""
        root, run_dir = Path(self._settings.root), Path(self._settings.run_dir)
        config = Config.from_builtins(self._settings.config)
        self._device = chosen()
        kind = kind_of(self._device.name)
        store = SectorStore(root, filesystems=kind.filesystems)
        device = self._make_device(kind, store)
        fetcher = Fetcher(
            store,
            device,
            self._tell,
            workers=config.node.workers,
            policy=config.policy,
            limits=config.cache,
            prefetch=config.prefetch,
            most_waiting=self._most,
        )
        fetcher.presence.sizes = self._sizes
        if self._served is not None:
            self._served.ask, self._served.covers = fetcher.handle, self._sizes.covers
        network = Network(config.registry, SecretMemory(SECRETS_FD), fetcher.feed)
        verify = config.cache.verify
        node = Node(
            root,
            run_dir,
            store,
            fetcher,
            config.policy,
            network,
            verify=verify,
            prefetch=config.prefetch.mode,
            proof=proof_of(kind, root),
        )
        node.recover()
        fetcher.cache.evictor.start()
        if config.trace.collect and device.capabilities.asks_for_sectors:
            log.warning("no traces are collected: %s", no_ranges())
        elif config.trace.collect:
            Collector(fetcher, root, Path(config.trace.collect)).start()
        if wants_traces(os.environ) and not is_installed():
            log.warning("no traces of starts: pip install 'firstread[otel]'")
        elif wants_traces(os.environ):
            exporter = SpanExporter()
            exporter.start()
            node.on_start = exporter.put
        return fetcher, node

    def _make_device(self, kind: Kind, store: SectorStore) -> Device:
        served = Served(self._arguments["kept"], self._keep, self._drop, self._most)
        device = kind.make(store, served)
        self._served = device if isinstance(device, ServedDevice) else None
        if self._served is not None:
            self._served.patience_s = self._settings.config["node"]["anchor_s"]
        return device

    def _keep(self, device: int, pair: Pair) -> None:
        """Have the supervisor hold descriptors of a mount.

        One that is gone need not know: `succeed` passes on what there is.

        Raises:
            OSError: it is too busy to take them.
        """
        try:
            send_held(self._channel, Keep(device, pair))
        except OSError as exc:
            if exc.errno not in (errno.EPIPE, errno.ECONNRESET):
                raise

    def _drop(self, device: int) -> None:
        with contextlib.suppress(OSError):  # the next fetcher finds it dead
            send_held(self._channel, Drop(device))

    def _listen(self, node: Node) -> ControlServer:
        """Answer commands from now on."""
        address = self._settings.config["node"]["metrics"]
        metrics = NodeMetrics(lambda: self._complete(node.status()))
        if address:
            try:
                serve_metrics(address, metrics.text)
            except FirstreadError as exc:
                log.warning("no metrics over TCP: %s", exc)  # reads are more important
        listener = socket.socket(fileno=LISTENER_FD)
        server = ControlServer(listener, node, self._fetcher.feed, self._complete, metrics.text)
        threading.Thread(target=server.serve_forever, name="control", daemon=True).start()
        threading.Thread(target=prepare, name="pulls", daemon=True).start()
        return server

    def _complete(self, status: NodeStatus) -> Status:
        """Add to a status what only this process knows."""
        settings, arguments = self._settings, self._arguments
        return Status(
            **structs.asdict(status),
            supervisor=convert(arguments["supervisor"], SupervisorStatus),
            device=structs.replace(self._device, wanted=settings.config["node"]["device"]),
            namespace=mount_namespace(),
            configuration=ConfigurationStatus(
                settings.config_file(),
                settings.config["registry"],
                settings.anchor_s if settings.waits_on_stop else 0.0,
            ),
            fetcher=FetcherStatus(
                pid=os.getpid(),
                version=__version__,
                restarts=arguments["restarts"],
                healthy=True,
                waiting_reads=self._fetcher.waiting(),
            ),
        )

    # -- the loop ------------------------------------------------------------------------------

    def serve(self) -> None:
        """Handle requests until the supervisor is gone; end if another fetcher is to go on."""
        set_patience(self._channel, HEARTBEAT_S)
        beat, is_short = 0.0, False
        while True:
            now = time.monotonic()
            if now - beat >= HEARTBEAT_S:
                self._beat()
                beat = now
            if self._retire_at < math.inf and (self._server.retired() or now > self._retire_at):
                self._retire()
            try:
                came = receive_requests(self._channel, waits=not self._answered)
            except TimeoutError:
                self._tell_answered()
                continue
            if came is None:
                return
            if not isinstance(came, list):
                self._obey(came)
                continue
            for read in came:
                if read.fd >= 0:
                    self._fetcher.handle(read)
            lost = [read for read in came if read.fd < 0]
            if lost:
                self._ask_again(lost, quietly=is_short)
            is_short = bool(lost)
            if len(self._answered) >= MOST_UNTOLD:
                self._tell_answered()

    def _ask_again(self, lost: Sequence[Read], *, quietly: bool) -> None:
        """Have reads sent again whose descriptors were lost: too many files are open."""
        if not quietly:
            log.warning("reads wait: too many files are open")
        time.sleep(SHORT_S)
        self._answered += [~read.number for read in lost]
        self._tell_answered()

    def _tell(self, numbers: Sequence[int]) -> None:
        """Tell the supervisor that reads are answered; what the loop answers, once for a burst.

        It knows none that a device of ours has asked for.
        """
        numbers = [number for number in numbers if number < FIRST_NUMBER]
        if not numbers:
            return
        if threading.get_ident() == self._thread:
            self._answered += numbers
        else:
            send_answered(self._channel, numbers)

    def _tell_answered(self) -> None:
        if self._answered:
            numbers, self._answered = self._answered, []
            try:
                send_answered(self._channel, numbers)
            except OSError:  # it is too busy to read, or gone
                self._answered = numbers

    def _beat(self) -> None:
        with contextlib.suppress(OSError):  # what a dead supervisor has sent must still be read
            send_answered(self._channel)
        self._sizes.tidy()
        self._fetcher.count_answered()
        self._fetcher.expire()

    def _retire(self) -> NoReturn:
        self._fetcher.freeze()
        if self._served is not None:
            self._served.settle(SETTLE_S)
        os._exit(0)

    def stop(self) -> None:
        """End, in a thread: what a signal has interrupted may hold a lock."""
        threading.Thread(target=self._stop, name="stop", daemon=True).start()

    def _stop(self) -> NoReturn:
        waits = systemd.listens() or self._settings.waits_on_stop
        if self._served is not None and not waits:
            self._served.let_fail()
        os._exit(0)

    def _obey(self, order: Order | Keep | Drop) -> None:
        if isinstance(order, Keep):  # for a standby
            for fd in order.pair or ():
                os.close(fd)
        if not isinstance(order, Order):
            return
        if order.what == "inform":
            self._arguments |= order.details
        elif order.what == "retire":
            self._server.retire()  # commands that come from now on wait for the next fetcher
            self._retire_at = time.monotonic() + DRAIN_S
            set_patience(self._channel, _RETIRING_S)

    def succeed(self) -> NoReturn:
        """Become the supervisor, because it has died."""
        held = [read for read in self._fetcher.freeze() if read.number < FIRST_NUMBER]
        # If the installation is being changed just now, or broken, the reads wait until it is
        # whole: with this process the group would be lost.
        while why := why_broken("firstread.daemon.supervisor"):
            log.critical("the supervisor is gone, and cannot be started again: %s", why)
            time.sleep(1.0)
        journal = Journal(BUFFER_FD)
        for number in self._answered:
            journal.remove(number)
        root, known = self._settings.root, [request.number for request in held]
        files = anchor.files(root, anchor.anchors(root), known)
        held = all_events(held, Group(GROUP_FD), journal, files)
        upgrades = self._arguments["supervisor"].get("upgrades", 0)
        kept = self._served.pairs() if self._served is not None else {}
        handover = Handover(held, "fetcher", self._arguments["restarts"], upgrades, kept=kept)
        become_supervisor(self._settings, handover)


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
