# SPDX-License-Identifier: Apache-2.0
"""``firstread install``: makes containerd know the snapshotter.

Owns files: which one is changed, its backup, and that containerd itself accepts the result before
it counts. What is written is the business of `firstread.snapshotter.configfile`.
"""

from __future__ import annotations

import difflib
import glob
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from firstread.cli.options import root_option
from firstread.cli.output import complain, report
from firstread.errors import NodeError, UsageError, from_os_error

CONFIG = Path("/etc/containerd/config.toml")
SOCKET = "/run/firstread/snapshotter.sock"
BACKUP_SUFFIX = ".before-firstread"
DROP_IN = "firstread.toml"
CHECK_S = 30.0  # for containerd to read its configuration

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
@click.option("--socket", default=SOCKET, show_default=True, help="Where the snapshotter listens.")
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

    Everything else in it stays as it is, byte for byte, and a copy is kept beside it. Doing it
    again changes nothing; 'firstread uninstall containerd' undoes it.
    """
    from firstread.snapshotter.configfile import (
        Choice,
        added,
        has_transfer,
        is_default,
        removed,
        version_of,
    )
    from firstread.snapshotter.imagefs import home

    if not os.path.isabs(socket):
        raise UsageError(f"--socket {socket} is not an absolute path")
    major = _containerd_major()
    old = read(path)
    with about(path):
        # In a file that is imported it would replace what the main one says.
        transfer = not drop_in or not has_transfer(old or "")
    measured = home(root)
    choice = Choice(socket, as_default, major >= 2, transfer, str(measured))
    changed, text = path, old or ""
    with about(path):
        if drop_in:
            changed, text = _drop_in(path, text, choice)
        elif old is None:
            text = f"version = {3 if major >= 2 else 2}\n"
        if old is None and drop_in:
            raise UsageError("there is no such file", hint="leave out --drop-in")
        version = version_of(text)
    if as_default:
        _check_imported(path, version, own=changed)
    with about(changed):
        new = added(text, choice)
    before = read(changed)
    if before == new:
        _link(major, old, measured, make=not dry_run)
        report([f"{changed}: containerd knows the snapshotter already"])
        return
    if dry_run:
        report(difference(changed, before or "", new))
        return
    first = before is not None and removed(before) == before
    replace(changed, before, new, main=path, backup=first)
    linked = _link(major, old, measured)
    lines = [f"{changed}: proxy plugin firstread at {socket}"]
    if as_default:
        lines.append("  the CRI plugin uses it for every image")
    elif before and is_default(before) and not is_default(new):
        lines.append("  the CRI plugin uses it for every image no more: that takes --default")
    if first:
        lines.append(f"  {changed}{BACKUP_SUFFIX} has the file as it was")
    report([*lines, *linked, "  restart containerd to make it so: systemctl restart containerd"])
    if as_default and cri_is_disabled(old or "", version):
        complain([f"note: {path} disables the CRI plugin, so Kubernetes cannot use containerd"])


def _link(major: int, config: str | None, measured: Path, *, make: bool = True) -> list[str]:
    """Have containerd 1 name a directory that is there, if `make`; return what to tell of it."""
    from firstread.snapshotter.imagefs import link

    place = link(config or "", measured) if make and major < 2 else None
    return [f"  {place} leads the kubelet to {measured}"] if place else []


def _drop_in(path: Path, main: str, choice: Any) -> tuple[Path, str]:
    """Return the file that the configuration imports, and what it has without us.

    Raises:
        UsageError: nothing is imported, or an imported file would replace more than it says.
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


def _check_imported(path: Path, version: int, *, own: Path) -> None:
    """Check that no imported file but `own` has a section of the CRI plugin.

    Raises:
        UsageError: one has: what is written elsewhere would be lost, or that section would.
    """
    from firstread.snapshotter.configfile import cri_section

    for place in _imported(path):
        text = read(place) or ""
        with about(place):
            plugin = cri_section(text, version)
            if plugin and os.path.realpath(place) != os.path.realpath(own):
                raise UsageError(
                    f"it has a section of the plugin {plugin}, and containerd takes that from one"
                    " file only",
                    hint='write snapshotter = "firstread" and disable_snapshot_annotations = false'
                    " there by hand, and leave out --default",
                )


