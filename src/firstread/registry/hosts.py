# SPDX-License-Identifier: Apache-2.0
"""containerd's ``certs.d/<host>/hosts.toml``, read as it is: which endpoints serve a registry.

Owns the file's meaning and the search for it; connects to nothing. Invariant: `parse_hosts` is
pure, and gives endpoints or UsageError, nothing else. Header values may be secrets: no repr and no
message has them.

Facts about the file, where containerd's own documentation is silent:

* The order of ``[host."…"]`` tables is the order of asking. ``server``, or the registry itself
  if there is none, comes last, with the settings at the top of the file.
* ``ca`` adds to the system's certificates. Relative paths begin at the directory of the file.
* A path of a URL gets ``/v2`` behind it, unless it ends so or ``override_path`` is set.
* We tell an endpoint that is not the registry itself whose content we want: ``?ns=HOST``.
* We ignore keys that containerd does not know. A wrong file is an error here; containerd would
  silently go on without its mirrors.
* A directory without the file may hold certificates as docker names them: ``*.crt`` to trust,
  ``*.cert`` with ``*.key`` to show.

Source: containerd, docs/hosts.md and core/remotes/docker/config/hosts.go (2.x).
"""

from __future__ import annotations

import posixpath
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from firstread.errors import UsageError, from_os_error
from firstread.oci.reference import DEFAULT_HOST
from firstread.units import MiB
from firstread.wholefile import read_limited

PULL: Final = "pull"  # blobs, and manifests by digest
RESOLVE: Final = "resolve"  # manifests by tag
PUSH: Final = "push"
REFERRERS: Final = "referrers"  # lists of what refers to a manifest; since containerd 2.2
CAPABILITIES: Final = frozenset({PULL, RESOLVE, PUSH, REFERRERS})

MAX_HOSTS_BYTES: Final = 1 * MiB
DOCKER_HUB: Final = "registry-1.docker.io"  # what answers for docker.io

