# SPDX-License-Identifier: Apache-2.0
"""Parses the texts that people type after ``docker run``.

Owns the syntax of single flags. Pure, except for `read_env_file`: nothing here looks at the image,
and the caller's environment is an argument. Invariant: a function returns a value that the OCI
runtime specification can express, or raises UsageError in docker's words.

Source: docker's command line reference, ``docker container run``.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from firstread.errors import UsageError
from firstread.units import MiB, parse_size
from firstread.wholefile import read_limited

MINIMUM_MEMORY_BYTES = 6 * MiB
"""With less, a runtime cannot even start its own init process; docker has the same limit."""

MINIMUM_CPUS = 0.01
_ENV_FILE_BYTES = 4 * MiB

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+")
_HOSTNAME = re.compile(r"[a-zA-Z0-9]([a-zA-Z0-9._-]{0,62}[a-zA-Z0-9])?")
_PROPAGATIONS = frozenset({"shared", "slave", "private", "rshared", "rslave", "rprivate"})
_NO_EFFECT = frozenset({"z", "Z", "consistent", "cached", "delegated", "nocopy"})
"""Volume modes for SELinux and macOS, accepted without effect, as docker does."""

_TMPFS_FLAGS = (
    "ro rw exec noexec suid nosuid dev nodev async sync atime noatime diratime nodiratime "
    "relatime norelatime strictatime"
)
_TMPFS_VALUES = "size mode uid gid nr_inodes nr_blocks"
_TMPFS_DEFAULT = ("nosuid", "nodev", "noexec")

_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86_400}  # seconds

_RLIMITS = (
    "as core cpu data fsize locks memlock msgqueue nice nofile nproc rss rtprio rttime "
    "sigpending stack"
)


@dataclass(frozen=True, slots=True)
class Mount:
    """One mount of the container, in the form of the OCI runtime specification.

    Args:
        destination: absolute path in the container.
        type: file system type; ``bind`` for a path of the host.
        source: path of the host, or a name for the mount table.
        options: mount options, flags and values alike.
    """

    destination: str
    type: str
    source: str
    options: tuple[str, ...] = ()

    @property
    def target(self) -> str:
        """The destination without double or trailing slashes, for comparison."""
        return "/" + "/".join(part for part in self.destination.split("/") if part)


@dataclass(frozen=True, slots=True)
class Rlimit:
    """A resource limit; `soft` and `hard` in the unit of the limit, -1 for unlimited."""

    name: str
    soft: int
    hard: int


@dataclass(frozen=True, slots=True)
class DeviceFlag:
    """A device node of the host, its path in the container, and its rights (``rwm``)."""

    source: str
    destination: str
    access: str


def parse_volume(text: str) -> Mount | str:
    """Parse ``-v``: a bind mount, or the path of an anonymous volume.

    Args:
        text: ``SRC:DST[:MODE[,MODE…]]``, or ``DST`` alone. A `SRC` that begins with a dot counts
            from the working directory, as docker's does since 23.0.

    Raises:
        UsageError: it is neither, or names a managed volume.
    """
    parts = text.split(":")
    if not text or len(parts) > 3 or "" in parts:
        raise UsageError(f"invalid volume specification: {text!r}", hint="write it as SRC:DST[:ro]")
    destination = _destination(parts[0] if len(parts) == 1 else parts[1], text)
    if len(parts) == 1:
        return destination
    source = os.path.abspath(parts[0]) if parts[0].startswith(".") else parts[0]
    if not source.startswith("/"):
        raise UsageError(
            f"invalid volume specification: {text!r}: {source!r} is not an absolute path",
            hint="named volumes are not supported: bind a directory of the host",
        )
    return Mount(destination, "bind", source, _bind_options(text, parts[2:]))


def _bind_options(text: str, modes: Iterable[str]) -> tuple[str, ...]:
    access, propagation = "rw", "rprivate"
    for mode in ",".join(modes).split(",") if modes else ():
        if mode in {"ro", "rw"}:
            # A read-only bind is recursively read-only, as in docker since 25.0.
            access = "rro" if mode == "ro" else "rw"
        elif mode in _PROPAGATIONS:
            propagation = mode
        elif mode not in _NO_EFFECT:
            raise UsageError(f"invalid mode: {mode!r} in volume {text!r}")
    return ("rbind", propagation, access)


def _destination(path: str, text: str) -> str:
    """Return a mount point; as with docker, ``..`` goes by name and ignores links."""
    found = os.path.normpath(path) if ".." in path.split("/") else path
    check_destination(found, text)
    return found


def check_destination(path: str, text: str) -> None:
    """Refuse a mount point that is not an absolute path below the root.

    Raises:
        UsageError: it is not.
    """
    if not path.startswith("/"):
        raise UsageError(f"invalid mount path: {path!r} in {text!r}: it must be absolute")
    parts = [part for part in path.split("/") if part not in {"", "."}]
    if not parts or ".." in parts:
        raise UsageError(f"invalid mount path: {path!r} in {text!r}")


def parse_tmpfs(text: str) -> Mount:
    """Parse ``--tmpfs DST[:option[,option…]]``; nosuid, nodev and noexec unless overridden.

    Raises:
        UsageError: the path is not absolute or an option is unknown.
    """
    path, _, given = text.partition(":")
    destination = _destination(path, text)
    options = list(_TMPFS_DEFAULT)
    for option in given.split(",") if given else ():
        key, equals, value = option.partition("=")
        if not (
            option in _TMPFS_FLAGS.split() or (key in _TMPFS_VALUES.split() and equals and value)
        ):
            raise UsageError(f"invalid tmpfs option {option!r} in {text!r}")
        opposite = f"no{option}"
        if opposite in options:
            options.remove(opposite)
        if option not in options:
            options.append(option)
    return Mount(destination, "tmpfs", "tmpfs", tuple(options))


def parse_env(text: str, environ: Mapping[str, str]) -> tuple[str, str | None]:
    """Parse ``-e NAME[=VALUE]``; without a value, return the caller's, or None.

    Raises:
        UsageError: there is no name.
    """
    name, equals, value = text.partition("=")
    if not name:
        raise UsageError(f"invalid environment variable: {text!r}")
    return name, value if equals else environ.get(name)


def parse_env_file(content: bytes, environ: Mapping[str, str], name: str) -> dict[str, str]:
    """Parse an ``--env-file`` as docker does: no quoting, no expansion, ``#`` starts a comment.

    A line ``NAME`` takes the caller's value; without one it is skipped.

    Raises:
        UsageError: a line is not UTF-8, has no name, or a name with white space.
    """
    found: dict[str, str] = {}
    for number, raw in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        try:
            line = raw.removesuffix(b"\r").decode().lstrip()
        except UnicodeDecodeError as exc:
            raise UsageError(f"env file {name}: invalid UTF-8 on line {number}") from exc
        if not line or line.startswith("#"):
            continue
        key, equals, value = line.partition("=")
        if not key:
            raise UsageError(f"env file {name}: no variable name on line {number}")
        if any(character.isspace() for character in key):
            raise UsageError(f"env file {name}: variable {key!r} contains white space")
        if equals or key in environ:
            found[key] = value if equals else environ[key]
    return found


def read_env_file(path: str, environ: Mapping[str, str]) -> dict[str, str]:
    """Read and parse the file at `path`.

    Raises:
        NodeError: it cannot be read.
        UsageError: it is larger than 4 MiB, or does not parse.
    """
    content = read_limited(Path(path), _ENV_FILE_BYTES, "the env file")
    return parse_env_file(content, environ, path)


def parse_memory(text: str) -> int | None:
    """Parse ``--memory 512m`` to bytes; 0 is no limit.

    Raises:
        UsageError: not a size, or below docker's minimum of 6 MiB.
    """
    try:
        size = parse_size(text)
    except UsageError as exc:
        message = f"invalid memory limit {text!r}: {exc.message}"
        raise UsageError(message, hint="write it as 512m or 2g") from exc
    if size == 0:
        return None
    if size < MINIMUM_MEMORY_BYTES:
        raise UsageError(f"invalid memory limit {text!r}: the minimum is 6m")
    if size >= 1 << 63:
        raise UsageError(f"invalid memory limit {text!r}: no machine has that much")
    return size


def parse_cpus(text: str, available: int) -> float | None:
    """Parse ``--cpus 1.5`` to a number of processors, at most `available`; 0 is no limit.

    Raises:
        UsageError: not a number, or out of range.
    """
    cpus = float(text) if re.fullmatch(r"\d{1,6}(\.\d{1,9})?|\.\d{1,9}", text) else -1.0
    if cpus == 0:
        return None
    if not MINIMUM_CPUS <= cpus <= available:
        raise UsageError(f"invalid --cpus {text!r}: the range is from 0.01 to {available}.00")
    return cpus


def parse_rlimit(text: str) -> Rlimit:
    """Parse ``--ulimit name=soft[:hard]``.

    Raises:
        UsageError: unknown name, not numbers, or soft above hard.
    """
    match = re.fullmatch(r"([a-z]+)=(-1|\d{1,18})(?::(-1|\d{1,18}))?", text)
    if match is None or match[1] not in _RLIMITS.split():
        raise UsageError(f"invalid ulimit: {text!r}", hint="write it as nofile=1024:2048")
    soft, hard = int(match[2]), int(match[3] or match[2])
    if hard != -1 and (soft == -1 or soft > hard):
        raise UsageError(f"ulimit soft limit must be less than or equal to hard limit: {text}")
    return Rlimit(f"RLIMIT_{match[1].upper()}", soft, hard)


def parse_device(text: str) -> DeviceFlag:
    """Parse ``--device SRC[:DST[:rwm]]``.

    Raises:
        UsageError: a path is not absolute, or the access consists of other letters than r, w, m.
    """
    match = re.fullmatch(r"(/[^:]+)(?::(/[^:]+))?(?::([rwm]{1,3}))?", text)
    if match is None:
        raise UsageError(f"invalid device specification: {text!r}")
    return DeviceFlag(match[1], match[2] or match[1], match[3] or "rwm")


def parse_moment(text: str, now: float) -> float:
    """Return the time of ``--since`` in seconds since 1970.

    Args:
        text: an age (``90s``, ``1h30m``); an RFC 3339 date, with or without a time, local unless
            it names a zone; or seconds since 1970.
        now: in seconds since 1970.

    Raises:
        UsageError: `text` has another form.
    """
    with contextlib.suppress(ValueError, OverflowError, OSError):
        if re.fullmatch(r"\d{1,12}(\.\d{1,9})?", text):
            return _moment(float(text))
        if re.fullmatch(r"(\d{1,9}(\.\d{1,9})?(ms|[smhd]))+", text):
            parts = re.findall(r"([\d.]+)(ms|[smhd])", text)
            return _moment(now - sum(float(count) * _UNITS[unit] for count, unit in parts))
        return _moment(datetime.fromisoformat(text).timestamp())
    raise UsageError(
        f"invalid time: {text!r}", hint="write it as 10m, 1h30m, 2026-01-31T12:00:00Z or 2026-01-31"
    )


def _moment(seconds: float) -> float:
    """Return a time that a date can name, 1970 at the earliest."""
    datetime.fromtimestamp(seconds, UTC)
    return max(seconds, 0.0)


def parse_label(text: str) -> tuple[str, str]:
    """Parse ``--label KEY[=VALUE]``.

    Raises:
        UsageError: there is no key.
    """
    key, _, value = text.partition("=")
    if not key:
        raise UsageError(f"invalid label: {text!r}")
    return key, value


def parse_extra_host(text: str) -> tuple[str, str]:
    """Parse ``--add-host NAME:ADDRESS`` (or ``NAME=ADDRESS``) to (name, address).

    Raises:
        UsageError: the name or the address is invalid.
    """
    match = re.fullmatch(r"([^:=\s]+)[:=]\[?([0-9a-fA-F.:]+)\]?", text)
    for family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError):
            if match:
                socket.inet_pton(family, match[2])
                return match[1], match[2]
    raise UsageError(f"invalid --add-host: {text!r}", hint="write it as name:address")


def check_name(name: str) -> str:
    """Return a container name that docker would accept.

    Raises:
        UsageError: docker would refuse it.
    """
    if len(name) > 128 or not _NAME.fullmatch(name):
        raise UsageError(
            f"invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"
        )
    return name


def check_hostname(name: str) -> str:
    """Return a host name of at most 64 bytes (``HOST_NAME_MAX``).

    Raises:
        UsageError: it is not a host name.
    """
    if not _HOSTNAME.fullmatch(name):
        raise UsageError(f"invalid hostname format: {name!r}")
    return name


def parse_signal(text: str) -> int:
    """Return the number of a signal such as ``SIGTERM``, ``term``, ``15`` or ``SIGRTMIN+3``.

    Raises:
        UsageError: there is no such signal.
    """
    name = text.strip().upper().removeprefix("SIG")
    if name.isascii() and name.isdecimal() and len(name) < 3:
        number = int(name)
    elif match := re.fullmatch(r"RTM(?:IN\+(\d{1,2})|AX-(\d{1,2}))", name):
        number = signal.SIGRTMIN + int(match[1]) if match[1] else signal.SIGRTMAX - int(match[2])
    else:
        number = getattr(signal, f"SIG{name}", 0) if name.isalnum() else 0
    if number not in signal.valid_signals():
        raise UsageError(f"invalid signal: {text!r}")
    return int(number)
