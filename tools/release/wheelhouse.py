# SPDX-License-Identifier: Apache-2.0
"""The wheels that firstread runs on: versions and hashes of packaging/requirements.lock.

Owns fetching them, for any architecture and every Python of pyproject.toml, and joining them in one
directory. Invariants: a directory of wheels is complete or absent, and only `fetch` needs a
network. Nothing is compiled: a library without a wheel for a platform is an error.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tools.release.programs import run

from firstread.errors import NodeError

TOP: Final = Path(__file__).parents[2]
LOCK: Final = TOP / "packaging/requirements.lock"
MACHINES: Final = {"amd64": "x86_64", "arm64": "aarch64"}
"""Names of `uname -m`, by Debian's of an architecture."""

GLIBC: Final = "2.28"
"""The newest C library that a wheel may ask for: that of manylinux_2_28."""

_MINORS: Final = (17, 24, 27, 28)
_CLASSIFIER: Final = re.compile(r"Programming Language :: Python :: (3\.\d+)")
_UNUSED: Final = re.compile(
    r"bin/|zstandard/_cffi\.|.*\.dist-info/(RECORD|INSTALLER|REQUESTED|direct_url)"
    r"|numpy/(f2py|random)/|numpy/.*(/tests/|/include/|\.a$|\.pyi$)"
)
"""Scripts of libraries; a second implementation that would need cffi; records of pip; of numpy what
only compilers, type checkers and its own tests read, and what it loads on request."""

_OF_THE_BUILD: Final = re.compile(r".*\.dist-info/WHEEL|numpy/__config__\.py")
"""What tells how a wheel was built, and may differ."""


def pythons() -> list[str]:
    """Return the versions of Python that pyproject.toml names, such as ``3.11``."""
    classifiers = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]["classifiers"]
    return [found[1] for each in classifiers if (found := _CLASSIFIER.fullmatch(each))]


def fetch(arch: str, cache: Path) -> Path:
    """Return a directory with the wheels for `arch`; download them if `cache` lacks it.

    Raises:
        NodeError: pip cannot download one.
    """
    key = hashlib.sha256(LOCK.read_bytes()).hexdigest()[:12]
    place = cache / f"wheels-{arch}-{key}"
    if place.exists():
        return place
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        wheels = Path(scratch, "wheels")
        for python in pythons():
            _pip("download", "--dest", wheels, *_target(arch, python), *_locked())
        wheels.rename(place)
    return place


def join(wheels: Path, arch: str, site: Path) -> None:
    """Unpack the wheels of every Python into `site`; extension modules name theirs.

    Raises:
        NodeError: pip refuses a wheel, or two Pythons need different files of one name.
    """
    for python in pythons():
        with tempfile.TemporaryDirectory(dir=site.parent) as scratch:
            offline = ("--no-index", "--find-links", wheels, "--no-compile")
            _pip("install", "--target", scratch, *offline, *_target(arch, python), *_locked())
            _merge(Path(scratch), site)


def install(names: Sequence[str], arch: str, python: str, target: Path) -> None:
    """Install what only tests need into `target`, in the versions of requirements.lock.

    Args:
        names: of libraries, and of all that they depend on.
        arch: one of `MACHINES`.
        python: version, such as ``3.13``.
        target: a directory that does not exist.

    Raises:
        NodeError: pip cannot install one.
    """
    entries = re.split(r"\n(?=\S)", (TOP / "requirements.lock").read_text())
    wanted = [entry for entry in entries if entry.partition("==")[0] in names]
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join(wanted))
        file.flush()
        options = ("--no-deps", "--require-hashes", "--no-compile", f"--requirement={file.name}")
        _pip("install", "--target", target, *_target(arch, python), *options)


def _pip(*arguments: str | Path) -> None:
    quiet = {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_ROOT_USER_ACTION": "ignore"}
    run(sys.executable, "-m", "pip", "--quiet", *arguments, environment=os.environ | quiet)


def _target(arch: str, python: str) -> list[str]:
    tags = [f"manylinux_2_{minor}_{MACHINES[arch]}" for minor in _MINORS]
    tags.append(f"manylinux2014_{MACHINES[arch]}")
    platforms = [option for tag in tags for option in ("--platform", tag)]
    return ["--only-binary=:all:", "--implementation=cp", f"--python-version={python}", *platforms]


def _locked() -> list[str]:
    return ["--no-deps", "--require-hashes", f"--requirement={LOCK}"]


def _merge(source: Path, site: Path) -> None:
    for path in sorted(source.rglob("*")):
        name = str(path.relative_to(source))
        if path.is_dir() or _UNUSED.match(name):
            continue
        target = site / name
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            path.rename(target)
        elif target.read_bytes() != path.read_bytes() and not _OF_THE_BUILD.fullmatch(name):
            raise NodeError(f"two versions of Python need different files {name}")
