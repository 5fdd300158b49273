# SPDX-License-Identifier: Apache-2.0
"""``firstread uninstall``: undoes ``firstread install``."""

from __future__ import annotations

from pathlib import Path

import click

from firstread.cli.install import (
    BACKUP_SUFFIX,
    DROP_IN,
    config_option,
    difference,
    dry_run_option,
    replace,
    target_argument,
)
from firstread.cli.output import report
from firstread.doctor.installable import about, read
from firstread.errors import from_os_error


@click.command()
@target_argument
@config_option
@dry_run_option
def command(target: str, path: Path, *, dry_run: bool) -> None:
    """Remove the snapshotter of firstread from containerd's configuration.

    Later changes by others stay. A file without anything else is removed.
    """
    from firstread.snapshotter.configfile import removed
    from firstread.snapshotter.imagefs import unlink

    found = False
    places = [path, *_drop_ins(path)]
    if not dry_run:
        unlink(read(path) or "")
    for place in places:
        old = read(place)
        if old is None:
            continue
        with about(place):
            new = removed(old)
        if new == old:
            continue
        found = True
        if dry_run:
            report(difference(place, old, new))
        elif _is_ours(place, new):
            _remove(place.resolve())  # a symbolic link is not ours
            report([f"{place}: removed, since it had no other content"])
        else:
            replace(place, old, new, main=path, backup=False)
            kept = Path(f"{place}{BACKUP_SUFFIX}")
            if read(kept) == new:
                _remove(kept)
                report([f"{place}: restored"])
            else:
                report([f"{place}: without firstread; it was changed since, so {kept} stays"])
    if not found:
        report([f"{path}: has no block of firstread"])
    elif not dry_run:
        report(["  restart containerd to apply it: systemctl restart containerd"])


def _drop_ins(path: Path) -> list[Path]:
    """Return the possible paths of an imported file of ours."""
    import tomllib

    from firstread.snapshotter.configfile import removed

    text = read(path) or ""
    with about(path):
        removed(text)  # is it TOML at all?
    imports = tomllib.loads(text).get("imports", [])
    return [
        path.parent / Path(pattern).parent / DROP_IN
        for pattern in (imports if isinstance(imports, list) else [])
        if isinstance(pattern, str) and pattern.endswith("/*.toml")
    ]


def _is_ours(path: Path, rest: str) -> bool:
    """Return whether we created a file: it has no copy, and nothing else in it."""
    lines = [line for line in rest.splitlines() if line.strip()]
    return not Path(f"{path}{BACKUP_SUFFIX}").exists() and (
        not lines or (len(lines) == 1 and lines[0].startswith("version = "))
    )


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as exc:
        raise from_os_error(exc, "cannot remove the file") from exc
