# SPDX-License-Identifier: Apache-2.0
"""``python -m tests.packages DEB``: the life of the package on clean Debian 12 and 13.

Installs it, converts an image, runs a container of it and upgrades the package while the container
reads; then an upgrade whose reload fails, one with systemd's commands, removal and purge. Exits
with 1 at the first step that is not as it should be.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import random
import re
import shutil
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from benchmarks.images.build import default_cache
from tests.packages.cleanroot import CleanRoot, Done, debian
from tools.release.programs import run

from firstread.errors import FirstreadError, NodeError
from firstread.testing.containers import find_busybox, make_rootfs
from firstread.testing.images import Image, Layer, write_layout
from firstread.testing.patience import PATIENCE_S
from firstread.units import MiB

SUITES: Final = ("bookworm", "trixie")
NEXT: Final = "0.1.0+next"
FILES: Final = 160  # of 1 MiB each, so that two are a sector
STEP: Final = 37  # from file to file: no reader is sequential

_READER: Final = f"""
i=0; while [ $i -lt {FILES} ]; do
    sha256sum /data/$((i * {STEP} % {FILES})) || echo FAILED
    i=$((i + 1)); sleep 0.3
done; echo end
"""
# What the maintainer scripts ask of systemd, answered as systemd would with firstread.service.
_SYSTEMCTL: Final = """\
#!/bin/sh
echo "$*" >>/run/systemctl.log
if [ "$*" = "reload firstread.service" ]; then exec firstread daemon --reload; fi
"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.packages", description=__doc__)
    parser.add_argument("package", type=Path, help="the .deb")
    parser.add_argument("--suite", action="append", choices=SUITES, help="only this one")
    options = parser.parse_args()
    cache = default_cache().parent / "roots"
    for suite in options.suite or SUITES:
        begin = time.monotonic()
        try:
            with CleanRoot(debian(suite, cache)) as root:
                Life(suite, root, options.package).live()
        except FirstreadError as exc:
            print(f"{suite}: failed: {exc}", file=sys.stderr)
            return 1
        print(f"{suite}: done in {time.monotonic() - begin:.0f} s", flush=True)
    return 0


