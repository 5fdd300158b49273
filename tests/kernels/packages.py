# SPDX-License-Identifier: Apache-2.0
"""Debian's packaged kernels, by apt, unpacked into a cache.

Installs nothing. Invariant: an unpacked kernel has its modules' index,
and appears by one rename.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tools.release.aptarchive import configure
from tools.release.programs import run

from firstread.errors import NodeError

SUITES: Final = ("bullseye", "bookworm", "trixie", "trixie-backports")
"""Debian's suites, whose kernels are 5.10, 6.1, 6.12 and a recent one; apt says which exactly."""

_PACKAGE: Final = "linux-image-amd64"
_DEPENDS: Final = re.compile(r"^Depends: (.*)", re.MULTILINE)
_IMAGE: Final = re.compile(r"linux-image-([0-9][^ ,]{1,100}) \(= ([^ )]{1,100})\)")


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
    environment = os.environ | {"APT_CONFIG": str(configure(suite, place))}
    run("apt-get", "update", "--quiet=2", environment=environment)
    shown = run("apt-cache", "show", "--no-all-versions", _PACKAGE, environment=environment)
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


def _unpack(kernel: Kernel, place: Path, environment: dict[str, str]) -> None:
    name = f"linux-image-{kernel.release}"
    shown = run("apt-cache", "show", "--no-all-versions", name, environment=environment)
    # From 7.3 on that is empty, and its parts are in linux-binary-*, linux-modules-* and others.
    parts = re.findall(rf"\blinux-[a-z]{{1,20}}-{re.escape(kernel.release)}(?= )", shown)
    names = sorted({name, *parts})
    with tempfile.TemporaryDirectory(dir=place) as scratch:
        run("apt-get", "download", *names, cwd=Path(scratch), environment=environment)
        top = Path(scratch, "top")
        for package in Path(scratch).glob("*.deb"):
            run("dpkg-deb", "--extract", package, top)
        if not (top / "lib").exists():
            (top / "lib").symlink_to("usr/lib")
        run("depmod", "--basedir", top, kernel.release)
        for other in place.glob("*/boot"):  # of an older package
            shutil.rmtree(other.parent)
        top.rename(kernel.top)