_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # a header's name (RFC 9110, 5.6.2)
_VALUE: Final = re.compile(r"[\t\x20-\x7e\x80-\xff]*")  # its value (RFC 9110, 5.5)
_HOST: Final = re.compile(r"[A-Za-z0-9._~-]+|\[[0-9A-Fa-f:.]+\]")
_DURATION: Final = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h)")
_DURATIONS: Final = re.compile(f"(?:{_DURATION.pattern})+")
_MICRO: Final = str.maketrans("µμ", "uu")  # Go takes either letter
_SECONDS: Final = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One server of a registry's content: a mirror, or the registry itself.

    Args:
        scheme: ``http`` or ``https``.
        host: name, and port if it is not the scheme's own.
        path: root of the API there.
        capabilities: what to ask it for.
        ca: certificates to trust besides the system's.
        clients: certificates to show, each with its key if that is in a file of its own.
        skip_verify: accept any certificate.
        headers: to send with each request to it; nowhere else.
        dial_timeout: seconds until a connection stands; None for the general limit.
        namespace: registry to name in ``?ns=``, if the endpoint is not that registry itself.
    """

    scheme: str
    host: str
    path: str = "/v2"
    capabilities: frozenset[str] = CAPABILITIES
    ca: tuple[Path, ...] = ()
    clients: tuple[tuple[Path, Path | None], ...] = ()
    skip_verify: bool = False
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    dial_timeout: float | None = None
    namespace: str = ""

    @property
    def base(self) -> str:
        """Root URL of the host."""
        return f"{self.scheme}://{self.host}/"

    @property
    def name(self) -> str:
        """What people and metrics call it."""
        return self.host + ("" if self.path == "/v2" else self.path)


def parse_hosts(data: bytes, directory: Path, host: str, default: Endpoint) -> tuple[Endpoint, ...]:
    """Return the endpoints of `host`, in the order of asking; the last is the server.

    Args:
        data: of ``hosts.toml``.
        directory: where relative paths begin.
        host: registry as in a reference.
        default: the registry itself, if the file names no server.

    Raises:
        UsageError: the file is not valid.
    """
    try:
        document = tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as exc:
        # A decoder's message quotes no values, but at most one character.
        raise UsageError(f"it is not valid TOML: {exc}") from None
    tables = document.get("host", {})
    server = document.get("server", "")
    if not isinstance(tables, dict) or not all(isinstance(t, dict) for t in tables.values()):
        raise UsageError('"host" must be a table of tables: [host."https://mirror.example"]')
    if not isinstance(server, str):
        raise UsageError('"server" must be a string')
    found = [_endpoint(url, table, directory) for url, table in tables.items()]
    if server:
        found.append(_endpoint(server, document, directory))
    else:
        last = _settings(document, directory)
        found.append(replace(default, **(last | {"capabilities": CAPABILITIES})))
    return tuple(replace(e, namespace=_namespace(host, e.host)) for e in found)


def _namespace(host: str, endpoint: str) -> str:
    own = endpoint in (host, DOCKER_HUB if host == DEFAULT_HOST else host)
    return "" if own else host


def _endpoint(url: str, table: Mapping[str, Any], directory: Path) -> Endpoint:
    try:
        parts = urlsplit(url if "://" in url else f"https://{url}")
        name, port = parts.hostname or "", parts.port
    except ValueError:
        raise UsageError(f"{_shown(url)} is not an address") from None
    name = f"[{name}]" if ":" in name else name
    if parts.scheme not in ("http", "https") or not _HOST.fullmatch(name):
        raise UsageError(f"{_shown(url)} is not an address")
    override = table.get("override_path", False)
    if not isinstance(override, bool):
        raise UsageError('"override_path" must be true or false')
    path = posixpath.normpath(parts.path) if parts.path else ""
    path = "/" + path.strip("/") if path.strip("/") else ""
    if not override and not path.endswith("/v2"):
        path += "/v2"
    host = name if port is None else f"{name}:{port}"
    return Endpoint(parts.scheme, host, path, **_settings(table, directory))


def _shown(url: str) -> str:
    """Return a URL for a message: without what may be a password or a signature."""
    return repr(url.rpartition("@")[2].partition("?")[0][:100])


def _settings(table: Mapping[str, Any], directory: Path) -> dict[str, Any]:
    """Return the fields of an endpoint that one table has."""
    skip_verify = table.get("skip_verify", False)
    if not isinstance(skip_verify, bool):
        raise UsageError('"skip_verify" must be true or false')
    return {
        "capabilities": _capabilities(table.get("capabilities", [])),
        "ca": tuple(directory / name for name in _strings(table.get("ca", []), "ca")),
        "clients": tuple(_clients(table.get("client", []), directory)),
        "skip_verify": skip_verify,
        "headers": tuple(_headers(table.get("header", {}))),
        "dial_timeout": _duration(table.get("dial_timeout", "")),
    }


def _strings(value: Any, key: str) -> list[str]:
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(isinstance(v, str) and v for v in values):
        raise UsageError(f'"{key}" must be a string or a list of strings')
    if any("\0" in v for v in values):
        raise UsageError(f'"{key}" has a character that no path can have')
    return values


def _capabilities(value: Any) -> frozenset[str]:
    if not isinstance(value, list):
        raise UsageError('"capabilities" must be a list of strings')
    words = [word.lower() for word in _strings(value, "capabilities")]
    for word in words:
        if word not in CAPABILITIES:
            raise UsageError(
                f"unknown capability {word[:40]!r}",
                hint="pull, resolve, push and referrers are known",
            )
    return frozenset(words) or CAPABILITIES


def _clients(value: Any, directory: Path) -> Iterator[tuple[Path, Path | None]]:
    for entry in [value] if isinstance(value, str) else value if isinstance(value, list) else [0]:
        if not isinstance(entry, str | list):
            raise UsageError('"client" must be a file, a list of files or of pairs of files')
        names = _strings(entry, "client")
        if len(names) != 2 and not isinstance(entry, str):
            raise UsageError('a pair of "client" must have two files: certificate and key')
        yield directory / names[0], directory / names[1] if len(names) > 1 else None


def _headers(value: Any) -> Iterator[tuple[str, str]]:
    if not isinstance(value, dict):
        raise UsageError('"header" must be a table')
    for name, given in value.items():
        values = [given] if isinstance(given, str) else given
        if not isinstance(values, list) or not all(isinstance(v, str) for v in values):
            raise UsageError(f"header {name[:40]!r} must be a string or a list of strings")
        if not _TOKEN.fullmatch(name) or not all(map(_VALUE.fullmatch, values)):
            raise UsageError(f"header {name[:40]!r} has a character that no header can have")
        yield name, ", ".join(values)


def _duration(value: Any) -> float | None:
    """Return the seconds of a duration as Go writes them, such as ``1m30s``."""
    if value == "":
        return None
    if isinstance(value, str) and _DURATIONS.fullmatch(value):
        parts = _DURATION.findall(value)
        seconds = sum(float(n) * _SECONDS[unit.translate(_MICRO)] for n, unit in parts)
        if 0 < seconds < 86400:
            return seconds
    raise UsageError('"dial_timeout" must be a duration such as "3s"')


def directories(root: Path, host: str) -> list[Path]:
    """Return where the settings of `host` may be below `root`, in the order of precedence."""
    name, colon, port = host.rpartition(":")
    spelled = [f"{name}_{port}_"] if colon and name else []
    return [root / place for place in (*spelled, host, "_default")]


def read_hosts(roots: Iterable[Path], host: str, default: Endpoint) -> tuple[Endpoint, ...]:
    """Return the endpoints of `host`: of the first directory below `roots` that is there.

    Args:
        roots: such as ``/etc/containerd/certs.d``.
        host: registry as in a reference.
        default: the registry itself: alone, if there is no directory for it.

    Raises:
        UsageError: the file is not valid; names it.
        NodeError: it cannot be read.
    """
    for directory in (place for root in roots for place in directories(root, host)):
        source = directory / "hosts.toml"
        data = read_limited(source, MAX_HOSTS_BYTES, missing=b"")
        try:
            if data:
                return parse_hosts(data, directory, host, default)
            if directory.is_dir():
                return (_with_certificates(directory, default),)
        except OSError as exc:
            raise from_os_error(exc, "cannot read") from exc
        except UsageError as exc:
            hint = exc.hint or "docs/registries.md describes the file"
            raise UsageError(f"{source}: {exc.message}", hint=hint) from exc
    return (default,)


def _with_certificates(directory: Path, endpoint: Endpoint) -> Endpoint:
    """Return `endpoint` with the certificates of a directory that is laid out as docker's."""
    names = sorted(directory.iterdir())
    clients = [(name, name.with_suffix(".key")) for name in names if name.suffix == ".cert"]
    for certificate, key in clients:
        if not key.exists():
            raise UsageError(f"{certificate.name} is there, {key.name} is not")
    ca = tuple(name for name in names if name.suffix == ".crt")
    return replace(endpoint, ca=ca, clients=tuple(clients))
