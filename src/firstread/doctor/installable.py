# SPDX-License-Identifier: Apache-2.0
"""What holds of containerd and its configuration before somebody changes it.

Reads files and asks containerd; writes nothing. The rules of the text itself are those of
`firstread.snapshotter.configfile`.
"""

from __future__ import annotations

import glob
import os
import re
import subprocess
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from firstread.errors import NodeError, UsageError, from_os_error
from firstread.snapshotter.configfile import CRI_PLUGIN, cri_section, imports_of

CHECK_S = 30.0  # for containerd to read its configuration


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


def check_imported(path: Path, version: int, *, own: Path) -> None:
    """Check that no imported file but `own` has a section of the CRI plugin.

    Raises:
        UsageError: one has: what is written elsewhere would be lost, or that section would.
    """
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


def containerd_major() -> int:
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
    disabled = tomllib.loads(text).get("disabled_plugins", [])
    return "cri" in disabled or CRI_PLUGIN[version] in disabled


def check_accepted(path: Path) -> None:
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
