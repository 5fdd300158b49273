# SPDX-License-Identifier: Apache-2.0
"""``firstread install``: enters the snapshotter into containerd's configuration.

Owns files: which one changes, its backup, and containerd's own check of the result before it
counts. `firstread.snapshotter.configfile` owns the content, `firstread.doctor.installable` the
preconditions.
"""

from __future__ import annotations

import difflib
import glob
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from firstread.cli.options import root_option
from firstread.cli.output import complain, report
from firstread.doctor.installable import (
    about,
    check_accepted,
    check_imported,
    containerd_major,
    cri_is_disabled,
    read,
)
from firstread.errors import NodeError, UsageError, from_os_error
from firstread.snapshotter.sockets import ADDRESS

if TYPE_CHECKING:
    from firstread.snapshotter.configfile import Choice

CONFIG = Path("/etc/containerd/config.toml")
BACKUP_SUFFIX = ".before-firstread"
DROP_IN = "firstread.toml"

target_argument = click.argument("target", type=click.Choice(["containerd"]))
config_option = click.option(
    "--config",
    "path",
    type=click.Path(path_type=Path, dir_okay=False),
    default=CONFIG,
    show_default=True,
    help="containerd's configuration.",
)
dry_run_option = click.option("--dry-run", is_flag=True, help="Only print what would change.")


@click.command()
@target_argument
@config_option
@click.option(
    "--socket", default=str(ADDRESS), show_default=True, help="Where the snapshotter listens."
)
@root_option
@click.option(
    "--default",
    "as_default",
    is_flag=True,
    help="Have the CRI plugin, and so Kubernetes, use it for every image.",
)
@click.option(
    "--drop-in",
    is_flag=True,
    help=f"Write {DROP_IN} into the directory that the configuration imports, not into itself.",
)
@dry_run_option
def command(
    target: str,
    path: Path,
    socket: str,
    root: Path,
    *,
    as_default: bool,
    drop_in: bool,
    dry_run: bool,
) -> None:
    """Enter the snapshotter of firstread into containerd's configuration.

    Everything else in it stays as it is, byte for byte, and a copy of the file is kept beside it.
    A second call changes nothing; 'firstread uninstall containerd' undoes the first.
    """
    from firstread.snapshotter.configfile import Choice, has_transfer
    from firstread.snapshotter.imagefs import home

    if not os.path.isabs(socket):
        raise UsageError(f"--socket {socket} is not an absolute path")
    major = containerd_major()
    old = read(path)
    with about(path):
        # In an imported file, a section would replace the main file's.
        transfer = not drop_in or not has_transfer(old or "")
    measured = home(root)
    choice = Choice(socket, as_default, major >= 2, transfer, str(measured))
    change = _plan(path, old, choice, drop_in=drop_in)
    if change.before == change.after:
        _link(major, old, measured, make=not dry_run)
        report([f"{change.path}: containerd knows the snapshotter already"])
        return
    if dry_run:
        report(difference(change.path, change.before or "", change.after))
        return
    replace(change.path, change.before, change.after, main=path, backup=change.is_first)
    linked = _link(major, old, measured)
    report(
        [
            *_lines(change, choice),
            *linked,
            "  restart containerd to apply it: systemctl restart containerd",
        ]
    )
    if as_default and cri_is_disabled(old or "", change.version):
        complain([f"note: {path} disables the CRI plugin, so Kubernetes cannot use containerd"])


@dataclass(frozen=True)
class _Change:
    """One file that an installation changes.

    Args:
        path: of the file.
        before: its content; None if it does not exist.
        after: the new content.
        version: of the configuration.
    """

    path: Path
    before: str | None
    after: str
    version: int

    @property
    def is_first(self) -> bool:
        """Whether the file exists without anything of ours."""
        from firstread.snapshotter.configfile import removed

        return self.before is not None and removed(self.before) == self.before


def _plan(path: Path, old: str | None, choice: Choice, *, drop_in: bool) -> _Change:
    """Return the change that enters the snapshotter into the configuration at `path`."""
    from firstread.snapshotter.configfile import added, version_of

    changed, text = path, old or ""
    with about(path):
        if drop_in:
            changed, text = _drop_in(path, text, choice)
        elif old is None:
            text = f"version = {3 if choice.containerd2 else 2}\n"
        if old is None and drop_in:
            raise UsageError("there is no such file", hint="leave out --drop-in")
        version = version_of(text)
    if choice.default:
        check_imported(path, version, own=changed)
    with about(changed):
        after = added(text, choice)
    return _Change(changed, read(changed), after, version)


