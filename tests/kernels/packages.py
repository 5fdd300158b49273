# SPDX-License-Identifier: Apache-2.0
"""Debian's packaged kernels, by apt, unpacked into a cache.

Owns a private apt configuration for each suite: the host's mirror and keys, other suites. Installs
nothing and leaves the host's lists alone. Invariant: an unpacked kernel has its modules' index,
and appears by one rename.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from firstread.errors import NodeError

SUITES: Final = ("bullseye", "bookworm", "trixie", "trixie-backports")
"""Debian's suites, whose kernels are 5.10, 6.1, 6.12 and a recent one; apt says which exactly."""

_PACKAGE: Final = "linux-image-amd64"
_KEYS: Final = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_DEPENDS: Final = re.compile(r"^Depends: (.*)", re.MULTILINE)
_IMAGE: Final = re.compile(r"linux-image-([0-9][^ ,]{1,100}) \(= ([^ )]{1,100})\)")
_TIMEOUT_S: Final = 600


@dataclass(frozen=True)
class Kernel:
    """An unpacked kernel.

    Args:
        suite: that has it.
        release: as ``uname -r`` says.
        version: of the package.
        top: directory with ``lib/modules/RELEASE``.
    """

    suite: str
    release: str
    version: str
    top: Path

    @property
    def image(self) -> Path:
        """The compressed kernel."""
        name = f"vmlinuz-{self.release}"
        return next(self.top.glob(f"boot/{name}"), self.top / f"lib/modules/{self.release}/vmlinuz")


def kernel_of(suite: str, cache: Path) -> Kernel:
    """Return the kernel that a suite has now; download it if the cache lacks it.

    Args:
        suite: of `SUITES`.
        cache: directory for lists and kernels.

    Raises:
        NodeError: the host's mirror has no such suite, or no kernel in it.
    """
    place = cache / suite
    place.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"APT_CONFIG": str(_configure(suite, place))}
    _run(["apt-get", "update", "--quiet=2"], place, environment)
    shown = _run(["apt-cache", "show", "--no-all-versions", _PACKAGE], place, environment)
    release, version = newest(shown)
    kernel = Kernel(suite, release, version, place / release)
    if not kernel.top.exists():
        _unpack(kernel, place, environment)
    return kernel


def newest(shown: str) -> tuple[str, str]:
    """Return release and package version from what apt shows of the metapackage.

    Raises:
        NodeError: it does not say.
    """
    depends = _DEPENDS.search(shown)
    found = _IMAGE.search(depends[1]) if depends else None
    if not found:
        raise NodeError(f"apt does not say which kernel {_PACKAGE} stands for")
    return found[1], found[2]


def _configure(suite: str, place: Path) -> Path:
    """Write a configuration of apt that knows one suite of Debian's archive; return its path."""
    command = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Label: Debian"]
    mirrors = sorted(set(_run(command, place, dict(os.environ)).split()))
    if not mirrors:
        raise NodeError("apt knows no mirror of Debian's archive", hint="run this on Debian")
    signed = f"[signed-by={_KEYS}] " if _KEYS.exists() else ""
    (place / "sources.list").write_text(f"deb {signed}{mirrors[0]} {suite} main\n")
    for name in ("lists/partial", "archives/partial", "none"):
        (place / name).mkdir(parents=True, exist_ok=True)
    settings = {
        "Dir::Etc::sourcelist": place / "sources.list",
        "Dir::Etc::sourceparts": place / "none",
        "Dir::State::lists": place / "lists",
        "Dir::Cache": place,
        "Acquire::Languages": "none",
        "APT::Sandbox::User": "root",
    }
    path = place / "apt.conf"
    path.write_text("".join(f'{name} "{value}";\n' for name, value in settings.items()))
    return path


def _unpack(kernel: Kernel, place: Path, environment: dict[str, str]) -> None:
    name = f"linux-image-{kernel.release}"
    shown = _run(["apt-cache", "show", "--no-all-versions", name], place, environment)
    # From 7.3 on that is empty, and its parts are in linux-binary-*, linux-modules-* and others.
    parts = re.findall(rf"\blinux-[a-z]{{1,20}}-{re.escape(kernel.release)}(?= )", shown)
    names = sorted({name, *parts})
    with tempfile.TemporaryDirectory(dir=place) as scratch:
        _run(["apt-get", "download", *names], Path(scratch), environment)
        top = Path(scratch, "top")
        for package in Path(scratch).glob("*.deb"):
            _run(["dpkg-deb", "--extract", str(package), str(top)], place, environment)
        if not (top / "lib").exists():
            (top / "lib").symlink_to("usr/lib")
        _run(["depmod", "--basedir", str(top), kernel.release], place, environment)
        for other in place.glob("*/boot"):  # of an older package
            shutil.rmtree(other.parent)
        top.rename(kernel.top)


def _run(command: list[str], cwd: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(
        command,
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no message"])[0]
        raise NodeError(f"{' '.join(command[:2])} failed: {said}")
    return done.stdout
