# SPDX-License-Identifier: Apache-2.0
"""``python -m tools.release.nodeimage DEB``: makes the DaemonSet's image, an OCI archive.

Owns what is in it: the essential packages of Debian, what the daemon starts, and firstread's
package, installed by dpkg. Two steps: packages are downloaded once; the image is made of them where
there is no network. Invariant: its digest depends on those packages and SOURCE_DATE_EPOCH alone.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from tools.release.aptarchive import download, index_packages
from tools.release.programs import TIMEOUT_S, main, run, source_date
from tools.release.wheelhouse import MACHINES, TOP, pythons

from firstread.layouts.archive import OciArchiveWriter
from firstread.oci.model import (
    OCI_CONFIG,
    OCI_LAYER,
    OCI_MANIFEST,
    Descriptor,
    Manifest,
    describe,
    encode,
)
from firstread.oci.reference import parse_reference
from firstread.units import MiB

SUITE: Final = "trixie"
PYTHON: Final = "3.13"  # of that suite
PACKAGES: Final = ("ca-certificates", "mount", "util-linux")
"""Beside what firstread depends on: certificates of registries, umount(8), nsenter(1) for the
component that configures containerd."""

_SLOWLY_S: Final = 7200.0  # under qemu, compiling modules alone takes tens of minutes

_OMITTED: Final = tuple(f"/usr/share/{name}/*" for name in ("doc", "info", "locale", "man"))
_KEPT: Final = ("/usr/share/doc/*/copyright",)
_EMPTIED: Final = (  # what programs keep for their next run, or note of this one
    "etc/apt/sources.list",  # names the archive of this build
    "etc/hostname",
    "etc/resolv.conf",
    "var/cache/ldconfig/aux-cache",
    "var/cache/debconf/*-old",
    "var/lib/dpkg/*-old",
    "var/log/*",
    "var/lib/apt/*",
)


def _make() -> list[str]:
    parser = argparse.ArgumentParser(prog="python -m tools.release.nodeimage", description=__doc__)
    parser.add_argument("package", type=Path, help="firstread's .deb")
    parser.add_argument("--cache", type=Path, default=TOP / "build", help="of packages [build]")
    parser.add_argument("--output", type=Path, default=TOP / "dist", help="directory [dist]")
    options = parser.parse_args()
    made, digest = build(options.package, options.cache, options.output, source_date())
    return [f"{made}", f"  {digest}, {made.stat().st_size / MiB:.1f} MiB"]


def build(package: Path, cache: Path, output: Path, epoch: int) -> tuple[Path, str]:
    """Make the image of `package`; return the archive, and the digest of the image's manifest.

    Args:
        package: of firstread.
        cache: directory of downloaded packages.
        output: directory of the archive.
        epoch: date of everything in it, in seconds since 1970.

    Raises:
        NodeError: a package cannot be had, a program failed, or the archive cannot be written.
        OSError: a file cannot be read or written.
    """
    shown = "--showformat=${Architecture} ${Version} ${Depends}"
    arch, version, depends = run("dpkg-deb", "--show", shown, package).split(" ", 2)
    names = [each.split()[0] for each in depends.split(",")]
    wanted = [f"?and(?architecture({arch}),?essential)", *names, *PACKAGES]
    key = hashlib.sha256(" ".join(wanted).encode()).hexdigest()[:12]
    debian = cache / f"debian-{SUITE}-{arch}-{key}"
    if not debian.exists():
        download(SUITE, arch, wanted, debian)
    output.mkdir(parents=True, exist_ok=True)
    target = output.absolute() / f"firstread-node_{version}_{arch}.oci.tar"
    with tempfile.TemporaryDirectory(prefix="firstread-image-", dir=output) as scratch:
        layer = Path(scratch, "layer.tar")
        ours = Path(scratch, "packages")
        ours.mkdir()
        shutil.copy(package, ours)
        index_packages(ours, SUITE)
        _make_root((debian, ours), arch, layer, epoch)
        return target, _write(layer, arch, version, epoch, target)


def _make_root(archives: Sequence[Path], arch: str, layer: Path, epoch: int) -> None:
    others = [f"{python[0]}{python[2:]}" for python in pythons() if python != PYTHON]
    omitted = [*_OMITTED, *(f"/usr/lib/firstread/*.cpython-{each}-*" for each in others)]
    filters = [f"path-exclude={each}" for each in omitted] + [f"path-include={e}" for e in _KEPT]
    patterns = " ".join(f'"$1"/{each}' for each in _EMPTIED)
    foreign = MACHINES[arch] != os.uname().machine
    emulated = (sys.executable, "-m", "tools.release.emulation") if foreign else ()
    command = [
        *(*emulated, "unshare", "--net", "mmdebstrap", "--mode=root", "--variant=essential"),
        f"--architectures={arch}",
        f"--include={','.join(('firstread', *PACKAGES))}",
        *(f"--dpkgopt={each}" for each in filters),
        f"--customize-hook=rm -rf {patterns}",
        *("--skip=check/empty,check/qemu", SUITE, str(layer)),
        *(f"deb [trusted=yes] copy:{archive.absolute()} ./" for archive in archives),
    ]
    environment = os.environ | {"SOURCE_DATE_EPOCH": str(epoch), "PYTHONHASHSEED": "0"}
    run(*command, environment=environment, timeout_s=_SLOWLY_S if foreign else TIMEOUT_S)


def _write(layer: Path, arch: str, version: str, epoch: int, target: Path) -> str:
    """Write the archive of one layer; return the digest of its manifest."""
    packed = layer.with_suffix(".gz")
    with layer.open("rb") as plain:
        diff_id = _digest(plain)
        plain.seek(0)
        with packed.open("wb") as raw, gzip.GzipFile("", "wb", 6, raw, mtime=0) as zipped:
            shutil.copyfileobj(plain, zipped, MiB)
    config = encode(_config(arch, version, epoch, diff_id))
    to = parse_reference(f"oci-archive:{target}")
    with OciArchiveWriter(to) as archive, packed.open("rb") as file:
        size = packed.stat().st_size
        blob = Descriptor(media_type=f"{OCI_LAYER}+gzip", digest=_digest(file), size=size)
        file.seek(0)
        archive.put_blob(blob, file)
        described = describe(config, OCI_CONFIG)
        archive.put_blob(described, io.BytesIO(config))
        manifest = encode(Manifest(config=described, layers=[blob]))
        return archive.put_manifest(manifest, OCI_MANIFEST, version).digest


def _config(arch: str, version: str, epoch: int, diff_id: str) -> dict[str, object]:
    created = datetime.fromtimestamp(epoch, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "created": created,
        "architecture": arch,
        "os": "linux",
        "config": {
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "Entrypoint": ["/usr/bin/firstread"],
            "Cmd": ["daemon"],
            "Labels": {"org.opencontainers.image.version": version},
        },
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        "history": [{"created": created, "created_by": "make image"}],
    }


def _digest(file: io.BufferedReader) -> str:
    return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


if __name__ == "__main__":
    sys.exit(main(_make))
