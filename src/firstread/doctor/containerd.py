# SPDX-License-Identifier: Apache-2.0
"""Whether a snapshotter on this node and containerd can reach each other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from firstread.doctor.finding import Finding, passed, warned
from firstread.snapshotter.sockets import ADDRESS, CONTAINERD, listens


def check_snapshotter(run_dir: Path, containerd: Path = CONTAINERD) -> Iterator[Finding]:
    """Yield what there is to say of a snapshotter; nothing where none has been started.

    Args:
        run_dir: of the node.
        containerd: its socket.
    """
    address = run_dir / ADDRESS.name
    try:
        if not address.is_socket():
            return
    except PermissionError:  # it is another user's
        return
    if listens(address):
        yield passed("snapshotter", f"it listens at {address}")
    else:
        fix = "start it, or containerd starts nothing: systemctl start firstread-snapshotter"
        yield warned("snapshotter", f"nobody listens at {address}", fix)
    if listens(containerd):
        yield passed("containerd", f"it listens at {containerd}")
    else:
        fix = "start it: systemctl start containerd; another socket is named by --containerd"
        yield warned("containerd", f"nobody listens at {containerd}", fix)
