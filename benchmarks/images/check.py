# SPDX-License-Identifier: Apache-2.0
"""Proof that an image works: unpack it the classic way and run its command until it is ready.

Owns one run with umoci and runc, or crun, on the host's network. Invariant: nothing is left behind.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from pathlib import Path

from benchmarks.images.ready import Answers, Ready, answers, wait_ready

# What docker grants a container; umoci's default is less, and nginx then cannot change its user.
CAPABILITIES = [
    f"CAP_{name}"
    for name in (
        *("AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD"),
        *("NET_BIND_SERVICE", "NET_RAW", "SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT"),
    )
]


def check(layout: Path, ready: Ready) -> float:
    """Run the image ``latest`` in `layout`; return the seconds from start to ready.

    Args:
        layout: an OCI layout directory.
        ready: the answer to wait for.

    Raises:
        RuntimeError: it does not become ready, or its port is taken.
        subprocess.CalledProcessError: it cannot be unpacked.
    """
    if isinstance(ready, Answers) and answers(ready):
        raise RuntimeError(f"something else answers on port {ready.port}")
    with tempfile.TemporaryDirectory(prefix=".check-", dir=layout.parent) as scratch:
        bundle = Path(scratch) / "bundle"
        unpack = ("umoci", "unpack", "--image", f"{layout}:latest", str(bundle))
        subprocess.run(unpack, check=True, capture_output=True)
        _adapt(bundle / "config.json")
        # runc first: crun refuses a host with cgroup versions 1 and 2 side by side.
        runtime = "runc" if shutil.which("runc") else "crun"
        name = f"firstread-check-{Path(scratch).name.removeprefix('.check-')}"
        run = (runtime, "run", "--bundle", str(bundle), name)
        with subprocess.Popen(run, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
            try:
                return wait_ready(process, ready)
            finally:
                subprocess.run((runtime, "kill", name, "KILL"), capture_output=True, check=False)
                process.wait()
                subprocess.run((runtime, "delete", "-f", name), capture_output=True, check=False)


def _adapt(config: Path) -> None:
    """Give the bundle the host's network, docker's capabilities and no terminal or cgroup."""
    spec = json.loads(config.read_text())
    spec["process"]["terminal"] = False
    kinds = ("bounding", "effective", "permitted")
    spec["process"]["capabilities"] = dict.fromkeys(kinds, CAPABILITIES)
    linux = spec["linux"]
    linux.pop("resources", None)
    linux["namespaces"] = [
        namespace
        for namespace in linux["namespaces"]
        if namespace["type"] not in ("network", "cgroup")
    ]
    spec["mounts"] = [mount for mount in spec["mounts"] if mount["type"] != "cgroup"]
    config.write_text(json.dumps(spec))
