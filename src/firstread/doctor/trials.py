# SPDX-License-Identifier: Apache-2.0
"""Which devices work on this machine, each tried on a tiny image.

The trials are those of a daemon (`firstread.daemon.choice`), in a scratch directory below the root
that is gone afterwards. Invariant: each waits no longer than its trial does.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

from firstread.daemon.choice import DEVICES, Kept, Kind, Unheld, kept_by, require_rights
from firstread.doctor.finding import Finding, failed, passed, warned
from firstread.errors import NodeError, from_os_error
from firstread.sectors.storelayout import require_filesystem


class Devices(NamedTuple):
    """The result of all trials.

    Args:
        works: the device that a daemon would choose; None if it would not start.
        findings: one for each device, the best first.
    """

    works: str | None
    findings: list[Finding]


def check_devices(root: Path, wanted: str = "auto") -> Devices:
    """Try every device on the file system of `root`.

    Args:
        root: where the sector store is or is to be; need not exist.
        wanted: the device that the configuration names, or ``auto``.
    """
    if uid := os.geteuid():
        fix = "run it as root, as the daemon"
        return Devices(None, [failed("user", f"user {uid} can make no mounts", fix)])
    place = next(path for path in (root, *root.absolute().parents) if path.is_dir())
    tried: dict[str, str | NodeError] = {}
    try:
        for kind in DEVICES:
            tried[kind.name] = _tried(kind, place)
    except OSError as exc:
        error = from_os_error(exc, "cannot write below the root")
        return Devices(None, [failed("write to the root", error.message, error.hint)])
    works = [name for name, said in tried.items() if isinstance(said, str)]
    has_mounts = wanted == "auto" and (root / "mounts").is_dir()
    chosen = _chosen(works, wanted, kept_by(root) if has_mounts else None)
    return Devices(chosen, [_finding(name, said, wanted, chosen) for name, said in tried.items()])


def _chosen(works: list[str], wanted: str, kept: Kept | None) -> str | None:
    """Return the device that a daemon would choose, as `firstread.daemon.choice.choose` does."""
    if kept is not None:
        name = kept.kind.name
        if name in works or kept.kind.unheld is Unheld.READABLE:
            return name if name in works else None
    return next((name for name in works if wanted in ("auto", name)), None)


def _tried(kind: Kind, place: Path) -> str | NodeError:
    """Return what the trial of a device has seen, or why it does not work.

    Raises:
        OSError: nothing can be tried there.
    """
    scratch = Path(tempfile.mkdtemp(prefix=".firstread-doctor-", dir=place))
    try:
        require_rights(kind)
        if kind.filesystems is not None:
            require_filesystem(place, kind.filesystems)
        return kind.prove(scratch)
    except NodeError as exc:
        return exc
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _finding(name: str, said: str | NodeError, wanted: str, chosen: str | None) -> Finding:
    title, names = f"device {name}", [kind.name for kind in DEVICES]
    if isinstance(said, str):
        return passed(title, f"works: {said}")
    if chosen is None and wanted in ("auto", name):
        return failed(title, said.message, said.hint)
    if chosen is not None and wanted == "auto" and names.index(name) < names.index(chosen):
        return warned(title, f"{said.message}; so a daemon has {chosen}", said.hint)
    return passed(title, f"not needed; {said.message}")
