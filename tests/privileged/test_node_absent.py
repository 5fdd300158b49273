# SPDX-License-Identifier: Apache-2.0
"""Clients that have gone, and registries that never finish an answer, hold up nobody else."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from firstread.control.client import Client, socket_path
from firstread.errors import BusyError
from firstread.mounts.network import PULLS
from firstread.sectors.format import LAYER_LABEL
from firstread.snapshotter import containerd_pb2 as api
from firstread.snapshotter.asked import IMAGE, LAYERS, MANIFEST, TARGET
from firstread.snapshotter.lazyimages import WAITING
from firstread.snapshotter.messages import SERVICE, encode
from firstread.snapshotter.service import THREADS
from firstread.testing.command import program
from firstread.testing.daemon import Daemon
from firstread.testing.lazymount import output
from firstread.testing.patience import PATIENCE_S
from firstread.testing.plainimage import PlainImage
from firstread.testing.scripted import ScriptedRegistry
from firstread.testing.snapshots import SnapshotsClient

pytestmark = pytest.mark.privileged

MEDIA = "application/vnd.oci.image.manifest.v1+json"


@pytest.fixture
def endless() -> Iterator[ScriptedRegistry]:
    """A registry whose manifests take for ever."""
    with ScriptedRegistry("GET /manifests/ trickle 1 x*") as registry:
        registry.manifests["1"] = (MEDIA, b" " * 4000)
        yield registry


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a registry that accepts requests and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=2 * PULLS[1]) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


def leave_one(daemon: Daemon, image: str) -> None:
    """Request an image, and hang up."""
    body = json.dumps({"image": image, "access": {}, "policy": "always"}).encode()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(socket_path(daemon.run_dir)))
        client.sendall(b"POST /pull HTTP/1.0\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))


@contextlib.contextmanager
def waiting(daemon: Daemon, images: list[str]) -> Iterator[list[Future[Any]]]:
    """Let one client wait for each image during the block; then they hang up."""
    clients = [Client(daemon.run_dir) for _ in images]
    with ThreadPoolExecutor(len(clients)) as pool:
        asking = [
            pool.submit(client.pull, image=image, access={})
            for client, image in zip(clients, images, strict=True)
        ]
        try:
            yield asking
        finally:
            for client in clients:
                client.hang_up()
        assert all(future.exception(PATIENCE_S) for future in asking)


def threads(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/task"))


def test_clients_that_hung_up_leave_nothing_and_many_pull_once(
    daemon: Daemon, plain: tuple[str, PlainImage], endless: ScriptedRegistry
) -> None:
    fetcher = daemon.fetcher
    idle = threads(fetcher)
    image = f"{endless.host}/bad/x:1"
    for _ in range(40):
        leave_one(daemon, image)
    with contextlib.suppress(subprocess.TimeoutExpired):
        command = program("mount", image, str(daemon.scratch), *daemon._places())
        subprocess.run(command, check=False, timeout=2)  # killed while it waits
    daemon.wait(lambda: threads(fetcher) <= idle)

    before = len(endless.asked("/manifests/"))
    with waiting(daemon, [image] * 40) as asking:
        daemon.wait(lambda: threads(fetcher) > len(asking))
        daemon.wait(lambda: len(endless.asked("/manifests/")) > before)
        assert len(endless.asked("/manifests/")) == before + 1
        place = daemon.mount(plain[0], "other")
        assert output(daemon.reading(place / "f0")) == plain[1].summary(0)
        assert daemon.run("umount", place).code == 0
    daemon.wait(lambda: threads(fetcher) <= idle)


def test_one_registry_gets_only_a_share_of_the_pulls(
    daemon: Daemon, silent: str, plain: tuple[str, PlainImage]
) -> None:
    fetcher = daemon.fetcher
    idle = threads(fetcher)
    images = [f"{silent}/bad/x{number}:1" for number in range(PULLS[1] + 10)]
    with waiting(daemon, images) as asking:
        daemon.wait(lambda: sum(future.done() for future in asking) == 10)
        refused = [future.exception() for future in asking if future.done()]
        assert {type(error) for error in refused} == {BusyError}
        assert f"{PULLS[1]} pulls wait for {silent} already" in str(refused[0])
        place = daemon.mount(plain[0], "other")
        assert daemon.run("umount", place).code == 0  # its idle workers would wait for more
    daemon.wait(lambda: threads(fetcher) <= idle)


@contextlib.contextmanager
def snapshotter(daemon: Daemon) -> Iterator[SnapshotsClient]:
    address = daemon.scratch / "s.sock"
    places = ("--address", str(address), "--containerd", str(daemon.scratch / "none.sock"))
    command = program("snapshotter", *places, *daemon._places())
    with (daemon.scratch / "snapshotter.log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        with SnapshotsClient(address) as client:
            yield client
    finally:
        process.terminate()
        assert process.wait(timeout=PATIENCE_S) == 0


def layer(number: int, host: str) -> api.PrepareRequest:
    chain = f"sha256:{number:064x}"
    labels = {
        TARGET: chain,
        IMAGE: f"{host}/bad/x:1",
        MANIFEST: "sha256:" + "a" * 64,
        LAYERS: "sha256:" + "b" * 64,
        LAYER_LABEL: "metadata",
    }
    return api.PrepareRequest(key=f"extract-{number} {chain}", labels=labels)


def test_calls_that_wait_for_a_registry_leave_threads_to_the_others(
    daemon: Daemon, endless: ScriptedRegistry
) -> None:
    fetcher = daemon.fetcher
    idle = threads(fetcher)
    with snapshotter(daemon) as client:
        prepare = client._channel.unary_unary(f"/{SERVICE}/Prepare", encode)
        calls = [prepare.future(layer(number, endless.host)) for number in range(THREADS + 20)]
        daemon.wait(lambda: sum(call.done() for call in calls) == len(calls) - WAITING[1])
        refused = [call.code() for call in calls if call.done()]
        assert set(refused) == {grpc.StatusCode.UNAVAILABLE}
        client.prepare("ordinary")
        client.remove("ordinary")
        assert len(endless.asked("/manifests/")) == 1
        for call in calls:
            call.cancel()
        daemon.wait(lambda: threads(fetcher) <= idle)
        assert [record.name for record in client.walk()] == []