class Life:
    """The life of a package in a clean system; each step raises NodeError if it went wrong."""

    def __init__(self, suite: str, root: CleanRoot, package: Path) -> None:
        self._suite = suite
        self._root = root
        self._package = package
        self._sums: dict[str, str] = {}

    def live(self) -> None:
        steps: list[Callable[[], str]] = [
            self.install,
            self.doctor,
            self.convert,
            self.start,
            self.upgrade,
            self.upgrade_with_a_wrong_configuration,
            self.upgrade_as_a_service,
            self.finish,
            self.remove,
            self.purge,
        ]
        for step in steps:
            print(f"{self._suite}: {step.__name__}: {step()}", flush=True)

    def install(self) -> str:
        place = self._root.top / "root"
        shutil.copy(self._package, place / "first.deb")
        _rebuild(self._package, NEXT, place / "next.deb")
        self._good("apt-get", "update", "--quiet=2")
        self._good("apt-get", "install", "--yes", "--quiet=2", "/root/first.deb")
        _expect("no daemon runs", "none runs" in self._good("firstread", "version"))
        for shell in ("bash-completion/completions/firstread", "zsh/vendor-completions/_firstread"):
            _expect(shell, (self._root.top / "usr/share" / shell).exists())
        return self._good("firstread", "--version").strip()

    def doctor(self) -> str:
        done = self._root.run("firstread", "doctor")
        last = done.output.strip().splitlines()[-1]
        _expect(f"doctor: {done.output}", done.code == 0)
        return last

    def convert(self) -> str:
        with tempfile.TemporaryDirectory() as scratch:
            image = self._image(Path(scratch))
            write_layout(image, self._root.top / "root/plain")
        images = ("oci:/root/plain:latest", "oci:/root/lazy:1")
        return self._good("firstread", "convert", *images).splitlines()[-1].strip()

    def start(self) -> str:
        options = ("-d", "--name=reader", "--prefetch=none", "--net=host")
        self._good("firstread", "run", *options, "oci:/root/lazy:1", "sh", "-c", _READER)
        self._wait(lambda: len(self._read()) > 2)
        return f"{len(self._read())} of {FILES} files are read"

    def upgrade(self) -> str:
        before = len(self._read())
        said = self._good("dpkg", "--install", "/root/next.deb")
        version = json.loads(self._good("firstread", "version", "--json"))["daemon"]["version"]
        _expect(f"the daemon is {version}: {said}", version == NEXT)
        meanwhile = len(self._read())
        _expect(f"{meanwhile} files are read: too many", meanwhile < FILES)
        self._wait(lambda: len(self._read()) > meanwhile)
        return f"the daemon is {version}; {meanwhile - before} files read meanwhile"

    def upgrade_with_a_wrong_configuration(self) -> str:
        config = self._root.top / "etc/firstread/config.toml"
        right = config.read_text()
        config.write_text("[node]\nworkers = 0\n")
        said = self._good("dpkg", "--install", "/root/first.deb")  # which is a downgrade
        config.write_text(right)
        _expect(f"no warning: {said}", "the version that ran before serves on" in said)
        known = json.loads(self._good("firstread", "version", "--json"))
        _expect(f"{known}", known["daemon"]["version"] == NEXT)
        return re.sub(r"(?s).*(firstread: the daemon was not[^\n]*).*", r"\1", said)

    def upgrade_as_a_service(self) -> str:
        program = self._root.top / "usr/bin/systemctl"
        there = program.exists()
        _expect("the root has systemd", not there)
        program.write_text(_SYSTEMCTL)
        program.chmod(0o755)
        self._good("mkdir", "-p", "/run/systemd/system")
        self._good("dpkg", "--install", "/root/next.deb")
        log = self._good("cat", "/run/systemctl.log").splitlines()
        self._good("rm", "-r", "/run/systemd")
        program.unlink()
        want = ["daemon-reload", "--quiet is-active firstread.service", "reload firstread.service"]
        _expect(f"{log}", log == [*want, "try-restart firstread-snapshotter.service"])
        return ", ".join(log[2:])

    def finish(self) -> str:
        self._wait(lambda: self._logs().endswith("end\n"))
        logs = self._logs()
        read = self._read()
        _expect(f"a read failed: {logs}", "FAILED" not in logs and len(read) == FILES)
        _expect("a read returned wrong bytes", read == self._sums)
        self._good("firstread", "rm", "reader")
        return f"{FILES} files read, 0 failed"

    def remove(self) -> str:
        self._good("firstread", "mount", "oci:/root/lazy:1", "/mnt")
        said = self._good("apt-get", "remove", "--yes", "--quiet=2", "firstread")
        _expect(f"no word of the mount: {said}", "1 mount stays" in said)
        left = [
            name for name in ("lib", "bin") if (self._root.top / f"usr/{name}/firstread").exists()
        ]
        _expect(f"left in {left}", not left)
        config = self._root.top / "etc/firstread/config.toml"
        _expect("the configuration stays", config.exists())
        return re.sub(r"(?s).*(the daemon \(process[^\n]*).*", r"\1", said)

    def purge(self) -> str:
        said = self._good("dpkg", "--purge", "firstread")
        _expect(f"the store of a mount is purged: {said}", "images are still mounted" in said)
        self._good("umount", "/mnt")
        self._good("apt-get", "install", "--yes", "--quiet=2", "/root/first.deb")
        self._good("dpkg", "--purge", "firstread")
        left = self._good("find", "/", "-xdev", "-name", "*firstread*", "-not", "-path", "/root/*")
        _expect(f"left after a purge: {left}", not left)
        return "nothing is left"

    def _image(self, scratch: Path) -> Image:
        busybox = find_busybox()
        if busybox is None:
            raise NodeError("there is no static busybox", hint="install busybox-static")
        (scratch / "rootfs").mkdir()
        rootfs = make_rootfs(scratch / "rootfs", busybox)
        (rootfs / "data").mkdir()
        for number in range(FILES):
            data = random.Random(number).randbytes(MiB)
            (rootfs / f"data/{number}").write_bytes(data)
            self._sums[f"/data/{number}"] = hashlib.sha256(data).hexdigest()
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            tar.add(rootfs, arcname=".")
        return Image([Layer(archive.getvalue(), "none")], {"Env": ["PATH=/bin"]})

    def _good(self, *command: str) -> str:
        done: Done = self._root.run(*command)
        _expect(f"{' '.join(command)}: exit {done.code}: {done.output}", done.code == 0)
        return done.output

    def _logs(self) -> str:
        return self._good("firstread", "logs", "reader")

    def _read(self) -> dict[str, str]:
        lines = re.findall(r"^([0-9a-f]{64})  (/data/\d+)$", self._logs(), re.MULTILINE)
        return {path: digest for digest, path in lines}

    def _wait(self, is_so: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not is_so():
            if time.monotonic() > deadline:
                raise NodeError(f"the reader does not go on: {self._logs()[-500:]}")
            time.sleep(0.2)


def _rebuild(package: Path, version: str, target: Path) -> None:
    """Write the same package with another version, of itself and of firstread."""
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        top = Path(scratch, "top")
        run("dpkg-deb", "--raw-extract", package, top)
        (init,) = top.glob("usr/lib/firstread/lib/python3/site-packages/firstread/__init__.py")
        init.write_text(re.sub(r'(__version__ = ").*"', rf'\g<1>{version}"', init.read_text()))
        control = top / "DEBIAN/control"
        control.write_text(re.sub("(?m)^Version: .*", f"Version: {version}", control.read_text()))
        run("dpkg-deb", "-Znone", "--root-owner-group", "--build", top, target)


def _expect(what: str, is_so: bool) -> None:
    if not is_so:
        raise NodeError(f"not so: {what}")


if __name__ == "__main__":
    sys.exit(main())
