# SPDX-License-Identifier: Apache-2.0
"""The private socket of a supervisor, on which a successor asks to take over.

Owns both ends of the conversation, not its consequences. Only root can connect, and each side
checks the other's credentials. A message is one SOCK_SEQPACKET packet: a JSON object, or a word.

A new version in its own process::

    new   {"ask": "replace", "root": …, "format": …}
    old   {"error": …, "hint": …}                    and continues, or
          "handover" + document, `FIXED`, channel    and stops reading events
          "files" + descriptors                      of the events that wait
    new   "ready"                                    once it runs as a supervisor
    old   "yours"                                    and ends

If the connection breaks before ``ready``, the old supervisor continues as if nothing had happened;
after ``yours`` it never reads an event again. So one process reads events at any time, never two.

In place: ``{"ask": "reload"}``; the new version answers, or the old one answers with the error.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
from pathlib import Path
from typing import Any

from firstread import __version__
from firstread.daemon.handover import (
    FIXED,
    FORMAT,
    Handover,
    Settings,
    move_descriptor,
    read_handover,
)
from firstread.errors import NodeError, from_os_error
from firstread.private import bind_private, is_ours

READY, YOURS, FILES, HANDOVER = b"ready", b"yours", b"files", b"handover"

TURN_S = 10.0  # for the other side to take its turn
RELOAD_S = 180.0
_BATCH = 200  # descriptors in a message; the kernel takes 253 (SCM_MAX_FD)
_BYTES = 65536


def supervisor_socket(run_dir: str) -> Path:
    """Return the path of the private socket below a run directory."""
    return Path(run_dir, "supervisor.sock")


# -- the supervisor's end --------------------------------------------------------------------------


def listen(run_dir: str) -> socket.socket:
    """Return a listening socket that replaces the previous supervisor's."""
    path = supervisor_socket(run_dir)
    scratch = path.with_suffix(".new")
    scratch.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    bind_private(listener, scratch)
    listener.listen(8)
    scratch.replace(path)
    return listener


def accept(listener: socket.socket) -> socket.socket | None:
    """Accept a connection, from root or ourselves only."""
    try:
        connection, _ = listener.accept()
    except OSError:
        return None
    if not is_ours(connection):
        connection.close()
        return None
    connection.setblocking(False)
    return connection