def _imported(path: Path) -> list[Path]:
    """Return the files that a configuration imports, and what they import."""
    from firstread.snapshotter.configfile import imports_of

    found = {os.path.realpath(path): path}
    pending = [path]
    while pending:
        place = pending.pop(0)
        text = read(place) or ""
        with about(place):
            names = imports_of(text)
        for name in names:
            for match in sorted(glob.glob(str(place.parent / name))):
                if os.path.realpath(match) not in found:
                    found[os.path.realpath(match)] = Path(match)
                    pending.append(Path(match))
    return list(found.values())[1:]


def _containerd_major() -> int:
    """Return the major version of containerd on this machine; 1 if unknown."""
    try:
        done = subprocess.run(
            ["containerd", "--version"],
            capture_output=True,
            text=True,
            timeout=CHECK_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return 1
    match = re.search(r"\s(?:v)?(\d+)\.\d+\.\d+", done.stdout)
    return int(match[1]) if match else 1


def cri_is_disabled(text: str, version: int) -> bool:
    """Return whether a configuration disables the CRI plugin, as docker's package does."""
    import tomllib

    from firstread.snapshotter.configfile import CRI_PLUGIN

    disabled = tomllib.loads(text).get("disabled_plugins", [])
    return "cri" in disabled or CRI_PLUGIN[version] in disabled


# -- files, for uninstall as well ------------------------------------------------------------------


@contextmanager
def about(path: Path) -> Iterator[None]:
    """Make a UsageError of the block name the file."""
    try:
        yield
    except UsageError as exc:
        exc.about(image=str(path))
        raise


def read(path: Path) -> str | None:
    """Return the text of a file, its line ends as they are; None if it is not there."""
    try:
        return path.read_bytes().decode()
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise from_os_error(exc, "cannot read the configuration") from exc
    except UnicodeDecodeError as exc:
        raise UsageError(f"{path} is not valid TOML: it is not UTF-8") from exc


def difference(path: Path, old: str, new: str) -> list[str]:
    """Return what changes, as ``diff -u`` prints it."""
    lines = difflib.unified_diff(
        old.splitlines(), new.splitlines(), str(path), str(path), lineterm=""
    )
    return list(lines) or [f"{path}: nothing changes"]


def replace(path: Path, old: str | None, new: str, *, main: Path, backup: bool) -> None:
    """Write `new`, when containerd has accepted it; what was there is kept beside it.

    Args:
        path: of the file; a symbolic link stays one, and what it leads to is replaced.
        old: what is there; None for nothing.
        new: what is to be there.
        main: the configuration that containerd reads; `path` itself, or what imports it.
        backup: keep `old`, in place of a copy that was kept before.

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
                check(scratch)
            if backup and old is not None:
                shutil.copy2(target, f"{path}{BACKUP_SUFFIX}")
            scratch.replace(target)
        finally:
            scratch.unlink(missing_ok=True)
        if path != main:  # it is read as a part of the whole only
            _check_import(target, old, main, mode)
    except OSError as exc:
        raise from_os_error(exc, "cannot write the configuration") from exc


def _check_import(path: Path, old: str | None, main: Path, mode: int) -> None:
    try:
        check(main)
    except NodeError:
        if old is None:
            path.unlink()
        else:
            _write(path, old, mode).replace(path)
        raise


def _write(path: Path, text: str, mode: int) -> Path:
    """Write `text` beside `path`, and return where."""
    with tempfile.NamedTemporaryFile(
        "wb", dir=path.parent, prefix=".firstread-", suffix=".tmp", delete=False
    ) as file:
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())
        os.fchmod(file.fileno(), mode)
    return Path(file.name)


def check(path: Path) -> None:
    """Have containerd read a configuration, if it is on this machine.

    Raises:
        NodeError: it does not accept it.
    """
    try:
        done = subprocess.run(
            ["containerd", "--config", str(path), "config", "dump"],
            capture_output=True,
            text=True,
            timeout=CHECK_S,
            check=False,
        )
    except (FileNotFoundError, PermissionError):
        return
    except subprocess.TimeoutExpired as exc:
        raise NodeError("containerd does not answer when it is asked to read it") from exc
    if done.returncode:
        said = done.stderr.strip().splitlines()[-1:] or ["it says nothing"]
        raise NodeError(
            f"containerd does not accept the configuration: {said[0]}",
            hint="nothing was changed",
        )
