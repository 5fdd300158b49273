# SPDX-License-Identifier: Apache-2.0
"""The control socket and its client, with a node that only remembers."""

from __future__ import annotations

import contextlib
import errno
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from firstread.cli.options import check_lazy
from firstread.control.boundedthreads import PAUSE_S, BoundedThreadsMixIn
from firstread.control.client import Client, connected, socket_path
from firstread.control.server import MAX_CONNECTIONS, MAX_LONG, ControlServer
from firstread.errors import (
    AuthError,
    BusyError,
    FirstreadError,
    ImageError,
    NodeError,
    UsageError,
)
from firstread.fetch.policy import AS_CONFIGURED, Asked
from firstread.fetch.stats import Feed
from firstread.mounts.node import Node
from firstread.mounts.nodestatus import Mounted, Steps
from firstread.mounts.pulls import PATIENT, GoneError, Waiting
from firstread.registry.access import Access
from firstread.testing.patience import PATIENCE_S
from firstread.testing.shortage import no_threads
from firstread.units import MiB


def mounted(mountpoint: str, config: str = "") -> Mounted:
    return Mounted(mountpoint, "sha256:0", {"x": config}, "fanotify", 1, Steps(0.0, 0.0, 0.0))


class Remembering(Node):
    """A node that does nothing but what a test tells it."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.error: Exception | None = None

    def _note(self, *call: Any) -> None:
        self.calls.append(call)
        if self.error is not None:
            raise self.error

    def mount(
        self,
        name: str,
        directory: str | None,
        access: Access,
        *,
        policy: str = "missing",
        holder: str = "",
        asked: Asked = AS_CONFIGURED,
        command: str = "",
        waiter: Waiting = PATIENT,
        context: str = "",
    ) -> Mounted:
        self.asked, self.command = asked, command
        self._note("mount", name, directory, access, policy, holder)
        return mounted(directory or "")

    def umount(self, directory: str, *, lazy: bool = False) -> None:
        self._note("umount", directory, lazy)

    def holds(self, holder: str) -> bool:
        return holder == "long ago"

    def release(self, holder: str) -> None:
        self._note("release", holder)

    def pin(self, directory: str) -> None:
        self._note("pin", directory)

    def status(self) -> Any:
        self._note("status")
        return {"mounts": []}


def with_more(status: Any) -> object:
    return {**status, "more": 1}


class Peer:
    """A server, its node, and a client of it."""

    def __init__(self, run_dir: Path) -> None:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(socket_path(run_dir)))
        listener.listen()
        self.node, self.feed = Remembering(), Feed()
        self.client = Client(run_dir)
        self.metrics = b"m 1\n"
        self.server = ControlServer(listener, self.node, self.feed, with_more, lambda: self.metrics)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    def idle(self) -> bool:
        return not self.server._unanswered

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.socket.close()


def wait_for(condition: Callable[[], object]) -> None:
    for _ in range(int(PATIENCE_S * 100)):
        if condition():
            return
        time.sleep(0.01)
    pytest.fail("it does not happen")


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[Peer]:
    running = Peer(tmp_path)
    yield running
    running.close()


def test_a_server_retires_beside_a_client_that_reads_no_metrics(peer: Peer, tmp_path: Path) -> None:
    peer.metrics = b"m 1\n" * MiB  # more than its socket takes
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as slow:
        slow.connect(str(socket_path(tmp_path)))
        slow.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        assert slow.recv(1) == b"H"
        peer.server.retire()
        wait_for(peer.server.retired)


def test_requests_become_calls(peer: Peer) -> None:
    access = {"plain_http": True}
    answer = peer.client.post("/mount", image="i", directory="/d", policy="always", access=access)
    assert answer["mountpoint"] == "/d"
    assert peer.client.post("/umount", directory="/d", lazy=True) == {}
    peer.client.post("/release", holder="h")
    peer.client.post("/pin", directory="/d")
    assert peer.node.calls == [
        ("mount", "i", "/d", Access(plain_http=True), "always", ""),
        ("umount", "/d", True),
        ("release", "h"),
        ("pin", "/d"),
    ]


def test_policies_are_asked_for_with_a_mount(peer: Peer) -> None:
    policies = {"stall_s": 3, "on_corruption": "fail", "from_a_later_version": 1}
    peer.client.post("/mount", image="i", directory="/d", policies=policies)
    assert peer.node.asked == Asked(3.0, "fail", None)
    with pytest.raises(UsageError, match="stall_s"):
        peer.client.post("/mount", image="i", directory="/d", policies={"stall_s": "long"})


def test_a_daemon_that_does_not_say_how_it_mounts_is_not_taken_for_lazy(peer: Peer) -> None:
    answer = peer.client.post("/mount", image="i", directory="/d", policies={"require": "lazy"})
    check_lazy(answer, {"require": "lazy"})
    older = {name: value for name, value in answer.items() if name != "device"}
    check_lazy(older, {})
    for unsure in (older, {**answer, "device": "copy"}):
        with pytest.raises(NodeError, match="does not say that the mount is lazy"):
            check_lazy(unsure, {"require": "lazy"})


def test_status_and_metrics(peer: Peer) -> None:
    assert peer.client.alive()
    assert peer.client.get("/status") == {"mounts": [], "more": 1}
    assert peer.client.text("/metrics") == "m 1\n"


@pytest.mark.parametrize("kind", [UsageError, ImageError, AuthError, NodeError, FirstreadError])
def test_errors_arrive_as_what_they_were(peer: Peer, kind: type[FirstreadError]) -> None:
    peer.node.error = kind("went wrong", hint="do this", image="i", layer="sha256:1")
    with pytest.raises(kind) as caught:
        peer.client.post("/pin", directory="/d")
    assert type(caught.value) is kind
    assert str(caught.value) == str(peer.node.error)
    assert caught.value.hint == "do this"
    assert caught.value.exit_code == kind.exit_code


def test_a_defect_is_an_error_and_the_server_goes_on(peer: Peer) -> None:
    peer.node.error = ZeroDivisionError("oops")
    with pytest.raises(FirstreadError, match="internal error: oops"):
        peer.client.post("/pin", directory="/d")
    peer.node.error = None
    assert peer.client.post("/pin", directory="/d") == {}


@pytest.mark.parametrize(
    "data",
    [
        b"POST /pin HTTP/1.0\r\nContent-Length: 2\r\n\r\n{}",
        b"POST /pin HTTP/1.0\r\nContent-Length: 2\r\n\r\n[]",
        b"POST /pin HTTP/1.0\r\nContent-Length: 1\r\n\r\n{",
        b"POST /pin HTTP/1.0\r\nContent-Length: 9999999\r\n\r\n",
        b'POST /mount HTTP/1.0\r\nContent-Length: 28\r\n\r\n{"image": "i", "access": "x"}',
        b"POST /nothing HTTP/1.0\r\nContent-Length: 0\r\n\r\n",
        b"GET /nothing HTTP/1.0\r\n\r\n",
    ],
)
def test_a_wrong_request_is_refused(peer: Peer, tmp_path: Path, data: bytes) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(str(socket_path(tmp_path)))
        connection.sendall(data)
        assert connection.recv(1000).startswith(b"HTTP/1.1 400")
    assert peer.node.calls == []


def test_a_mount_whose_asker_has_gone_is_released(peer: Peer, tmp_path: Path) -> None:
    body = b'{"image": "i", "holder": "h"}'
    gone = threading.Event()

    class Slow(Remembering):
        def mount(self, *args: Any, **options: Any) -> Mounted:
            gone.wait(5)
            return mounted("/there", "x" * 1_000_000)

    peer.server.node = node = Slow()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(str(socket_path(tmp_path)))
        head = f"POST /mount HTTP/1.0\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
    gone.set()
    for _ in range(500):
        if node.calls:
            break
        threading.Event().wait(0.01)
    assert node.calls == [("release", "h")]


def call_and_leave(run_dir: Path, path: str, **request: Any) -> None:
    """Send a request, and hang up."""
    body = json.dumps(request).encode()
    raw(
        run_dir,
        b"POST %s HTTP/1.0\r\nContent-Length: %d\r\n\r\n%s" % (path.encode(), len(body), body),
    ).close()


class Slow(Remembering):
    """A node that mounts whatever comes, after its client has gone."""

    def __init__(self) -> None:
        super().__init__()
        self.left = threading.Event()

    def mount(self, *args: Any, **options: Any) -> Mounted:
        with contextlib.suppress(GoneError):
            while True:
                options["waiter"].check()
                time.sleep(0.01)
        self.left.set()
        return mounted("/there", "x" * 1_000_000)


@pytest.mark.parametrize(
    ("request_", "call"),
    [
        ({"directory": "/d"}, ("umount", "/there", False)),
        ({"holder": "new"}, ("release", "new")),
    ],
)
def test_a_mount_for_a_client_that_has_gone_is_undone(
    peer: Peer, tmp_path: Path, request_: dict[str, str], call: tuple[Any, ...]
) -> None:
    peer.server.node = node = Slow()
    call_and_leave(tmp_path, "/mount", image="i", **request_)
    wait_for(lambda: node.calls)
    assert node.calls == [call]


def test_a_holder_that_had_the_mount_before_keeps_it(peer: Peer, tmp_path: Path) -> None:
    peer.server.node = node = Slow()
    call_and_leave(tmp_path, "/mount", image="i", holder="long ago")
    assert node.left.wait(PATIENCE_S)
    wait_for(peer.idle)
    assert node.calls == []


@pytest.mark.parametrize("path", ["/mount", "/pull"])
def test_a_client_that_hangs_up_is_noticed_while_it_is_waited_for(
    peer: Peer, tmp_path: Path, path: str
) -> None:
    noticed = threading.Event()

    class Pulling(Remembering):
        def mount(self, *args: Any, **options: Any) -> Any:
            return self.pull(*args, **options)

        def pull(self, *args: Any, **options: Any) -> Any:
            try:
                while True:
                    options["waiter"].check()
                    time.sleep(0.01)
            except GoneError:
                noticed.set()
                raise

    peer.server.node = Pulling()
    call_and_leave(tmp_path, path, image="docker.io/library/i")
    assert noticed.wait(PATIENCE_S)
    wait_for(peer.idle)


def test_a_client_that_only_sends_nothing_more_is_answered(peer: Peer, tmp_path: Path) -> None:
    class Checking(Remembering):
        def mount(self, *args: Any, **options: Any) -> Mounted:
            options["waiter"].check()
            return mounted("/d")

    peer.server.node = Checking()
    half = raw(tmp_path)
    body = b'{"image": "i", "directory": "/d"}'
    half.sendall(b"POST /mount HTTP/1.0\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
    half.shutdown(socket.SHUT_WR)
    assert b'{"mountpoint": "/d"' in all_of(half)


def test_watchers_leave_room_for_the_rest(peer: Peer, tmp_path: Path) -> None:
    watching = [raw(tmp_path, b"GET /events HTTP/1.0\r\n\r\n") for _ in range(MAX_LONG)]
    try:
        for watcher in watching:
            assert watcher.recv(100).startswith(b"HTTP/1.1 200")
        with pytest.raises(BusyError, match="watch events"):
            next(peer.client.events())
        assert peer.client.get("/status")["more"] == 1
    finally:
        for watcher in watching:
            watcher.close()


def test_nobody_waits_for_a_client_that_hangs_up(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(socket_path(tmp_path)))
        listener.listen()
        client = Client(tmp_path)

        def serve() -> None:
            with listener.accept()[0] as connection:
                connection.recv(1000)
                client.hang_up()
                assert connection.recv(1000) == b""

        serving = threading.Thread(target=serve)
        serving.start()
        for _ in range(2):
            with pytest.raises(NodeError, match="we hung up"):
                client.pull(image="i")
        serving.join(PATIENCE_S)
        assert not serving.is_alive()


def test_events_come_as_they_happen(peer: Peer) -> None:
    def tell() -> None:
        while not stop.wait(0.01):
            peer.feed.tell("error", sector="ab", error="x")

    stop = threading.Event()
    teller = threading.Thread(target=tell)
    teller.start()
    try:
        events = peer.client.events()
        first = next(events)
        assert (first["event"], first["sector"]) == ("error", "ab")
        next(events)
        events.close()  # type: ignore[attr-defined]
    finally:
        stop.set()
        teller.join()


def test_without_a_daemon(tmp_path: Path) -> None:
    client = Client(tmp_path)
    assert not client.alive()
    for ask in (lambda: client.get("/status"), lambda: next(client.events())):
        with pytest.raises(NodeError, match="no daemon answers") as caught:
            ask()
        assert caught.value.message.endswith("control.sock: No such file or directory")
        assert "firstread daemon" in str(caught.value.hint)


def test_a_daemon_with_a_full_backlog_is_waited_for(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(socket_path(tmp_path)))
        listener.listen(0)
        waiting = raw(tmp_path)
        client = Client(tmp_path, timeout_s=0.1)
        assert client.alive()
        with pytest.raises(NodeError, match="no answer within"):
            client.get("/status")

        def accept() -> None:
            for answer in (b"", b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n{}"):
                with listener.accept()[0] as connection:
                    connection.sendall(answer)

        accepting = threading.Timer(0.2, accept)
        accepting.start()
        assert Client(tmp_path, timeout_s=PATIENCE_S).get("/status") == {}
        accepting.join()
        waiting.close()


def test_a_question_is_asked_again_when_the_fetcher_dies(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(socket_path(tmp_path)))
        listener.listen()

        def serve() -> None:
            listener.accept()[0].close()  # it dies with the first request
            connection, _ = listener.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
            listener.accept()[0].close()

        server = threading.Thread(target=serve)
        server.start()
        client = Client(tmp_path)
        assert client.get("/status") == {}
        with pytest.raises(NodeError, match="hung up"):  # this could change something
            client.post("/umount", directory="/d")
        server.join()


def raw(tmp_path: Path, data: bytes = b"") -> socket.socket:
    """Return a connection on which `data` was sent."""
    peer = socket.socket(socket.AF_UNIX)
    peer.connect(str(socket_path(tmp_path)))
    peer.settimeout(20)
    peer.sendall(data)
    return peer


def all_of(peer: socket.socket) -> bytes:
    data = b""
    with peer, contextlib.suppress(ConnectionResetError):  # not all that was sent was read
        while part := peer.recv(65536):
            data += part
    return data


def test_a_client_that_sends_a_byte_now_and_then_is_left(peer: Peer, tmp_path: Path) -> None:
    peer.server.request_s = 0.3
    slow = raw(tmp_path, b"GET /status HTTP/1.1\r\n")
    with slow:
        for _ in range(100):  # as long as each byte comes soon after the one before
            try:
                slow.send(b"a")
            except BrokenPipeError:
                break
            time.sleep(0.1)
        else:
            pytest.fail("it may go on for ever")
    assert peer.client.get("/status")["more"] == 1


@pytest.mark.parametrize("length", ["-1", "-99999999", "1048577", "99999999999999999999"])
def test_a_body_of_impossible_length_is_not_read(peer: Peer, tmp_path: Path, length: str) -> None:
    head = f"POST /pin HTTP/1.1\r\nContent-Length: {length}\r\n\r\n"
    connection = raw(tmp_path, head.encode() + b"x" * 1000)
    assert b"the request is too large" in all_of(connection)
    assert not peer.node.calls


def test_a_deep_request_is_not_decoded(peer: Peer, tmp_path: Path) -> None:
    head = b"POST /pin HTTP/1.0\r\nContent-Length: 300\r\n\r\n"
    assert b"nested more than 200 deep" in all_of(raw(tmp_path, head + b"[" * 300))
    assert not peer.node.calls


def test_heads_are_bounded(peer: Peer, tmp_path: Path) -> None:
    for head in (b"GET /" + b"x" * 70_000, b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 200 + b"\r\n"):
        assert all_of(raw(tmp_path, head)).split()[1] in (b"414", b"431")


def test_a_refused_watcher_learns_why(tmp_path: Path) -> None:
    asked: list[bytes] = []

    def refuse() -> None:
        connection, _ = listener.accept()
        with connection:
            asked.append(connection.recv(1000))
            data = b'{"error": "NodeError", "message": "there are too many"}'
            head = b"HTTP/1.0 503 Busy\r\nContent-Length: %d\r\n\r\n" % len(data)
            connection.sendall(head + data)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(socket_path(tmp_path)))
        listener.listen()
        refusing = threading.Thread(target=refuse, daemon=True)
        refusing.start()
        with pytest.raises(NodeError, match="there are too many"):
            next(Client(tmp_path, timeout_s=PATIENCE_S).events())
        refusing.join(PATIENCE_S)
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()  # it asked once
    assert len(asked) == 1


def test_a_client_that_there_is_no_thread_for_is_told_so(peer: Peer) -> None:
    with (
        no_threads(),
        pytest.raises(NodeError, match="the daemon can have no more threads") as caught,
    ):
        peer.client.get("/status")
    assert caught.value.retryable
    assert peer.client.get("/status")["more"] == 1


def test_a_client_waits_while_no_file_can_be_opened_and_costs_no_core() -> None:
    class Short:
        accepted = 0

        def accept(self) -> None:
            self.accepted += 1
            raise OSError(errno.EMFILE, "Too many open files")

    server = BoundedThreadsMixIn.__new__(BoundedThreadsMixIn)
    server.socket = Short()  # type: ignore[attr-defined]
    began = time.monotonic()
    with pytest.raises(OSError, match="Too many open files"):
        server.get_request()
    assert time.monotonic() - began >= PAUSE_S


def test_more_clients_than_there_is_room_for_are_told_so(peer: Peer, tmp_path: Path) -> None:
    waiting = [raw(tmp_path) for _ in range(MAX_CONNECTIONS)]
    try:
        with pytest.raises(NodeError, match="serves 512 requests"):
            peer.client.get("/status")
    finally:
        for connection in waiting:
            connection.close()
    for _ in range(200):  # the threads end by and by
        with contextlib.suppress(NodeError):
            assert peer.client.get("/status")["more"] == 1
            return
        time.sleep(0.05)
    pytest.fail("there is no room any more")


def test_none_is_started_where_somebody_else_does_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FIRSTREAD_START_DAEMON", "0")
    with pytest.raises(NodeError, match="none may be started"):
        connected(tmp_path / "root", tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


@contextlib.contextmanager
def dying(run_dir: Path, *answers: bytes) -> Iterator[list[bytes]]:
    """Be fetchers that answer a request each, or die before they do; give what they were asked."""
    asked: list[bytes] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(socket_path(run_dir)))
        listener.listen()

        def serve() -> None:
            for answer in answers:
                connection, _ = listener.accept()
                with connection:
                    asked.append(connection.recv(65536).rpartition(b"\r\n")[2])
                    connection.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield asked
        thread.join(timeout=PATIENCE_S)


def answer_of(status: int, document: dict[str, Any]) -> bytes:
    body = json.dumps(document).encode()
    return b"HTTP/1.0 %d X\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body)


def test_a_command_is_repeated_when_the_fetcher_dies_and_is_known_by_its_number(
    tmp_path: Path,
) -> None:
    mounted = {"mountpoint": "/d"}
    with dying(tmp_path, b"", b"HTTP/1.0 200 OK\r\n", answer_of(200, mounted)) as asked:
        assert Client(tmp_path).mount(image="i", directory="/d") == mounted
    first, *others = map(json.loads, asked)
    assert len(first["command"]) == 16
    assert others == [first, first]


def test_a_fetcher_that_dies_again_and_again_is_not_asked_for_ever(tmp_path: Path) -> None:
    with dying(tmp_path, *[b""] * 4), pytest.raises(NodeError, match="hung up"):
        Client(tmp_path).release("holder")


def test_what_a_fetcher_had_unmounted_before_it_died_is_unmounted(tmp_path: Path) -> None:
    gone = answer_of(400, UsageError("/d is not a mount of firstread").to_dict())
    with dying(tmp_path, b"", gone, gone):
        Client(tmp_path).umount("/d")
        with pytest.raises(UsageError):
            Client(tmp_path).umount("/d")