def _lines(change: _Change, choice: Choice) -> list[str]:
    """Return what to print after the change."""
    from firstread.snapshotter.configfile import is_default

    lines = [f"{change.path}: proxy plugin firstread at {choice.address}"]
    if choice.default:
        lines.append("  the CRI plugin uses it for every image")
    elif change.before and is_default(change.before) and not is_default(change.after):
        lines.append("  the CRI plugin no longer uses it for every image: that takes --default")
    if change.is_first:
        lines.append(f"  {change.path}{BACKUP_SUFFIX} is a copy of the old file")
    return lines


def _link(major: int, config: str | None, measured: Path, *, make: bool = True) -> list[str]:
    """Make containerd 1 report an existing directory, if `make`; return a line about it."""
    from firstread.snapshotter.imagefs import link

    place = link(config or "", measured) if make and major < 2 else None
    return [f"  {place} leads the kubelet to {measured}"] if place else []


def _drop_in(path: Path, main: str, choice: Choice) -> tuple[Path, str]:
    """Return the file to import, and its content without us.

    Raises:
        UsageError: the configuration imports nothing, or would lose a section to an imported file.
    """
    import tomllib

    from firstread.snapshotter.configfile import CRI_PLUGIN, removed, version_of

    version = version_of(main)
    document = tomllib.loads(main)
    patterns = document.get("imports", [])
    for pattern in patterns if isinstance(patterns, list) else []:
        directory, name = os.path.split(str(pattern))
        if name == "*.toml" and not glob.has_magic(directory):
            place = path.parent / directory
            break
    else:
        raise UsageError(
            "it imports no directory",
            hint=f'write imports = ["{path.parent}/conf.d/*.toml"] at its top, or leave out'
            " --drop-in",
        )
    if choice.default and CRI_PLUGIN[version] in document.get("plugins", {}):
        raise UsageError(
            f"it has a section of the plugin {CRI_PLUGIN[version]}, which an imported one would"
            " replace",
            hint="leave out --drop-in, so that the section itself is changed",
        )
    present = read(place / DROP_IN)
    return place / DROP_IN, removed(present) if present else f"version = {version}\n"


# -- files, for uninstall as well ------------------------------------------------------------------


def difference(path: Path, old: str, new: str) -> list[str]:
    """Return the change in the form of ``diff -u``."""
    lines = difflib.unified_diff(
        old.splitlines(), new.splitlines(), str(path), str(path), lineterm=""
    )
    return list(lines) or [f"{path}: nothing changes"]


def replace(path: Path, old: str | None, new: str, *, main: Path, backup: bool) -> None:
    """Write `new`, once containerd accepts it, and keep a copy of the old file beside it.

    Args:
        path: of the file; a symbolic link stays, and its target is replaced.
        old: the content; None if there is no file.
        new: the new content.
        main: the configuration that containerd reads; `path` itself, or the file that imports it.
        backup: keep `old`, in place of an earlier copy.

    Raises:
        NodeError: the disk refuses, or containerd does not accept it.
    """
    target = path.resolve()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        mode = target.stat().st_mode & 0o7777 if old is not None else 0o644
        scratch = _write(target, new, mode)
        try:
            if path == main:
                check_accepted(scratch)
            if backup and old is not None:
                shutil.copy2(target, f"{path}{BACKUP_SUFFIX}")
            scratch.replace(target)
        finally:
            scratch.unlink(missing_ok=True)
        if path != main:  # only the main file can be checked
            _check_import(target, old, main, mode)
    except OSError as exc:
        raise from_os_error(exc, "cannot write the configuration") from exc


def _check_import(path: Path, old: str | None, main: Path, mode: int) -> None:
    try:
        check_accepted(main)
    except NodeError:
        if old is None:
            path.unlink()
        else:
            _write(path, old, mode).replace(path)
        raise


def _write(path: Path, text: str, mode: int) -> Path:
    """Write `text` to a new file beside `path`, and return its path."""
    with tempfile.NamedTemporaryFile(
        "wb", dir=path.parent, prefix=".firstread-", suffix=".tmp", delete=False
    ) as file:
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())
        os.fchmod(file.fileno(), mode)
    return Path(file.name)
