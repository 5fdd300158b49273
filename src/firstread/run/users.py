# SPDX-License-Identifier: Apache-2.0
"""Resolves the user of the container's process: ``USER`` of the image or ``--user``.

Owns the reading of the image's ``/etc/passwd`` and ``/etc/group``, and docker's rules for a user
specification. Both files are untrusted: openat2(2) keeps symbolic links inside the image, only
regular files count, and only the first MiB of each.

Source: passwd(5), group(5); OCI image specification 1.1, config.md, "User"; docker's run
reference, "USER".
"""

from __future__ import annotations

import ctypes
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from firstread.device.syscalls import oserror
from firstread.errors import NodeError, UsageError, from_os_error
from firstread.idmaps import MORE_IDS, is_mapped, read_map

_FILE_BYTES = 1024 * 1024
_MAX_ID = 2**31 - 1

_SYS_OPENAT2 = 437
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_IN_ROOT = 0x10
_libc = ctypes.CDLL(None, use_errno=True)


class _OpenHow(ctypes.Structure):
    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


@dataclass(frozen=True, slots=True)
class User:
    """The user and groups of the container's process, as numbers.

    Args:
        groups: supplementary groups, including the primary one.
        home: home directory, for ``HOME``.
    """

    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = (0,)
    home: str = "/"


def open_in_root(root: Path, path: str, flags: int) -> int:
    """Open `path` as a process with the root directory `root` would.

    Absolute symbolic links and ``..`` stay inside; links of /proc are refused.

    Raises:
        OSError: as openat2(2).
    """
    directory = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    how = _OpenHow(flags | os.O_CLOEXEC, 0, _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS)
    try:
        descriptor = _libc.syscall(
            ctypes.c_long(_SYS_OPENAT2),
            ctypes.c_int(directory),
            ctypes.c_char_p(os.fsencode(path)),
            ctypes.byref(how),
            ctypes.c_size_t(ctypes.sizeof(how)),
        )
        if descriptor < 0:
            raise oserror(path)
        return int(descriptor)
    finally:
        os.close(directory)


def read_in_root(root: Path, path: str, limit_bytes: int = _FILE_BYTES) -> bytes:
    """Return the start of a regular file of the image; empty if there is no such file.

    Raises:
        NodeError: the file exists and cannot be read.
    """
    try:
        # O_PATH first: opening a fifo or a device would have side effects.
        handle = open_in_root(root, path, os.O_PATH)
    except OSError:
        return b""
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            return b""
        with open(f"/proc/self/fd/{handle}", "rb") as file:
            return file.read(limit_bytes)
    except OSError as exc:
        raise from_os_error(exc, f"cannot read {path} of the image") from exc
    finally:
        os.close(handle)


def resolve_user(spec: str, rootfs: Path) -> User:
    """Return the numbers for ``user[:group]``, each a name or a number, read from `rootfs`.

    Raises:
        UsageError: a name is not in the image, or a number is out of range.
        NodeError: a file of the image cannot be read, or an ordinary user has no such id.
    """
    passwd, group = (read_in_root(rootfs, f"/etc/{name}") for name in ("passwd", "group"))
    user = find_user(spec, passwd, group)
    wanted = {"uid": [user.uid], "gid": [user.gid, *user.groups]}
    for kind, numbers in wanted.items():
        ids = read_map(kind)
        for number in numbers:
            if not is_mapped(ids, number):
                what = f"the container needs the {kind} {number}, and this user namespace has none"
                raise NodeError(what, hint=MORE_IDS)
    return user


def find_user(spec: str, passwd: bytes, group: bytes) -> User:
    """Return the numbers for ``user[:group]``, each a name or a number; root if empty.

    A number need not be in `passwd`; if it is, its groups and home count. A stated group replaces
    the user's own groups.

    Raises:
        UsageError: a name is unknown, or a number is out of range.
    """
    user_part, _, group_part = spec.partition(":")
    entry = _find_entry(passwd, user_part or "0")
    if entry:
        name, uid, gid = entry[0], int(entry[2]), _number(entry[3:4])
        home = entry[5] if len(entry) > 5 and entry[5].startswith("/") else "/"
    else:
        name, uid, gid, home = "", _given_number(user_part or "0", "user", "passwd"), 0, "/"
    if group_part:
        line = _find_entry(group, group_part)
        gid = int(line[2]) if line else _given_number(group_part, "group", "group")
        return User(uid, gid, (gid,), home)
    member_of = [int(line[2]) for line in _entries(group) if name and name in _members(line)]
    return User(uid, gid, tuple(dict.fromkeys((gid, *member_of))), home)


def _entries(content: bytes) -> Iterator[list[str]]:
    """Yield the fields of each line of a passwd or group file whose third is a number."""
    for line in content.decode(errors="replace").split("\n"):
        fields = line.strip().split(":")
        if len(fields) >= 3 and fields[0] and _is_id(fields[2]):
            yield fields


def _find_entry(content: bytes, wanted: str) -> list[str] | None:
    """Return the first line with the number `wanted`, or, if that is not a number, with that name.

    Digits are never a name: an image must not turn one number into another.
    """
    number = int(wanted) if _is_id(wanted) else None
    for fields in _entries(content):
        if fields[0] == wanted if number is None else int(fields[2]) == number:
            return fields
    return None


def _members(line: list[str]) -> list[str]:
    return line[3].split(",") if len(line) > 3 else []


def _is_id(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 10 and int(text) <= _MAX_ID


def _number(fields: list[str]) -> int:
    return int(fields[0]) if fields and _is_id(fields[0]) else 0


def _given_number(text: str, kind: str, file: str) -> int:
    if _is_id(text):
        return int(text)
    if text.isascii() and text.removeprefix("-").isdecimal():
        raise UsageError(f"uids and gids must be in range 0-{_MAX_ID}: {text}")
    raise UsageError(
        f"unable to find {kind} {text}: no matching entries in {file} file",
        hint=f"/etc/{file} of the image counts; a number needs no entry",
    )
