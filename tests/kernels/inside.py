# SPDX-License-Identifier: Apache-2.0
"""``python -m tests.kernels.inside DEPTH OUT [DEVICE]…``: tries devices, inside a guest.

Owns what is tried on a kernel. The list of devices is that of the configuration, so a new one
needs no change. Writes the result anew after each step: a guest that hangs leaves what it has.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec
from tests.kernels.matrix import GOOD, Result, Tried

from firstread.config import DEVICES
from firstread.errors import FirstreadError
from firstread.testing.command import program
from firstread.testing.daemon import Daemon, tree_of
from firstread.testing.features import feature_tree
from firstread.testing.observe import differences

SCRATCH: Final = Path("/scratch")
TREE_S: Final = 600.0  # for a process to read a whole image
CHECKS: Final = {
    "suite": (
        "tests/privileged/test_device_suite.py",
        "Test{name} and (however or nothing_here or everything or 64_readers or empties"
        " or emptied or never_zeros or another_process or nobody_serves or lazily)",
    ),
    "node": (
        "tests/privileged/test_node_suite.py",
        "Test{name}Node and (kill_both or reload or all_processes or ends_while)",
    ),
    "run": ("tests/privileged/test_cli_run.py", "image_says_how or writes_go"),
    "containerd": ("tests/privileged/test_containerd.py", "pod_of_a_converted_image"),
}
"""What the full depth tries: a file of tests, and which of them; some are not for every device."""

_FAULTS: Final = (AssertionError, FirstreadError, OSError, subprocess.SubprocessError)
_PYTEST: Final = ("-q", "--numprocesses=0", "-p", "no:cacheprovider", "-p", "no:timeout")
_LAX: Final = ("-o", "addopts=", "-W", "default")  # without the plugin its mark is unknown
_TAIL: Final = re.compile(r"^(\d[^\n]{1,200}) in [\d.]+s", re.MULTILINE)
_NOISE: Final = re.compile(r", \d+ (?:warnings?|deselected)")
_FAILED: Final = re.compile(r"^(?:FAILED|ERROR) [^\n]{1,200}?::(\w{1,100})(?: |$|\[)", re.MULTILINE)
_NONE_CHOSEN: Final = 5  # pytest's exit code


def main() -> None:
    depth, out = sys.argv[1], Path(sys.argv[2])
    result = Result(os.uname().release)

    def keep() -> None:
        (out / "result.json").write_bytes(msgspec.json.encode(result))

    result.doctor = failures()
    for device in sys.argv[3:] or DEVICES:
        result.devices[device] = tried = try_device(device, out)
        keep()
        if tried.works and depth == "full":
            tried.checks["tree"] = tree(device, out)
            for name, (path, which) in CHECKS.items():
                if said := check(device, path, which, out / f"{device}-{name}"):
                    tried.checks[name] = said
                keep()
    result.auto = chosen(result, out)
    keep()


def failures() -> list[str]:
    """Return the checks of ``firstread doctor`` that fail, with their reason."""
    places = ("--root", f"{SCRATCH}/doctor", "--run-dir", f"{SCRATCH}/doctor-run")
    command = program("doctor", "--json", *places)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        checks = msgspec.json.decode(done.stdout)["checks"]
    except msgspec.DecodeError:
        return [f"doctor: {done.stderr.strip()}"]
    return [f"{each['name']}: {each['detail']}" for each in checks if each["status"] != "ok"]


def try_device(device: str, out: Path) -> Tried:
    """Mount an image by a device, and compare the SHA-256 of each file with what it must be."""
    daemon = Daemon(_directory(device), "--device", device)
    try:
        with daemon:
            place = daemon.mount(f"oci:{out}/plain:latest")
            assert daemon.mounted(place)["device"] == device
            command = ["sha256sum", "--check", "--quiet", str(out / "sums")]
            done = subprocess.run(
                command, cwd=place, capture_output=True, text=True, timeout=TREE_S, check=False
            )
    except _FAULTS as exc:
        return Tried(works=False, said=_reason(daemon) or f"{type(exc).__name__}: {exc}")
    return Tried(works=done.returncode == 0, said=done.stdout + done.stderr)


def tree(device: str, out: Path) -> str:
    """Mount an image with every feature; return how many entries are right, or a difference."""
    try:
        with Daemon(_directory(f"{device}-tree"), "--device", device) as daemon:
            seen = tree_of(daemon.mount(f"oci:{out}/features:latest"), TREE_S)
    except _FAULTS as exc:
        return f"{type(exc).__name__}: {exc}"
    found = differences(feature_tree(), seen)
    return f"{len(found)} wrong, such as {found[0]}" if found else f"{len(seen)} right"


def _reason(daemon: Daemon) -> str:
    """Return what a daemon said before it gave up, if it did."""
    try:
        lines = daemon.output().splitlines()
    except OSError:
        return ""
    said = [line.strip() for line in lines if not line.startswith("{")]  # those of the log do
    return "; ".join(said).removeprefix("firstread: ").replace(f"{daemon.root}/", "")


def check(device: str, path: str, which: str, log: Path) -> str:
    """Run some tests of the project on a device; return the outcome in a few words.

    Those that fail run once more: emulated, a process may start too slowly. "" if there are none.
    """
    config = SCRATCH / f"{device}.toml"
    config.write_text(f'[node]\ndevice = "{device}"\n')
    command = [sys.executable, "-m", "pytest", *_PYTEST, *_LAX, path]
    command += ["-k", which.format(name=device.capitalize()), "--basetemp", f"{SCRATCH}/t"]
    outputs = []
    for place in (log, log.with_name(f"{log.name}-again")):
        with place.open("w") as output:
            code = subprocess.run(
                command,
                env=os.environ | {"FIRSTREAD_CONFIG": str(config)},
                stdout=output,
                stderr=subprocess.STDOUT,
                check=False,
            ).returncode
        if code == _NONE_CHOSEN:
            return ""
        outputs.append(place.read_text(errors="replace"))
        if GOOD.fullmatch(outcome(outputs[-1])):
            break
    return told(outputs)


def told(outputs: Sequence[str]) -> str:
    """Return the outcome of tests, and which of them failed at the first of two tries.

    Args:
        outputs: what pytest printed at each.
    """
    said = outcome(outputs[-1])
    if len(outputs) == 1 or not GOOD.fullmatch(said):
        return said
    return f"{said} at the second try, after {', '.join(failed(outputs[0])) or 'no result'}"


def failed(output: str) -> list[str]:
    """Return the names of the tests that failed, from what pytest printed."""
    return sorted(set(_FAILED.findall(output)))


def outcome(output: str) -> str:
    """Return how many tests passed, failed or were skipped, from what pytest printed."""
    found = _TAIL.findall(output)
    return _NOISE.sub("", found[-1]) if found else "no result"


def chosen(result: Result, out: Path) -> str:
    """Return the device that a daemon takes by itself."""
    if not any(tried.works for tried in result.devices.values()):
        return "none"
    daemon = Daemon(_directory("auto"))
    try:
        with daemon:
            return str(daemon.mounted(daemon.mount(f"oci:{out}/plain:latest"))["device"])
    except _FAULTS as exc:
        return _reason(daemon) or str(exc)


def _directory(name: str) -> Path:
    place = SCRATCH / name
    place.mkdir()
    return place


if __name__ == "__main__":
    main()