def hear(connection: socket.socket) -> dict[str, Any]:
    """Return the question on a connection; {} if it has closed or makes no sense."""
    try:
        asked = json.loads(connection.recv(_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return asked if isinstance(asked, dict) else {}


def say(connection: socket.socket, **answer: Any) -> None:
    """Answer, and close the connection."""
    with contextlib.suppress(OSError):
        connection.send(json.dumps(answer).encode())
    connection.close()


def give(connection: socket.socket, settings: Settings, handover: Handover) -> None:
    """Send all that a supervisor has; it keeps its own.

    Raises:
        OSError: the other side does not take it.
    """
    connection.settimeout(TURN_S / 2)  # the loop stands still meanwhile
    document = handover.write(settings)
    try:
        channel = [handover.channel] if handover.channel >= 0 else []
        socket.send_fds(connection, [HANDOVER], [document, *FIXED.values(), *channel])
        files = [request.fd for request in handover.held]
        files += [fd for pair in handover.kept.values() for fd in pair]
        for start in range(0, len(files), _BATCH):
            socket.send_fds(connection, [FILES], files[start : start + _BATCH])
    finally:
        os.close(document)
        connection.setblocking(False)


def claim(connection: socket.socket, predecessor: int) -> bool:
    """Say that we are ready; return whether we are the supervisor now.

    Args:
        connection: to the one before.
        predecessor: its process number.
    """
    connection.settimeout(TURN_S)
    with contextlib.suppress(OSError):
        connection.send(READY)
        if connection.recv(_BYTES) == YOURS:
            return True
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RD)  # if it says so from now on, it hears that we gave up
        if connection.recv(_BYTES) == YOURS:  # it was late
            return True
    try:
        os.kill(predecessor, 0)
    except ProcessLookupError:
        return True  # it has died before it could say so
    return False


# -- the other end ---------------------------------------------------------------------------------


def connect(run_dir: str) -> socket.socket | None:
    """Return a connection to the supervisor of a run directory; None if there is none.

    Raises:
        NodeError: it cannot be had, or another user listens there.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        connection.connect(str(supervisor_socket(run_dir)))
        if not is_ours(connection):
            raise PermissionError(errno.EPERM, "another user listens there")
    except (FileNotFoundError, ConnectionRefusedError):
        connection.close()
        return None
    except OSError as exc:
        connection.close()
        raise from_os_error(exc, f"cannot speak with the daemon of {run_dir}") from exc
    return connection


def _ask(connection: socket.socket, timeout_s: float, **asked: Any) -> tuple[bytes, list[int]]:
    """Ask, and return the answer with its descriptors.

    Raises:
        NodeError: it is an error.
    """
    try:
        connection.settimeout(timeout_s)
        connection.send(json.dumps(asked).encode())
        answer, fds = _received(connection)
    except OSError as exc:
        raise from_os_error(exc, "the daemon does not answer") from exc
    if not answer:
        raise NodeError("the daemon hung up", hint="its log says why")
    if answer.startswith(b"{") and "error" in (said := json.loads(answer)):
        raise NodeError(str(said["error"]), hint=said.get("hint"))
    return answer, fds


def _received(connection: socket.socket) -> tuple[bytes, list[int]]:
    answer, fds, _, _ = socket.recv_fds(connection, _BYTES, 253)
    for fd in fds:
        os.set_inheritable(fd, False)
    return answer, fds


def take_over(run_dir: str, root: str) -> Handover | None:
    """Take what the supervisor of `run_dir` has; its descriptors are at their numbers then.

    Returns:
        None if there is no supervisor. The connection to it is the `asker`: `claim` ends what
        begins here.

    Raises:
        NodeError: it refuses, or is of a version that cannot be understood.
    """
    connection = connect(run_dir)
    if connection is None:
        return None
    try:
        handover = _taken(connection, root)
    except OSError as exc:
        connection.close()
        raise from_os_error(exc, "the daemon has stopped giving") from exc
    except NodeError:
        connection.close()
        raise
    handover.cause, handover.asker = "replace", connection.detach()
    return handover


def _taken(connection: socket.socket, root: str) -> Handover:
    asked = {"ask": "replace", "root": root, "format": FORMAT, "version": __version__}
    answer, fds = _ask(connection, TURN_S, **asked)
    if answer != HANDOVER or len(fds) <= len(FIXED):
        raise NodeError("the daemon gives an answer that makes no sense", hint="its log says why")
    handover, _ = read_handover(fds[0])
    for fd, number in zip(fds[1:], FIXED.values(), strict=False):
        move_descriptor(fd, number)  # before files can come to lie there
    files: list[int] = []
    held, pairs = len(handover.held), len(handover.kept)
    while len(files) < held + 2 * pairs:
        word, more = _received(connection)
        if word != FILES or not more:
            raise NodeError("the daemon has stopped giving", hint="its log says why")
        files += more
    handover.held = [r._replace(fd=fd) for r, fd in zip(handover.held, files, strict=False)]
    handover.kept = {
        device: (files[held + 2 * n], files[held + 2 * n + 1])
        for n, device in enumerate(handover.kept)
    }
    handover.channel = fds[1 + len(FIXED)] if len(fds) > 1 + len(FIXED) else -1
    return handover


def ask_reload(run_dir: str) -> dict[str, Any]:
    """Have a supervisor go on as the version that is installed now; return who serves then.

    Raises:
        NodeError: there is none, or the new version does not start; then the old one goes on.
    """
    connection = connect(run_dir)
    if connection is None:
        raise NodeError(f"no daemon runs in {run_dir}", hint="start one: firstread daemon")
    with connection:
        answer, _ = _ask(connection, RELOAD_S, ask="reload")
        said: dict[str, Any] = json.loads(answer)
        return said
