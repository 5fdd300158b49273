# SPDX-License-Identifier: Apache-2.0
"""Policies of mounts: how long a read waits, and what happens to wrong bytes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from firstread.testing.daemon import Daemon
from firstread.testing.images import Image, Layer, write_layout
from firstread.testing.lazymount import output
from firstread.testing.machine import Machine
from firstread.testing.plainimage import PlainImage, put_plain_image
from firstread.testing.scripted import ScriptedRegistry

pytestmark = pytest.mark.privileged

EIO = "errno 5"
DEFAULT = {"stall_s": 300.0, "on_corruption": "refetch", "require": ""}


@pytest.fixture
def registry() -> Iterator[ScriptedRegistry]:
    with ScriptedRegistry() as running:
        yield running


def put(registry: ScriptedRegistry, name: str = "plain", first: int = 0) -> tuple[str, PlainImage]:
    reference = f"{registry.host}/lazy/{name}:1"
    return reference, put_plain_image(f"docker://{reference}", first=first)


def quarantined(daemon: Daemon) -> list[Path]:
    return sorted((daemon.root / "quarantine").glob("*.json"))


def records(daemon: Daemon) -> list[Path]:
    return sorted((daemon.root / "mounts").iterdir())


def test_policies_survive_the_daemon(daemon: Daemon, plain: tuple[str, PlainImage]) -> None:
    options = ("--stall", "7.5", "--on-corruption", "quarantine", "--require", "lazy")
    one = daemon.mount(plain[0], "one", *options)
    other = daemon.mount(plain[0], "other", "--stall", "3")
    expected = {"stall_s": 7.5, "on_corruption": "quarantine", "require": "lazy"}

    def check() -> None:
        assert daemon.mounted(one)["policies"] == expected
        assert daemon.mounted(other)["policies"] == {**DEFAULT, "stall_s": 3.0}

    check()
    os.kill(daemon.fetcher, signal.SIGKILL)
    check()
    assert daemon.run("daemon", "--reload").code == 0
    check()
    daemon.end_all(signal.SIGKILL)
    daemon.start()
    check()


def test_unset_policies_follow_the_configuration(
    tmp_path: Path, plain: tuple[str, PlainImage]
) -> None:
    config = tmp_path / "config.toml"
    config.write_text('[policy]\nstall_s = 9\nrequire = "lazy"\n')
    with Daemon(tmp_path, "--config", str(config)) as daemon:
        place = daemon.mount(plain[0], "mnt", "--on-corruption", "fail")
        expected = {"stall_s": 9.0, "on_corruption": "fail", "require": "lazy"}
        assert daemon.mounted(place)["policies"] == expected
        config.write_text("")
        assert daemon.run("daemon", "--reload").code == 0
        assert daemon.mounted(place)["policies"] == {**DEFAULT, "on_corruption": "fail"}


def test_each_mount_has_a_stall_limit_of_its_own(
    daemon: Daemon, registry: ScriptedRegistry
) -> None:
    hasty = daemon.mount(put(registry, "hasty", first=50)[0], "hasty", "--stall", "1")
    reference, image = put(registry, "patient")
    patient = daemon.mount(reference, "patient", "--stall", "60")
    registry.script("GET /blobs/ status 503 x100000")
    waiting = daemon.reading(patient / "f1", how="random")
    started = time.monotonic()
    assert output(daemon.reading(hasty / "f1", how="random")) == EIO
    assert time.monotonic() - started >= 1.0
    assert "for 1 s" in daemon.log("a read fails")[0]["error"]
    assert waiting.poll() is None
    registry.script("")
    assert output(waiting) == image.summary(1)


@contextlib.contextmanager
def using(place: Path) -> Iterator[None]:
    with subprocess.Popen(["sleep", "600"], cwd=place) as user:
        try:
            yield
        finally:
            user.kill()


def test_an_unmounted_image_has_no_say_in_its_successor(
    daemon: Daemon, registry: ScriptedRegistry
) -> None:
    reference, image = put(registry)
    with contextlib.ExitStack() as stack:
        for name in map(str, range(1000)):
            place = daemon.mount(reference, name, "--stall", "1")
            stack.enter_context(using(place))
            assert daemon.run("umount", "--lazy", place).code == 0
            daemon.mount(reference, name, "--stall", "60")
            if json.loads(records(daemon)[-1].read_bytes()).get("detached"):
                break  # the next fetcher reads that record last
            assert daemon.run("umount", place).code == 0
            stack.close()
            daemon.wait(lambda: not records(daemon))
        first = daemon.fetcher
        os.kill(first, signal.SIGKILL)
        daemon.wait(lambda: daemon.fetcher != first)
        registry.script("GET /blobs/ status 503 x100000")
        reader = daemon.reading(place / "f1", how="random")
        with pytest.raises(subprocess.TimeoutExpired):
            reader.wait(4)
        registry.script("")
        assert output(reader) == image.summary(1)


def test_a_sector_of_two_mounts_follows_the_more_patient_policy(
    daemon: Daemon, registry: ScriptedRegistry
) -> None:
    reference, image = put(registry)
    hasty = daemon.mount(reference, "hasty", "--stall", "1")
    patient = daemon.mount(reference, "patient", "--stall", "60")
    registry.script("GET /blobs/ status 503 x100000")
    reader = daemon.reading(hasty / "f1", how="random")
    time.sleep(4)
    assert reader.poll() is None
    assert daemon.run("umount", patient).code == 0
    assert output(reader) == EIO
    registry.script("")
    assert output(daemon.reading(hasty / "f1")) == image.summary(1)


def test_wrong_bytes_are_kept_with_their_origin_and_fetched_again(
    daemon: Daemon, registry: ScriptedRegistry
) -> None:
    reference, image = put(registry)
    place = daemon.mount(reference, "mnt", "--on-corruption", "quarantine")
    # After the frame table, in the first frame of the first request.
    registry.script("GET /blobs/ flip 1000 x2")
    assert output(daemon.reading(place / "f2")) == image.summary(2)
    (path,) = quarantined(daemon)  # the same bytes twice
    stated = json.loads(path.read_text())
    data = path.with_suffix(".bin").read_bytes()
    assert stated["sha256"] == hashlib.sha256(data).hexdigest()
    assert stated["bytes"] == len(data)
    assert stated["source"] == f"docker://{registry.host}/lazy/plain"
    assert stated["images"] == [daemon.mounted(place)["digest"]]
    assert "does not match its digest" in stated["error"] or "decompressed" in stated["error"]
    assert any(stated["blob"] in request for request in registry.asked("GET"))
    assert daemon.log("wrong bytes are kept")
    assert daemon.mounted(place)["failed_reads"] == 0


def test_without_quarantine_wrong_bytes_are_only_fetched_again(
    daemon: Daemon, registry: ScriptedRegistry
) -> None:
    reference, image = put(registry)
    place = daemon.mount(reference)
    registry.script("GET /blobs/ flip 1000 x2")
    assert output(daemon.reading(place / "f2")) == image.summary(2)
    assert quarantined(daemon) == []


def test_wrong_bytes_fail_a_read_at_once_if_the_policy_says_so(
    daemon: Daemon, registry: ScriptedRegistry
) -> None:
    reference, image = put(registry)
    place = daemon.mount(reference, "mnt", "--on-corruption", "fail")
    registry.script("GET /blobs/ flip 1000 x1")
    before = len(registry.asked("GET /v2/lazy/plain/blobs"))
    assert output(daemon.reading(place / "f2", how="random")) in (EIO, image.summary(2))
    # Readahead fails; the kernel then asks once more for the single page that it needs.
    assert daemon.mounted(place)["failed_reads"] >= 1
    assert len(registry.asked("GET /v2/lazy/plain/blobs")) - before <= 2
    registry.script("GET /blobs/ flip 1000 x1000")
    assert output(daemon.reading(place / "f5", how="random")) == EIO
    registry.script("")
    assert output(daemon.reading(place / "f5")) == image.summary(5)


@pytest.mark.parametrize("options", [(), ("--require", "lazy")], ids=["default", "lazy"])
@pytest.mark.parametrize("verb", ["mount", "run"])
def test_an_ordinary_image_is_refused_either_way(
    machine: Machine, tmp_path: Path, verb: str, options: tuple[str, ...]
) -> None:
    write_layout(Image([Layer([])]), tmp_path / "layout")
    reference = f"oci:{tmp_path}/layout:latest"
    more = (str(tmp_path),) if verb == "mount" else ("true",)
    done = machine.call(verb, *options, reference, *more)
    assert done.returncode == (3 if verb == "mount" else 125)
    assert "this is an ordinary image, not one that firstread converted" in done.stderr
    assert "convert it first: firstread convert --attach SOURCE" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [("--stall", "-1"), ("--stall", "soon"), ("--on-corruption", "ignore"), ("--require", "eager")],
)
def test_unknown_policies(machine: Machine, arguments: tuple[str, ...]) -> None:
    done = machine.call("mount", *arguments, "oci:/nowhere:1", "/mnt")
    assert done.returncode == 2
    assert arguments[0] in done.stderr
