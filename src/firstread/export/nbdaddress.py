# SPDX-License-Identifier: Apache-2.0
"""Where an NBD export listens: a Unix socket that only its owner reaches, or TCP.

Invariant: nothing listens beyond this machine without TLS.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from firstread.errors import NodeError, UsageError, from_os_error
from firstread.private import bind_private

_BACKLOG = 64
_FORMS = "say unix:PATH, or tcp:HOST:PORT"


class Address(NamedTuple):
    """An address to listen on.

    Args:
        path: of a Unix socket; empty for TCP.
        host: a name or number, for TCP.
        port: for TCP; 0 for any.
    """

    path: str = ""
    host: str = ""
    port: int = 0


def parse_address(text: str) -> Address:
    """Return the address that a command line names.

    Raises:
        UsageError: it names none.
    """
    scheme, _, rest = text.partition(":")
    if scheme == "unix" and rest:
        return Address(path=rest)
    host, _, port = rest.rpartition(":")
    if scheme == "tcp" and host and port.isascii() and port.isdigit() and int(port) < 1 << 16:
        return Address(host=host.removeprefix("[").removesuffix("]"), port=int(port))
    raise UsageError(f"{text!r} is no address to listen on", hint=_FORMS)


@contextlib.contextmanager
def listening(address: Address, *, encrypted: bool) -> Iterator[list[socket.socket]]:
    """Listen on an address, and on each that its name stands for; the sockets end with the block.

    Raises:
        UsageError: it is beyond this machine, and the connections would not be encrypted; or
            somebody listens there.
        NodeError: it cannot be listened on.
    """
    with contextlib.ExitStack() as stack:
        if address.path:
            listeners = [stack.enter_context(_unix(Path(address.path)))]
            stack.callback(Path(address.path).unlink, missing_ok=True)
        else:
            places = _places(address, encrypted=encrypted)
            listeners = [stack.enter_context(_tcp(family, place)) for family, place in places]
        yield listeners


def uri(address: Address, listener: socket.socket, *, encrypted: bool) -> str:
    """Return the address in the form of NBD's clients."""
    secure = "s" if encrypted else ""
    if address.path:
        return f"nbd{secure}+unix:///?socket={quote(str(Path(address.path).absolute()))}"
    host = f"[{address.host}]" if ":" in address.host else address.host
    return f"nbd{secure}://{host}:{listener.getsockname()[1]}"


def _unix(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _clear(path)
        bind_private(listener, path)
        listener.listen(_BACKLOG)
    except OSError as exc:
        listener.close()
        raise from_os_error(exc, f"cannot listen on {path}") from exc
    except BaseException:
        listener.close()
        raise
    return listener


def _clear(path: Path) -> None:
    """Remove a socket that nobody listens on any more."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise UsageError(f"{path} exists, and is no socket", hint="choose another path")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.connect(str(path))
    except FileNotFoundError:
        return
    except ConnectionRefusedError:
        path.unlink()
        return
    raise UsageError(f"somebody listens on {path} already", hint="choose another path")


def _places(
    address: Address, *, encrypted: bool
) -> list[tuple[socket.AddressFamily, tuple[str, int]]]:
    try:
        found = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except OSError as exc:
        raise UsageError(f"{address.host!r} has no address: {exc.strerror}", hint=_FORMS) from exc
    except UnicodeError as exc:  # a part of it has over 63 characters
        raise UsageError(f"{address.host!r} is no name of a host", hint=_FORMS) from exc
    places: list[tuple[socket.AddressFamily, tuple[str, int]]] = [
        (family, (str(place[0]), int(place[1]))) for family, _, _, _, place in found
    ]
    for _, (number, _) in places:
        if not encrypted and not ipaddress.ip_address(number.partition("%")[0]).is_loopback:
            raise UsageError(
                f"other machines reach {number}, and anybody there could read the image",
                hint="give --tls-dir, or listen on 127.0.0.1 or a Unix socket",
            )
    return places


def _tcp(family: socket.AddressFamily, place: tuple[str, int]) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(place)
        listener.listen(_BACKLOG)
    except OSError as exc:
        listener.close()
        raise NodeError(f"cannot listen on {place[0]} port {place[1]}: {exc.strerror}") from exc
    return listener
