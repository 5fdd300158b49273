# SPDX-License-Identifier: Apache-2.0
"""Odd images that Go programs accept without noticing, and other clients on the result."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from firstread.oci.model import OCI_CONFIG, OCI_MANIFEST, describe, encode
from firstread.oci.reference import parse_reference
from firstread.registry.open import open_destination
from firstread.registry.options import AccessOptions
from firstread.testing.command import firstread
from firstread.testing.containers import find_busybox
from firstread.testing.daemon import Daemon
from firstread.testing.images import Dir, File, Image, Layer, Symlink, write_layout
from firstread.testing.machine import Machine

pytestmark = [
    pytest.mark.privileged,
    pytest.mark.skipif(
        os.geteuid() != 0 or not find_busybox(), reason="needs root and busybox-static"
    ),
]


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    with Machine(tmp_path / "machine") as running:
        yield running


def shell() -> Layer:
    busybox = Path(find_busybox() or "").read_bytes()
    return Layer(
        [
            File("bin/busybox", busybox, mode=0o755),
            *(Symlink(f"bin/{name}", "busybox") for name in ("sh", "id", "pwd", "echo")),
            *map(Dir, ("proc", "dev", "sys", "etc", "tmp")),
        ]
    )


def converted(scratch: Path, image: Image, **config: Any) -> str:
    """Convert an image whose config also has these keys; return the name of the result."""
    write_layout(image, scratch / "in")
    raw = encode(json.loads(image.config_blob) | config)
    told = json.loads(image.manifest())
    told["config"] |= {"digest": describe(raw, OCI_CONFIG).digest, "size": len(raw)}
    reference = parse_reference(f"oci:{scratch}/in:latest")
    with open_destination(reference, AccessOptions()) as place:
        place.put_blob(describe(raw, OCI_CONFIG), io.BytesIO(raw))
        place.put_manifest(encode(told), OCI_MANIFEST, "latest")
    ran = firstread("convert", str(reference), f"oci:{scratch}/out:latest")
    assert ran.code == 0, ran
    return f"oci:{scratch}/out:latest"


def test_a_config_with_keys_in_another_case_runs(machine: Machine, tmp_path: Path) -> None:
    run = {
        "cmd": ["/bin/sh", "-c", "id -u; id -g; pwd; echo $A"],
        "ENV": ["A=1"],
        "user": "7:8",
        "workingDir": "/etc",
        "Labels": {"a": None},
    }
    image = converted(tmp_path, Image([shell()]), config=run)
    assert machine.output("run", "--rm", image).split() == ["7", "8", "/etc", "1"]


def test_an_image_without_layers(daemon: Daemon, tmp_path: Path) -> None:
    image = converted(tmp_path, Image([]), history=None)
    place = daemon.mount(image)
    assert os.listdir(place) == []
    assert oct(place.stat().st_mode) == "0o40755"
    ran = daemon.run("umount", place)
    assert ran.code == 0, ran


def test_an_image_without_layers_has_nothing_to_run(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "tools").mkdir()
    shutil.copy(find_busybox() or "", tmp_path / "tools/busybox")
    image = converted(tmp_path, Image([]))
    tools = f"{tmp_path}/tools:/tools"
    command = ("run", "--rm", "-v", tools, image, "/tools/busybox", "ls", "/")
    assert "tools" in machine.output(*command).split()


@pytest.mark.skipif(not shutil.which("umoci"), reason="needs umoci")
@pytest.mark.parametrize(
    "history",
    [[{"created_by": "one"}, {"created_by": "two", "created": "2024-01-01T00:00:00Z"}], [None], []],
    ids=["no-time", "null", "none"],
)
def test_umoci_shows_the_history(tmp_path: Path, history: list[Any]) -> None:
    image = Image([Layer([File("a", b"a")]), Layer([File("b", b"b")])])
    converted(tmp_path, image, history=history)
    command = ["umoci", "stat", "--json", "--image", f"{tmp_path}/out:latest"]
    ran = subprocess.run(command, check=False, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]
    steps = json.loads(ran.stdout)["history"] or []
    shown = [step["layer"]["digest"] for step in steps if not step.get("empty_layer")]
    index = json.loads((tmp_path / "out/index.json").read_bytes())
    blobs = tmp_path / "out/blobs/sha256"
    manifest = json.loads((blobs / index["manifests"][0]["digest"][7:]).read_bytes())
    layers = [layer["digest"] for layer in manifest["layers"]]
    assert shown == (layers if history else [])
