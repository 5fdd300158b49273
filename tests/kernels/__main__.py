# SPDX-License-Identifier: Apache-2.0
"""``python -m tests.kernels [quick|full]``: tries every device on Debian's kernels, in guests.

Quick: a daemon with each device mounts a small image, and another process checks the digests of its
files. Full: likewise an image with every feature, a part of the suites of the device and of a node
with it, ``firstread run`` and a pod of containerd. Exits with 1 if a guest did not come to its end,
or if a device that works failed a check.
"""

from __future__ import annotations

import argparse
import compileall
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec
from benchmarks.images.build import default_cache
from tests.kernels.guest import boot, disk
from tests.kernels.matrix import Result, chapter, is_good, load, merged, put, save
from tests.kernels.packages import SUITES, kernel_of

from firstread.errors import FirstreadError, NodeError
from firstread.testing.command import firstread
from firstread.testing.images import feature_image, write_layout
from firstread.testing.plainimage import put_plain_image
from firstread.units import GiB

TOP: Final = Path(__file__).parents[2]
DEPTHS: Final = {"quick": 900.0, "full": 7200.0}
"""What is tried, and how many seconds a guest may take for it."""

_SCRIPT: Final = """
export PATH={path} HOME={home} TMPDIR=/scratch FIRSTREAD_PATIENCE_S=300 PYTHONDONTWRITEBYTECODE=1
mount -t ext4 /dev/vda /scratch || exit 1
ulimit -n 65536
modprobe nbd  # which no kernel loads by itself
# crun copies its own program with sendfile(2), which Linux 5.10 does not do from 9p.
mkdir /run/bin && cp "$(command -v crun)" /run/bin && export PATH="/run/bin:$PATH"
cd {top} && exec {python} -m tests.kernels.inside {depth} /out {devices}
"""


def main() -> int:
    options = _parse()
    cache = default_cache().parent / "kernels"
    cache.mkdir(parents=True, exist_ok=True)
    for room in ("src", "tests", "benchmarks"):  # an emulated processor would take minutes for it
        compileall.compile_dir(TOP / room, quiet=1)
    kept, failed = load(cache / "results.json"), False
    for suite in options.kernel or SUITES:
        try:
            result = try_kernel(suite, options.depth, options.device, cache)
        except FirstreadError as exc:
            print(f"{suite}: {exc.message}", file=sys.stderr)
            failed = True
            continue
        print(chapter([result], [suite]), flush=True)
        failed |= not is_good(result)
        kept = load(cache / "results.json")  # others may have written it meanwhile
        kept[suite] = merged(kept.get(suite), result)
        save(kept, cache / "results.json")
    if options.docs:
        found = [kept[suite] for suite in SUITES if suite in kept]
        put("kernels", chapter(found, setting("make test-kernels")))
    return 1 if failed else 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.kernels", description=__doc__)
    parser.add_argument("depth", nargs="?", choices=DEPTHS, default="quick")
    parser.add_argument("--kernel", action="append", choices=SUITES, help="only that of a suite")
    parser.add_argument("--device", action="append", default=[], help="only these devices")
    parser.add_argument("--docs", action="store_true", help="write the table to docs/devices.md")
    return parser.parse_args()


def try_kernel(suite: str, depth: str, devices: Sequence[str], cache: Path) -> Result:
    """Boot the kernel of a suite, and try devices on it: all, if none is named.

    Raises:
        NodeError: there is no such kernel, or the guest has no result.
    """
    kernel = kernel_of(suite, cache)
    with tempfile.TemporaryDirectory(prefix="guest-", dir=cache) as scratch:
        out = Path(scratch, "out")
        out.mkdir()
        put_images(out)
        ended = boot(
            kernel,
            script(depth, devices),
            out,
            arguments=disk(Path(scratch, "disk"), 8 * GiB),
            timeout_s=DEPTHS[depth],
        )
        logs = cache / f"logs-{suite}"
        shutil.rmtree(logs, ignore_errors=True)
        shutil.copytree(out, logs, ignore=shutil.ignore_patterns("plain", "features"))
    if not (logs / "result.json").exists():
        last = (ended.output or ended.console).strip()[-1000:]
        raise NodeError(f"the guest with Linux {kernel.release} has no result, see {logs}:\n{last}")
    result = msgspec.json.decode((logs / "result.json").read_bytes(), type=Result)
    if ended.code != 0:
        print(f"the guest did not come to its end, see {logs}", file=sys.stderr)
    result.package = f"{kernel.suite} {kernel.version}"
    result.seconds = ended.seconds
    return result


def script(depth: str, devices: Sequence[str]) -> str:
    """Return the script of a guest."""
    words = {"path": os.environ["PATH"], "home": str(Path.home()), "top": str(TOP)}
    words |= {"python": sys.executable, "depth": depth}
    quoted = {name: shlex.quote(word) for name, word in words.items()}
    return _SCRIPT.format(**quoted, devices=shlex.join(devices))


def put_images(out: Path) -> None:
    """Write two converted images, ``plain`` and ``features``, and the sums of the first's files."""
    files = put_plain_image(f"oci:{out}/plain:latest").contents
    sums = (f"{hashlib.sha256(data).hexdigest()}  f{n}\n" for n, data in enumerate(files))
    (out / "sums").write_text("".join(sums))
    with tempfile.TemporaryDirectory() as scratch:
        write_layout(feature_image(), Path(scratch, "layout"))
        source, destination = f"oci:{scratch}/layout:latest", f"oci:{out}/features:latest"
        ran = firstread("convert", "--no-hot", source, destination)
        if ran.code:
            raise NodeError(f"the image was not converted: {ran.stderr}")


def setting(command: str) -> list[str]:
    """Return the conditions of results that a command has."""
    said = subprocess.run(
        ["qemu-system-x86_64", "--version"], capture_output=True, text=True, check=True
    ).stdout
    return [
        f"`{command}`: {said.splitlines()[0]}, software emulation, 2 processors",
        f"host: Linux {platform.release()}, Python {platform.python_version()}",
    ]


if __name__ == "__main__":
    sys.exit(main())
