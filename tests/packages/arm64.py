# SPDX-License-Identifier: Apache-2.0
"""``python -m tests.packages.arm64 ARCHIVE``: runs the node image of arm64 under qemu.

Converts an image with every feature there and here, and compares digests; reads it back; runs the
unit tests of formats, parsers, compression and the kernel's structs. qemu translates system calls
to this machine's kernel, so mounts, fanotify and memory order stay untried (docs/packages.md).
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Final

from benchmarks.images.build import default_cache
from tests.packages.cleanroot import CleanRoot
from tools.release.nodeimage import PYTHON as IMAGE_PYTHON
from tools.release.programs import run
from tools.release.wheelhouse import TOP, install

from firstread.errors import FirstreadError, NodeError
from firstread.testing.command import firstread
from firstread.testing.images import feature_image, write_layout

ARCH: Final = "arm64"
PYTHON: Final = "/usr/lib/firstread/bin/python3"
RUNNERS: Final = (
    *("hypothesis", "iniconfig", "packaging", "pluggy", "pytest", "pytest-timeout"),
    "sortedcontainers",
)
TESTS: Final = (
    *(f"convert/test_{name}.py" for name in ("acl", "metadata", "pack", "pax", "record", "tar")),
    *(f"device/test_{name}.py" for name in ("device_fuseprotocol", "fanotify", "superblock")),
    *(f"erofs/test_erofs_{name}.py" for name in ("extents", "flatimage", "reader", "writer")),
    *(f"oci/test_oci_{name}.py" for name in ("gojson", "model")),
    *(f"sectors/test_{name}.py" for name in ("decode", "format", "image", "sector_frames")),
    *("sectors/test_sector_store.py", "traces/test_tracefile.py"),
)
"""Files of tests/unit about what another architecture could break: bytes, structs, flags, and the
libraries with compiled parts. They need no program that the image lacks, but `LACKING`."""

LACKING: Final = ("convert/test_pack.py::test_zstd_prints_the_sectors",)
_SLOWLY_S: Final = 3600.0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.packages.arm64", description=__doc__)
    parser.add_argument("archive", type=Path, help="of make image ARCH=arm64")
    parser.add_argument("--tests", nargs="+", default=TESTS, help="of tests/unit")
    options = parser.parse_args()
    cache = default_cache().parent / "roots"
    cache.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix=".arm64-", dir=cache) as scratch:
            made = Path(scratch, "image")
            unpack(options.archive, made)
            with CleanRoot(made, emulated=True) as root:
                for step in (_version, _convert, partial(_test, tests=options.tests)):
                    begin = time.monotonic()
                    print(f"{ARCH}: {step(root)}, {time.monotonic() - begin:.0f} s", flush=True)
    except FirstreadError as exc:
        print(f"{ARCH}: failed: {exc}", file=sys.stderr)
        return 1
    return 0


def unpack(archive: Path, target: Path) -> None:
    """Unpack the one layer of an image in an OCI archive.

    Raises:
        NodeError: tar failed.
    """
    target.mkdir()
    with tarfile.open(archive) as tar:

        def document(name: str) -> dict[str, list[dict[str, str]]]:
            file = tar.extractfile(name)
            assert file is not None
            found: dict[str, list[dict[str, str]]] = json.load(file)
            return found

        (image,) = document("index.json")["manifests"]
        (layer,) = document(_blob(image["digest"]))["layers"]
        tar.extract(_blob(layer["digest"]), target.parent, filter="data")
    run(
        "tar", "--extract", "--gzip", "--file", target.parent / _blob(layer["digest"]), "-C", target
    )


def _blob(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"


def _version(root: CleanRoot) -> str:
    known = json.loads(_good(root, "firstread", "version", "--json"))
    if known["machine"] != "aarch64":
        raise NodeError(f"not emulated: {known}")
    return f"firstread {known['version']}, Python {known['python']}, {known['machine']}"


def _convert(root: CleanRoot) -> str:
    """Convert, there and here: the bytes of an image depend on no architecture."""
    source, target = root.top / "root/plain", root.top / "root/here"
    write_layout(feature_image(), source)
    ran = firstread("convert", "--json", f"oci:{source}:latest", f"oci:{target}:1")
    if ran.code:
        raise NodeError(f"cannot convert here: {ran.stderr or ran.stdout}")
    images = ("oci:/root/plain:latest", "oci:/root/lazy:1")
    there = _good(root, "firstread", "convert", "--json", *images)
    digests = [json.loads(text)["digest"] for text in (ran.stdout, there)]
    if len(set(digests)) != 1:
        raise NodeError(f"conversions differ: {digests}")
    _good(root, "firstread", "verify", images[1], "--source", images[0])
    return f"converted to the same digest as here, and verified: {digests[0]}"


def _test(root: CleanRoot, tests: Sequence[str]) -> str:
    """Run unit tests with the libraries of the image, and test runners of the lock file."""
    checkout = root.top / "root/checkout"
    install(RUNNERS, ARCH, IMAGE_PYTHON, checkout / "runners")
    shutil.copytree(TOP / "tests", checkout / "tests")
    shutil.copy(TOP / "pyproject.toml", checkout)
    # Rewriting the assertions of tests, and of hypothesis, takes minutes under qemu.
    options = ["-q", "-p", "no:cacheprovider", "--assert=plain", "--timeout=1500"]
    options.append("--hypothesis-profile=emulated")
    options += [f"--deselect=tests/unit/{name}" for name in LACKING]
    command = ["cd", "/root/checkout", "&&", "exec", PYTHON, "-m", "pytest", *options]
    command += [f"tests/unit/{name}" for name in tests]
    environment = {"PYTHONPATH": "/root/checkout/runners", "FIRSTREAD_PATIENCE_S": "600"}
    said = _good(root, "sh", "-c", " ".join(command), env=environment)
    return f"unit tests: {said.strip().splitlines()[-1].partition(' in ')[0]}"


def _good(root: CleanRoot, *command: str, env: dict[str, str] | None = None) -> str:
    try:
        done = root.run(*command, env=env, timeout_s=_SLOWLY_S)
    except subprocess.TimeoutExpired as exc:
        raise NodeError(f"{' '.join(command)} does not end") from exc
    if done.code:
        raise NodeError(f"{' '.join(command)}: exit {done.code}: {done.output[-3000:]}")
    return done.output


if __name__ == "__main__":
    sys.exit(main())
