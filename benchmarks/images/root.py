# SPDX-License-Identifier: Apache-2.0
"""Running the script of one layer over the layers below it.

Owns the mounts of a build. They live in a separate mount and process namespace (unshare(1)), which
takes them, and every process that a package started, away when the script ends. Invariant: the
script borrows proxy, certificate, resolver and mirror settings of the host; they never reach a
layer.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.images.recipes import PATH, SUITE, Layer
from firstread.errors import NodeError

if TYPE_CHECKING:
    from collections.abc import Sequence

CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
NAMESPACES = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
LENT = re.compile(
    r"(https?|no|all|ftp)_proxy|PIP_(EXTRA_)?INDEX_URL|PIP_TRUSTED_HOST", re.IGNORECASE
)

OVERLAY = """\
mount -t overlay overlay "$ROOT" \
    -o "lowerdir=$LOWER,upperdir=$UPPER,workdir=$WORK,redirect_dir=off,metacopy=off,index=off"
"""
# Package lists and archives stay beside the image, for the next one; /tmp is scratch.
CHROOT = """\
mount -t proc proc "$ROOT/proc"
mount --bind "$SCRATCH/tmp" "$ROOT/tmp"
mount --bind "$SCRATCH/lists" "$ROOT/var/lib/apt/lists"
mount --bind "$SCRATCH/archives" "$ROOT/var/cache/apt"
mount --bind /etc/resolv.conf "$ROOT/etc/resolv.conf"
exec chroot "$ROOT" /bin/sh -euc "$SCRIPT"
"""
HOST = """\
exec /bin/sh -euc "$SCRIPT"
"""


def run_layer(layer: Layer, lowers: Sequence[Path], upper: Path, scratch: Path) -> None:
    """Run the script of `layer` and collect its changes in `upper`.

    Args:
        layer: the script.
        lowers: directories of the layers below, lowest first.
        upper: an empty directory; not on overlayfs.
        scratch: directory shared by the layers of one build.

    Raises:
        NodeError: the script failed.
    """
    lend(scratch)
    work = upper.with_name(upper.name + ".work")
    merged = upper.with_name(upper.name + ".root")
    work.mkdir()
    merged.mkdir()
    script = "set -eu\n" + (OVERLAY if lowers else "") + (CHROOT if layer.inside else HOST)
    environment = {
        "ROOT": str(merged if lowers else upper),
        "LOWER": ":".join(str(lower) for lower in reversed(lowers)),
        "UPPER": str(upper),
        "WORK": str(work),
        "SCRATCH": str(scratch),
        "SCRIPT": layer.script,
        **_environment(inside=layer.inside),
    }
    if "$MIRROR" in layer.script:
        environment["MIRROR"] = debian_mirror()
    run = subprocess.run(
        ("nice", "-n", "10", *NAMESPACES, "sh", "-c", script),
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    shutil.rmtree(work)
    merged.rmdir()
    if run.returncode:
        sys.stderr.write(run.stdout[-4000:])
        raise NodeError(f"the script of a layer failed with {run.returncode}, see above")


def lend(scratch: Path) -> None:
    """Copy the host's settings into `scratch`, where scripts in the image find them."""
    for name in ("tmp", "lists", "archives"):
        (scratch / name).mkdir(exist_ok=True)
    (scratch / "tmp").chmod(0o1777)
    dump = subprocess.run(("apt-config", "dump"), capture_output=True, text=True, check=True)
    lines = [line for line in dump.stdout.splitlines() if line.startswith("Acquire::")]
    lines.append('DPkg::Options:: "--force-unsafe-io";')
    if CERTIFICATES.exists():
        shutil.copy(CERTIFICATES, scratch / "tmp")
        lines.append(f'Acquire::https::CAInfo "/tmp/{CERTIFICATES.name}";')
    (scratch / "tmp/apt.conf").write_text("\n".join(lines) + "\n")


def _environment(*, inside: bool) -> dict[str, str]:
    """Return the environment of a script; on the host that of this process."""
    if not inside:
        packages = os.pathsep.join(path for path in sys.path if path)
        return {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": packages, "LC_ALL": "C.UTF-8"}
    lent = {name: value for name, value in os.environ.items() if LENT.fullmatch(name)}
    return {
        "PATH": PATH,
        "HOME": "/tmp",
        "LC_ALL": "C.UTF-8",
        "DEBIAN_FRONTEND": "noninteractive",
        "APT_CONFIG": "/tmp/apt.conf",
        **({"PIP_CERT": f"/tmp/{CERTIFICATES.name}"} if CERTIFICATES.exists() else {}),
        **lent,
    }


def debian_mirror() -> str:
    """Return the address of the Debian archive that the host's apt uses.

    Raises:
        NodeError: its sources name none.
    """
    uris = subprocess.run(
        ("apt-get", "--print-uris", "update"), capture_output=True, text=True, check=True
    ).stdout
    listed = re.findall(r"^'(\S+)/dists/(\S+)/InRelease'", uris, re.MULTILINE)
    found: dict[str, str] = {suite: uri for uri, suite in listed}
    archives = [uri for uri in found.values() if uri.endswith("/debian")]
    mirror = found.get(SUITE) or next(iter(archives), None)
    if mirror is None:
        raise NodeError("apt knows no Debian archive", hint="add one to /etc/apt/sources.list")
    return mirror
