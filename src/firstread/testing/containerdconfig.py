# SPDX-License-Identifier: Apache-2.0
"""The configuration of a containerd for tests, in the form of its version."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from firstread.snapshotter.configfile import Choice, added
from firstread.testing.patience import PATIENCE_S

_text = json.dumps  # a string of JSON is one of TOML


@dataclass(frozen=True)
class ContainerdConfig:
    """The settings of a containerd.

    Args:
        scratch: the directory of its root, its state and its network configurations.
        socket: that it serves.
        pause: name of the image of sandboxes.
        snapshotter: that pods use.
        address: socket of firstread's snapshotter.
        measured: directory of firstread's snapshotter.
        proxies: sockets of other snapshotters, by name.
        handler: a runtime that uses firstread's snapshotter; takes containerd 2.
    """

    scratch: Path
    socket: Path
    pause: str
    snapshotter: str
    address: Path
    measured: Path
    proxies: Mapping[str, Path]
    handler: str

    def text(self) -> str:
        """Return the content of the file, firstread's snapshotter included."""
        is_2 = containerd_version()[0] >= 2
        config = self._main(is_2=is_2) + "".join(map(_proxy, self.proxies.items()))
        if self.handler:
            config += _handler(self.handler)
        choice = Choice(str(self.address), containerd2=is_2, root=str(self.measured))
        return added(config, choice)

    def _main(self, *, is_2: bool) -> str:
        runtime = f'plugins."io.containerd.{"cri.v1.runtime" if is_2 else "grpc.v1.cri"}"'
        chooses = _IMAGES if is_2 else f"{runtime}.containerd"
        # containerd collects garbage for a fiftieth of its time by default: after a collection of
        # a second, on a busy machine, deleted things could stay for a minute.
        config = f"""
version = {3 if is_2 else 2}
root = {_text(str(self.scratch / "root"))}
state = {_text(str(self.scratch / "state"))}
disabled_plugins = ["io.containerd.internal.v1.opt"]
[grpc]
  address = {_text(str(self.socket))}
[plugins."io.containerd.gc.v1.scheduler"]
  pause_threshold = 0.5
[{runtime}]
  disable_apparmor = true
  restrict_oom_score_adj = true
  {"" if is_2 else f"sandbox_image = {_text(self.pause)}"}
  {"" if is_2 else "stats_collect_period = 1"}
[{runtime}.cni]
  conf_dir = {_text(str(self.scratch / "cni"))}
[{chooses}]
  snapshotter = {_text(self.snapshotter)}
  disable_snapshot_annotations = false
  {"stats_collect_period = 1" if is_2 else ""}
"""
        if is_2:
            config += f"[{_IMAGES}.pinned_images]\n  sandbox = {_text(self.pause)}\n"
        return config


_IMAGES = 'plugins."io.containerd.cri.v1.images"'


def _proxy(proxy: tuple[str, Path]) -> str:
    name, path = proxy
    return f"""
[proxy_plugins.{name}]
  type = "snapshot"
  address = {_text(str(path))}
  [proxy_plugins.{name}.exports]
    enable_remote_snapshot_annotations = "true"
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
  platform = "linux"
  snapshotter = "{name}"
"""


def _handler(name: str) -> str:
    return f"""
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.{name}]
  runtime_type = "io.containerd.runc.v2"
  snapshotter = "firstread"
[{_IMAGES}.runtime_platforms.{name}]
  snapshotter = "firstread"
"""


def containerd_version() -> tuple[int, int]:
    """Return the version of the containerd that is found first."""
    done = subprocess.run(
        ["containerd", "--version"],
        check=True,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    found = re.search(r"\s(?:v)?(\d+)\.(\d+)\.\d+", done.stdout)
    assert found is not None, done.stdout
    return int(found[1]), int(found[2])
