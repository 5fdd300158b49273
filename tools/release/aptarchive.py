# SPDX-License-Identifier: Apache-2.0
"""Packages of Debian's archive, for another suite or architecture than the host's.

Owns private configurations of apt, with the host's mirror and keys, and directories of packages
that are archives themselves. Installs nothing, and leaves the host's lists alone.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tools.release.programs import run

from firstread.errors import NodeError

_KEYS: Final = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


def configure(suite: str, place: Path, arch: str | None = None, *, updates: bool = False) -> Path:
    """Write a configuration of apt that knows one suite of Debian's archive; return its path.

    Args:
        suite: of Debian.
        place: directory for lists and downloads.
        arch: of the packages, by Debian's name; the host's unless given. With one, nothing
            counts as installed.
        updates: whether it knows the suite's updates, too, and security updates if the host does.

    Raises:
        NodeError: the host's apt knows no mirror of Debian's archive.
    """
    mirrors = _mirrors("Debian")
    if not mirrors:
        raise NodeError("apt knows no mirror of Debian's archive", hint="run this on Debian")
    sources = [f"{mirrors[0]} {suite}"]
    if updates:
        sources.append(f"{mirrors[0]} {suite}-updates")
        sources += [f"{mirror} {suite}-security" for mirror in _mirrors("Debian-Security")[:1]]
    signed = f"[signed-by={_KEYS}] " if _KEYS.exists() else ""
    lines = [f"deb {signed}{source} main\n" for source in sources]
    (place / "sources.list").write_text("".join(lines))
    for name in ("lists/partial", "archives/partial", "none"):
        (place / name).mkdir(parents=True, exist_ok=True)
    settings: dict[str, object] = {
        "Dir::Etc::sourcelist": place / "sources.list",
        "Dir::Etc::sourceparts": place / "none",
        "Dir::State::lists": place / "lists",
        "Dir::Cache": place,
        "Acquire::Languages": "none",
        "APT::Sandbox::User": "root",
    }
    if arch is not None:
        (place / "status").touch()
        settings |= {"APT::Architecture": arch, "Dir::State::status": place / "status"}
    path = place / "apt.conf"
    text = [f'{name} "{value}";\n' for name, value in settings.items()]
    if arch is not None:
        text.append(f'#clear APT::Architectures;\nAPT::Architectures {{ "{arch}"; }};\n')
    path.write_text("".join(text))
    return path


def download(suite: str, arch: str, wanted: Sequence[str], target: Path) -> Path:
    """Download packages, with updates, and their dependencies; make `target` an archive of them.

    Args:
        suite: of Debian.
        arch: Debian's name of an architecture.
        wanted: names, patterns of apt, or paths of packages.
        target: a directory that does not exist; it appears when it is complete.

    Raises:
        NodeError: a package cannot be had.
    """
    target = target.absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        place = Path(scratch)
        environment = os.environ | {"APT_CONFIG": str(configure(suite, place, arch, updates=True))}
        run("apt-get", "update", "--quiet=2", environment=environment)
        options = ["--download-only", "--yes", "--quiet=2", "--no-install-recommends"]
        run("apt-get", "install", *options, *wanted, environment=environment)
        packages = place / "packages"
        packages.mkdir()
        for package in place.glob("archives/*.deb"):
            # apt escapes the colon of an epoch, and a scheme such as file: would read that anew.
            package.rename(packages / package.name.replace("%3a", "-"))
        index_packages(packages, suite)
        packages.rename(target)
    return target


def _mirrors(label: str) -> list[str]:
    """Return the addresses that the host's apt has for the archive of this label."""
    command = ("apt-get", "indextargets", "--format", "$(REPO_URI)", f"Label: {label}")
    return sorted(set(run(*command).split()))


def index_packages(directory: Path, suite: str) -> None:
    """Make a directory of packages an archive: write its Packages and Release."""
    listed = run("dpkg-scanpackages", "--multiversion", ".", cwd=directory)
    data = listed.encode()
    (directory / "Packages").write_bytes(data)
    line = f" {hashlib.sha256(data).hexdigest()} {len(data)} Packages"
    (directory / "Release").write_text(f"Suite: {suite}\nCodename: {suite}\nSHA256:\n{line}\n")
