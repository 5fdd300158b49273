# SPDX-License-Identifier: Apache-2.0
"""``python -m tests.packages.imported ARCHIVE``: imports the node image, and runs a pod of it.

A containerd of its own gets the image from ``ctr images import`` under the name that the DaemonSet
has. The pod is started by CRI, as the kubelet starts it, and no registry has the image.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

import yaml
from tools.release.wheelhouse import TOP

from firstread.errors import FirstreadError, NodeError
from firstread.testing.containerd import Containerd
from firstread.testing.containers import find_busybox
from firstread.testing.registry import DockerRegistry
from firstread.testing.runnable import push_pause


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.packages.imported", description=__doc__)
    parser.add_argument("archive", type=Path, help="of make image")
    options = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(prefix="fri-"))  # short, for sockets
    try:
        print(run_imported(options.archive.absolute(), image_of_the_daemonset(), scratch))
    except FirstreadError as exc:
        print(f"failed: {exc}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return 0


def image_of_the_daemonset() -> str:
    """Return the name and tag that the manifests give the image."""
    document = yaml.safe_load((TOP / "packaging/kubernetes/base/daemonset.yaml").read_text())
    names = {each["image"] for each in document["spec"]["template"]["spec"]["containers"]}
    (name,) = names
    return str(name)


def run_imported(archive: Path, image: str, scratch: Path) -> str:
    """Import the image and run its command in a pod; return what was seen.

    Raises:
        NodeError: containerd refuses it, or the pod says something else.
    """
    busybox = find_busybox()
    if busybox is None:
        raise NodeError("there is no static busybox", hint="install busybox-static")
    name, _, tag = image.rpartition(":")
    with (
        DockerRegistry() as registry,
        Containerd(scratch, push_pause(registry, busybox), snapshotter="overlayfs") as node,
    ):
        imported = node.ctr("images", "import", "--base-name", name, str(archive))
        if imported.code:
            raise NodeError(f"ctr images import: {imported.stderr}")
        said = node.run(image, "firstread", "version", "--json")
    known = json.loads(said[-1])
    if known["version"] != tag:
        raise NodeError(f"{image} is firstread {known['version']}")
    return f"{image}: imported, and a pod says {known}"


if __name__ == "__main__":
    sys.exit(main())
