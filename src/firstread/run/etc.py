# SPDX-License-Identifier: Apache-2.0
"""The files of ``/etc`` that depend on the container: hosts, hostname, resolv.conf.

Owns their content, which is docker's, and writes them into the container's directory. With the
host's network they are copies of the host's files.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from firstread.run.parse import Mount

_LOOPBACK = (
    "127.0.0.1\tlocalhost\n"
    "::1\tlocalhost ip6-localhost ip6-loopback\n"
    "fe00::\tip6-localnet\n"
    "ff00::\tip6-mcastprefix\n"
    "ff02::1\tip6-allnodes\n"
    "ff02::2\tip6-allrouters\n"
)
_BIND = ("rbind", "rprivate", "rw")


def write_etc(
    directory: Path,
    *,
    hostname: str,
    network: str,
    extra_hosts: Iterable[tuple[str, str]] = (),
    host_etc: Path = Path("/etc"),
) -> list[Mount]:
    """Write the files into `directory`; return the binds that put them into /etc.

    Args:
        directory: exists.
        hostname: of the container.
        network: ``host`` or ``none``.
        extra_hosts: pairs of name and address.
        host_etc: the host's own files.

    Raises:
        OSError: a file cannot be written.
    """
    hosts = _read(host_etc / "hosts") if network == "host" else _LOOPBACK
    hosts = hosts or _LOOPBACK
    for name, address in extra_hosts:
        hosts += f"{address}\t{name}\n"
    files = {
        "hosts": hosts,
        "hostname": f"{hostname}\n",
        "resolv.conf": _read(host_etc / "resolv.conf"),
    }
    mounts = []
    for name, content in files.items():
        path = directory / name
        path.write_text(content, errors="surrogateescape")
        path.chmod(0o644)  # whatever the umask: the container's user must read them
        mounts.append(Mount(f"/etc/{name}", "bind", os.fspath(path), _BIND))
    return mounts


def _read(path: Path) -> str:
    try:
        text = path.read_text(errors="surrogateescape")
    except OSError:
        return ""  # like the host, the container has none
    return text if text.endswith("\n") or not text else f"{text}\n"
