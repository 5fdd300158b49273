# SPDX-License-Identifier: Apache-2.0
"""``python -m tools.release.emulation COMMAND…``: runs a command among programs of arm64.

Owns a user namespace in which binfmt_misc hands arm64's programs to qemu (Linux 6.7 and later; the
kernel looks for the nearest registration above a process). So the machine's own list, which other
processes depend on, stays as it is, and nothing is left behind. Needs root: all users are mapped.

Source: Documentation/admin-guide/binfmt-misc.rst; the pattern is that of qemu-binfmt-conf.sh.
"""

from __future__ import annotations

import os
import sys
from typing import Final

from tools.release.programs import run

from firstread.device.syscalls import CLONE_NEWNS, CLONE_NEWUSER, unshare
from firstread.errors import NodeError

QEMU: Final = "/usr/bin/qemu-aarch64-static"

_MISC: Final = "/proc/sys/fs/binfmt_misc"
_MAGIC: Final = r"\x7fELF\x02\x01\x01" + r"\x00" * 9 + r"\x02\x00\xb7\x00"
_MASK: Final = r"\xff" * 7 + r"\x00" + r"\xff" * 8 + r"\xfe\xff\xff\xff"
_LINE: Final = f":firstread-arm64:M::{_MAGIC}:{_MASK}:{QEMU}:F"  # F: opened now, for any root
_ALL: Final = "0 0 4294967295"


def enter() -> None:
    """Put this process, which has one thread, into such a namespace.

    Raises:
        NodeError: there is no qemu, or the kernel is older.
    """
    if not os.path.exists(QEMU):
        raise NodeError(f"there is no {QEMU}", hint="install qemu-user-static")
    ready, begin = os.pipe()
    parent = os.getpid()
    if not (child := os.fork()):  # it stays outside, where root may map users
        os.close(begin)
        os.read(ready, 1)
        os._exit(_map_users(parent))
    os.close(ready)
    unshare(CLONE_NEWUSER | CLONE_NEWNS)
    os.close(begin)
    if os.waitpid(child, 0)[1]:
        raise NodeError("this user cannot map users", hint="run it as root")
    run("mount", "-t", "binfmt_misc", "none", _MISC)
    with open(f"{_MISC}/register", "w") as file:
        file.write(_LINE)


def _map_users(process: int) -> int:
    """Give all users and groups their own numbers in a namespace; return an exit code."""
    try:
        for kind in ("uid", "gid"):
            with open(f"/proc/{process}/{kind}_map", "w") as file:
                file.write(_ALL)
    except OSError:
        return 1
    return 0


def main() -> None:
    """Enter, and become the command."""
    enter()
    os.execvp(sys.argv[1], sys.argv[1:])


if __name__ == "__main__":
    main()
