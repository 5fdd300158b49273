# SPDX-License-Identifier: Apache-2.0
"""Pods of an original tag with an attached conversion: real containerd, real registry."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from firstread.oci.reference import parse_reference
from firstread.registry.open import open_source
from firstread.sectors.attached import resolve_converted
from firstread.testing.command import firstread
from firstread.testing.containers import find_busybox
from firstread.testing.images import File, Layer, write_layout
from firstread.testing.patience import PATIENCE_S
from firstread.testing.registry import DockerRegistry
from firstread.testing.runnable import data_file, push_pause, runnable_image
from firstread.testing.starts import put_trace, trace_of
from firstread.units import MiB

containerd = pytest.importorskip(
    "firstread.testing.containerd", reason="there is no snapshotter to test with"
)

pytestmark = [
    pytest.mark.privileged,
    pytest.mark.skipif(
        os.geteuid() != 0 or not find_busybox() or not shutil.which("containerd"),
        reason="needs root, busybox-static and containerd",
    ),
]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    """Ordinary images; ``attached``, ``traced`` and ``upper`` have a conversion attached."""
    busybox = find_busybox()
    assert busybox
    scratch = tmp_path_factory.mktemp("registry")
    (scratch / "rootfs").mkdir()
    app = runnable_image(scratch / "rootfs", busybox)
    upper = Layer([File("upper", b"of the upper\n")])
    other = Layer([File("other", b"of the other\n"), File("data/.wh.5", b"")])
    images = {
        **dict.fromkeys(("attached", "traced", "alone", "base"), app),
        "upper": replace(app, layers=[*app.layers, upper]),
        "shares": replace(app, layers=[*app.layers, other]),
    }
    with DockerRegistry() as running:
        push_pause(running, busybox)
        for name, image in images.items():
            write_layout(image, scratch / "layout", name)
            to = f"docker://{running.host}/{name}:1"
            source = f"oci:{scratch}/layout:{name}"
            copy = ("skopeo", "copy", "-q", "--dest-tls-verify=false", source, to)
            subprocess.run(copy, check=True, timeout=PATIENCE_S)
        for name in ("attached", "traced", "upper"):
            ran = firstread("convert", "--attach", f"{running.host}/{name}:1")
            assert ran.code == 0, ran
        yield running


@pytest.fixture
def node(registry: DockerRegistry, scratch: Path) -> Iterator[Any]:
    with containerd.Containerd(scratch, f"{registry.host}/pause:1") as running:
        yield running


def test_the_original_tag_starts_lazily(registry: DockerRegistry, node: Any) -> None:
    image = f"{registry.host}/attached:1"
    registry.forget()
    node.pull(image)
    assert registry.counts.bytes_of("GET /v2/attached/blobs/") < MiB / 4
    assert registry.counts.requests_of("/referrers/") == 1
    assert node.run(image, "sh", "-c", "sha256sum /data/3") == [
        f"{hashlib.sha256(data_file(3)).hexdigest()}  /data/3"
    ]
    assert registry.counts.bytes_of("GET /v2/attached/blobs/") < 10 * MiB
    assert f"{image} is lazy" in node.log()


def test_the_original_tag_starts_with_the_hot_sectors_of_its_last_trace(
    registry: DockerRegistry, node: Any, tmp_path: Path
) -> None:
    image, hot = f"{registry.host}/traced:1", []
    for number in (5, 4, 3):
        trace = put_trace(tmp_path / f"{number}.jsonl", trace_of((f"data/{number}", 0, 1024)))
        ran = firstread("optimize", image, "--trace", str(trace), "--json")
        assert ran.code == 0, ran
        assert ran.json["chosen"] == ran.json["digest"]
        with open_source(parse_reference(image)) as repository:
            hot.append(resolve_converted(repository).manifest.layers[-1].digest)
    registry.forget()
    node.pull(image)
    assert node.run(image, "sh", "-c", "sha256sum /data/3") == [
        f"{hashlib.sha256(data_file(3)).hexdigest()}  /data/3"
    ]
    assert f"{image} is lazy" in node.log()
    counts = registry.counts
    assert [counts.bytes_of(blob) >= len(data_file(3)) for blob in hot] == [False, False, True]


def test_an_original_alone_is_pulled_as_before(registry: DockerRegistry, node: Any) -> None:
    image = f"{registry.host}/alone:1"
    registry.forget()
    node.pull(image)
    assert registry.counts.bytes_of("GET /v2/alone/blobs/") > 20 * MiB
    assert f"{image} is not lazy: it is not converted" in node.log()


def test_ordinary_images_that_share_layers_with_a_lazy_one(
    registry: DockerRegistry, node: Any
) -> None:
    upper, shares, base = (f"{registry.host}/{name}:1" for name in ("upper", "shares", "base"))
    node.pull(upper)
    node.pull(shares)
    script = "cat /other; ls /data; sha256sum /data/3"
    digest = f"{hashlib.sha256(data_file(3)).hexdigest()}  /data/3"
    assert node.run(shares, "sh", "-c", script) == ["of the other", *"01234", digest]
    node.pull(base)
    assert node.run(base, "sh", "-c", "ls /data") == list("012345")
    assert node.run(upper, "sh", "-c", "cat /upper; sha256sum /data/3") == ["of the upper", digest]
    assert f"{upper} is lazy" in node.log()
    assert node.log().count("is unpacked for another image") == 1


def test_an_image_shares_layers_with_one_that_the_client_did_not_name(
    registry: DockerRegistry, node: Any
) -> None:
    """A pull like nerdctl's leaves layers whose labels name no image."""
    upper, shares = (f"{registry.host}/{name}:1" for name in ("upper", "shares"))
    fetched = node.ctr("content", "fetch", "--metadata-only", "--plain-http", upper)
    assert fetched.code == 0, fetched
    assert len(node.prepare_without_names(upper)) == 2
    node.pull(shares)
    assert node.run(shares, "sh", "-c", "cat /other; ls /data") == ["of the other", *"01234"]
    assert node.log().count("is unpacked for another image") == 1


def test_a_container_of_a_layer_of_a_lazy_image(registry: DockerRegistry, node: Any) -> None:
    upper, base = (f"{registry.host}/{name}:1" for name in ("upper", "base"))
    node.pull(upper)
    node.pull(base)
    assert node.run(base, "sh", "-c", "ls /data") == list("012345")
    for image in (upper, base):
        node.remove_image(image)
    node.wait_collected(lambda: len(node.snapshots()) == 1)
