# SPDX-License-Identifier: Apache-2.0
"""``firstread sync`` with a real registry: what it converts, what it leaves alone, what it says."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from firstread.oci.model import Index
from firstread.oci.untrusted import decode
from firstread.sectors.image import SOURCE_DIGEST
from firstread.testing.command import Ran, firstread, program
from firstread.testing.images import File, Image, Layer, digest_of
from firstread.testing.patience import PATIENCE_S
from firstread.testing.pushing import push, push_index
from firstread.testing.registry import DockerRegistry

BASE = Layer([File("base", random.Random(1).randbytes(300_000))])
SMALL = ("--sector-size=64KiB", "--frame-size=16KiB", "--no-hot")


def app(number: int, *, platform: str = "linux/amd64") -> Image:
    """Return an image of the common layer and one of its own."""
    own = f"{platform} {number} ".encode() * 500
    return Image([BASE, Layer([File(f"app{number}", own)])], {}, platform)


def sync(*arguments: str, code: int = 0) -> dict[str, Any]:
    ran = firstread("sync", *SMALL, "--json", *arguments)
    assert (ran.code, ran.stderr) == (code, ""), ran
    result: dict[str, Any] = ran.json
    return result


def results(synced: dict[str, Any]) -> dict[str, str]:
    """Return the result of each image, by its name without the registry."""
    return {row["image"].split("/", 3)[3]: row["result"] for row in synced["images"]}


def inspected(name: str) -> Any:
    ran = firstread("inspect", "--json", name)
    assert ran.code == 0, ran
    return ran.json


@pytest.mark.parametrize("way", ["DEST", "--attach"])
def test_images_that_share_layers(registry: DockerRegistry, way: str) -> None:
    host = registry.host
    digests = {n: push(f"{host}/team/app{n}:v1", app(n)) for n in range(3)}
    push(f"{host}/team/app0:latest", app(0))
    push(f"{host}/other/app:v1", app(7))
    target = "--attach" if way == "--attach" else f"{host}/lazy/*"
    synced = sync(f"{host}/team/*:*", target)
    wanted = {f"team/app{n}:v1": "converted" for n in range(3)} | {"team/app0:latest": "converted"}
    if way == "--attach":  # the other name of the same image
        assert {synced["converted"], synced["present"]} == {3, 1}
    else:
        assert results(synced) == wanted
    for number, digest in digests.items():
        prefix = "" if way == "--attach" else "lazy/"
        assert inspected(f"{host}/{prefix}team/app{number}:v1")["source_digest"] == digest
    assert inspected(f"{host}/{prefix}team/app0:latest")["source_digest"] == digests[0]
    # Each layer was packed once, though four images were converted at a time.
    packed = [row["packed_bytes"] for row in synced["images"]]
    assert sum(size > len(BASE.blob) / 2 for size in packed) == 1
    assert registry.open_uploads() == 0
    registry.forget()
    again = sync(f"{host}/team/*:*", target)
    assert (again["present"], again["converted"], again["failed"]) == (4, 0, 0)
    counts = registry.counts
    assert counts.requests_of("/blobs/") == 0
    assert not [key for key in counts.requests if not key.startswith(("GET", "HEAD"))]


def test_a_new_digest_at_a_tag_is_converted_again(registry: DockerRegistry) -> None:
    name = f"{registry.host}/team/app:v1"
    push(name, app(1))
    sync(name, f"{registry.host}/lazy/*")
    digest = push(name, app(2))
    assert results(sync(name, f"{registry.host}/lazy/*")) == {"team/app:v1": "converted"}
    assert inspected(f"{registry.host}/lazy/team/app:v1")["source_digest"] == digest


def test_all_platforms_of_an_index(registry: DockerRegistry) -> None:
    host = registry.host
    images = [app(1, platform=f"linux/{name}") for name in ("amd64", "arm64")]
    digest = push_index(f"{host}/team/multi:v1", *images, annotations={"who": "me"})
    synced = sync(f"{host}/team/multi:v1", f"{host}/lazy/*")
    rows = [(row["platform"], row["result"]) for row in synced["images"]]
    assert rows == [("linux/amd64", "converted"), ("linux/arm64", "converted")]
    for image in images:
        ran = firstread("verify", "--platform", image.platform, f"{host}/lazy/team/multi:v1")
        assert ran.code == 0, ran
    raw = subprocess.run(
        ["skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{host}/lazy/team/multi:v1"],
        check=True, capture_output=True, timeout=PATIENCE_S,
    ).stdout  # fmt: skip
    index = decode(raw, Index, "index")
    assert index.annotations == {"who": "me", SOURCE_DIGEST: digest}
    sources = [(entry.annotations or {})[SOURCE_DIGEST] for entry in index.manifests]
    assert sources == [digest_of(image.manifest()) for image in images]
    again = sync(f"{host}/team/multi:v1", f"{host}/lazy/*")
    assert [row["result"] for row in again["images"]] == ["present"] * 2
    # The conversions are no images to convert.
    assert sync(f"{host}/lazy/team/multi:v1", f"{host}/more/*")["skipped"] == 1
    one = sync("--platform=arm64", f"{host}/team/multi:v1", f"{host}/arm/*")
    assert one["images"][0]["digest"] == index.manifests[1].digest
    assert sync("--platform=arm64", f"{host}/team/multi:v1", f"{host}/arm/*")["present"] == 1


def test_a_node_asks_for_no_referrers_of_what_an_index_calls_converted(
    registry: DockerRegistry,
) -> None:
    host = registry.host
    push_index(f"{host}/team/multi:v1", app(1))
    sync(f"{host}/team/multi:v1", f"{host}/lazy/*")
    registry.forget()
    inspected(f"{host}/lazy/team/multi:v1")
    assert not [key for key in registry.counts.requests if "referrers" in key or "sha256-" in key]


def test_images_that_cannot_be_converted_stop_no_other(registry: DockerRegistry) -> None:
    host = registry.host
    for number in range(3):
        push(f"{host}/team/app{number}:v1", app(number))
    bad = Image([BASE, Layer(b"\x1f\x8bdamaged", "none")])
    push(f"{host}/team/bad:v1", bad)
    synced = sync(f"{host}/team/*:v1", f"{host}/gone/*:v*", f"{host}/lazy/*", code=4)
    assert (synced["converted"], synced["failed"]) == (3, 2)
    errors = [row["error"] for row in synced["images"] if row["error"]]
    assert [error["error"] for error in errors] == ["NotFoundError", "ImageError"]
    assert errors[1]["layer"] == digest_of(bad.layers[1].blob)
    assert registry.open_uploads() == 0
    assert firstread("inspect", f"{host}/lazy/team/bad:v1").code == 4  # no tag
    ran = firstread("sync", *SMALL, f"{host}/team/*:v1", f"{host}/lazy/*")
    assert (ran.code, ran.stderr) == (3, "")
    lines = ran.stdout.splitlines()
    assert lines[0].split() == ["IMAGE", "PLATFORM", "RESULT", "SECONDS", "PACKED", "SIZE"]
    assert lines[1].split() == [f"{host}/team/bad:v1", "-", "failed", "-", "-", "-"]
    assert "gzip" in lines[2]
    assert lines[-1].startswith("3 converted before, 1 failed, in ")


def test_a_dry_run_changes_nothing(registry: DockerRegistry) -> None:
    host = registry.host
    push(f"{host}/team/app:v1", app(1))
    registry.forget()
    synced = sync("--dry-run", f"{host}/team/*:v*", f"{host}/lazy/*")
    assert results(synced) == {"team/app:v1": "missing"}
    assert synced["images"][0]["destination"] == f"docker://{host}/lazy/team/app:v1"
    counts = registry.counts
    assert not [key for key in counts.requests if not key.startswith(("GET", "HEAD"))]
    assert counts.requests_of("/blobs/") == 0


def test_files_conditions_and_other_things(registry: DockerRegistry, tmp_path: Path) -> None:
    host = registry.host
    for number in range(3):
        push(f"{host}/team/app{number}:v1", app(number))
    (tmp_path / "names").write_text(f"{host}/team/app0:v1\n{host}/team/app1:*\n")
    synced = sync("--dry-run", f"@{tmp_path}/names", f"{host}/lazy/*")
    assert list(results(synced)) == ["team/app0:v1", "team/app1:v1"]
    synced = sync("--dry-run", "--from", f"{tmp_path}/names", "--only", f"{host}/*1:*", "--attach")
    assert list(results(synced)) == ["team/app1:v1"]
    synced = sync("--dry-run", f"{host}/*:*", "--exclude", f"{host}/*1:*", f"{host}/lazy/*")
    assert list(results(synced)) == ["team/app0:v1", "team/app2:v1"]
    # A name by digest has no tag to map, but something can be attached to it.
    name = f"{host}/team/app0@{digest_of(app(0).manifest())}"
    assert "--attach" in sync(name, f"{host}/lazy/*", code=2)["images"][0]["error"]["hint"]
    assert sync(name, "--attach")["converted"] == 1
    # The destination may not be the source.
    same = sync(f"{host}/team/app0:v1", f"{host}/*", code=2)["images"][0]["error"]
    assert "the same image" in same["message"]


def test_two_syncs_at_once(registry: DockerRegistry, tmp_path: Path) -> None:
    """Neither is partial or wrong, in one registry and with one list of referrers."""
    host = registry.host
    digests = {n: push(f"{host}/team/app{n}:v1", app(n)) for n in range(2)}
    for target in ("--attach", f"{host}/lazy/*"):
        command = program("sync", *SMALL, "--json", f"{host}/team/*:v1", target)
        processes = [
            subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={**os.environ, "FIRSTREAD_CACHE": str(tmp_path / f"cache{number}")},
            )
            for number in range(2)
        ]
        for process in processes:
            out, said = process.communicate(timeout=PATIENCE_S)
            assert process.returncode == 0, (out, said)
            assert json.loads(out)["failed"] == 0, out
        prefix = "" if target == "--attach" else "lazy/"
        for number, digest in digests.items():
            name = f"{host}/{prefix}team/app{number}:v1"
            assert inspected(name)["source_digest"] == digest
            assert firstread("verify", name).code == 0
    assert registry.open_uploads() == 0


def test_an_interrupted_sync_leaves_no_upload_and_goes_on_later(registry: DockerRegistry) -> None:
    host = registry.host
    for number in range(3):
        push(f"{host}/team/app{number}:v1", app(number))
    command = program("sync", *SMALL, "--images=1", f"{host}/team/*:v1", f"{host}/lazy/*")
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + PATIENCE_S
    repositories = registry.storage / "docker/registry/v2/repositories/lazy/team"
    while not list(repositories.glob("app*/_manifests/tags")):  # beside uploads that come and go
        assert time.monotonic() < until
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, said) == (143, "firstread: ended by SIGTERM\n")
    assert registry.open_uploads() == 0
    synced = sync(f"{host}/team/*:v1", f"{host}/lazy/*")
    assert synced["present"] >= 1
    assert synced["present"] + synced["converted"] == 3
    for number in range(3):
        assert firstread("verify", f"{host}/lazy/team/app{number}:v1").code == 0


def test_watching_converts_what_comes(registry: DockerRegistry) -> None:
    host = registry.host
    push(f"{host}/team/app1:v1", app(1))
    command = program("sync", *SMALL, "--json", "--watch=1", f"{host}/team/*:v1", f"{host}/lazy/*")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert json.loads(process.stdout.readline())["converted"] == 1
        push(f"{host}/team/app2:v1", app(2))
        while not (row := json.loads(process.stdout.readline()))["converted"]:
            assert (row["present"], row["failed"]) == (1, 0)
    finally:
        process.terminate()
        process.communicate(timeout=PATIENCE_S)
    assert inspected(f"{host}/lazy/team/app2:v1")


def test_wrong_words() -> None:
    def said(*arguments: str) -> Ran:
        ran = firstread("sync", *arguments)
        assert (ran.code, ran.stdout) == (2, "")
        return ran

    assert "there is no DEST" in said().stderr
    assert "there is no SOURCE" in said("--attach").stderr
    assert "is no DEST for many images" in said("r.example/a:1", "m.example/b").stderr
    assert "belong to a --kubeconfig" in said("--attach", "--namespace=a", "r.example/a").stderr
    assert "not in a registry" in said("oci:in:1", "--attach").stderr
    assert "none" in said("--from", "none", "--attach").stderr
