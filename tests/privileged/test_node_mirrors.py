# SPDX-License-Identifier: Apache-2.0
"""Mounts whose registry has mirrors: failures, and their effect on reads."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from firstread.snapshotter.lazyimages import DaemonImages
from firstread.testing.certificates import make_certificate
from firstread.testing.daemon import Daemon
from firstread.testing.lazymount import output
from firstread.testing.plainimage import PlainImage, put_plain_image
from firstread.testing.scripted import ScriptedRegistry
from firstread.units import KiB

pytestmark = pytest.mark.privileged

SECTOR = 256 * KiB
BLOBS = "/blobs/"


@dataclass
class Site:
    """A registry, its mirrors, and a daemon that uses them."""

    server: ScriptedRegistry
    mirrors: list[ScriptedRegistry]
    daemon: Daemon
    image: PlainImage

    def mount(self) -> Path:
        place = self.daemon.mount(f"{self.server.host}/lazy/plain:1")
        for registry in (self.server, *self.mirrors):
            registry.seen.clear()
        return place

    def read(self, place: Path, number: int) -> None:
        """Read a whole file; it must be right."""
        said = output(self.daemon.reading(place / f"f{number}", 0, SECTOR))
        assert said == self.image.summary(number, 0, SECTOR)

    def endpoints(self) -> dict[str, dict[str, Any]]:
        return {e["endpoint"]: e for e in self.daemon.status()["endpoints"]}

    def asked(self) -> list[int]:
        """Return how many blob requests each mirror, and then the server, has received."""
        return [len(registry.asked(BLOBS)) for registry in (*self.mirrors, self.server)]


@contextmanager
def site(
    scratch: Path,
    mirrors: int = 1,
    *,
    tls: bool = False,
    settings: str = "",
    config: str = "",
    sectors: int = 8,
    **options: Any,
) -> Iterator[Site]:
    """Yield a site; its `options` are those of the server.

    Args:
        scratch: an empty directory.
        mirrors: how many.
        tls: of the mirrors; nobody trusts their certificate by default.
        settings: lines of each mirror in ``hosts.toml``.
        config: of the daemon, in TOML.
        sectors: number of sectors of the image, each with one file.
        options: of the server.
    """
    with ExitStack() as stack:
        files = make_certificate(scratch / "tls") if tls else None
        server = stack.enter_context(ScriptedRegistry(**options))
        others = [stack.enter_context(ScriptedRegistry(tls=files)) for _ in range(mirrors)]
        with ScriptedRegistry() as first:
            image = put_plain_image(f"docker://{first.host}/lazy/plain:1", count=sectors)
            for registry in (server, *others):
                registry.blobs.update(first.blobs)
                registry.manifests.update(first.manifests)
        directory = scratch / "certs.d" / (server.host.replace(":", "_") + "_")
        directory.mkdir(parents=True)
        scheme = "https" if tls else "http"
        tables = [f'[host."{scheme}://{m.host}"]\n{settings}\n' for m in others]
        (directory / "hosts.toml").write_text("\n".join(tables))
        (scratch / "config.toml").write_text(config)
        places = ("--config", str(scratch / "config.toml"), "--hosts-dir", f"{scratch}/certs.d")
        daemon = Daemon(scratch, *places)
        yield Site(server, others, stack.enter_context(daemon), image)


def test_a_mirror_breaks_off_in_the_middle_of_a_sector(tmp_path: Path) -> None:
    with site(tmp_path, 2) as it:
        place = it.mount()
        first, second = it.mirrors
        first.script("GET /blobs/ hangup 100000\nGET /blobs/ status 500 x99")
        second.script("GET /blobs/ hangup 50000\nGET /blobs/ status 500 x99")
        it.read(place, 3)

        begins = [int(r.seen[0].headers["Range"][6:].split("-")[0]) for r in (first, second)]
        went_on = int(it.server.seen[0].headers["Range"][6:].split("-")[0])
        assert begins[1] - begins[0] == 100_000
        assert went_on - begins[1] == 50_000  # no byte was requested twice
        mount = it.daemon.mounted(place)
        assert (mount["failed_reads"], mount["fetch_errors"]) == (0, 0)
        assert mount["source"] == it.server.host
        assert mount["repository"] == f"docker://{it.server.host}/lazy/plain"
        endpoints = it.endpoints()
        assert endpoints[first.host]["failures"] >= 1
        assert endpoints[it.server.host]["state"] == "healthy"
        assert it.daemon.log("an endpoint rests")[0]["endpoint"] == first.host


def test_all_is_read_while_endpoints_come_and_go(tmp_path: Path) -> None:
    with site(tmp_path, 2) as it:
        place = it.mount()
        readers = []
        for number in range(8):
            for at, registry in enumerate(it.mirrors):
                lines = ["GET /blobs/ hangup 9000", "GET /blobs/ status 503", "* / lost"]
                registry.script("" if number % 3 == at else "\n".join(lines * 3))
            reader = it.daemon.reading(place / f"f{number}", 0, SECTOR)
            readers.append(output(reader))
        assert readers == [it.image.summary(number, 0, SECTOR) for number in range(8)]
        assert it.daemon.mounted(place)["failed_reads"] == 0


def test_the_server_is_gone_and_the_mirror_serves_all(tmp_path: Path) -> None:
    with site(tmp_path) as it:
        it.server.script("* /v2/ status 500 x999")
        place = it.mount()
        for number in range(8):
            it.read(place, number)
        assert it.server.seen == []
        assert it.daemon.mounted(place)["source"] == it.mirrors[0].host


@pytest.mark.parametrize("fault", ["flip 5000", "wrong-range", "ignore-range", "status 404"])
def test_a_mirror_with_wrong_content_is_avoided_for_the_blob(tmp_path: Path, fault: str) -> None:
    with site(tmp_path) as it:
        place = it.mount()
        it.mirrors[0].script(f"GET /blobs/ {fault} x99")
        for number in range(8):
            it.read(place, number)
        asked_mirror, asked_server = it.asked()
        assert 1 <= asked_mirror <= 4  # as many as were in flight together
        assert asked_server >= 1
        assert it.daemon.mounted(place)["failed_reads"] == 0


def test_a_read_does_not_wait_for_a_late_endpoint(tmp_path: Path) -> None:
    """The time limits exceed the test's: only a second request can save the read."""
    config = "[registry]\nhedge_share = 0.2\nfirst_byte_timeout_s = 900\n"
    with site(tmp_path, config=config, sectors=32) as it:
        place = it.mount()
        for number in range(31, 5, -1):  # backwards, so that each is a separate request
            it.read(place, number)
        it.mirrors[0].script("GET /blobs/ blackhole 60 x9")
        it.read(place, 1)
        endpoints = it.endpoints()
        assert endpoints[it.server.host]["hedges"] >= 1  # a busy machine is late by itself
        assert endpoints[it.mirrors[0].host]["hedges"] == 0
        assert endpoints[it.mirrors[0].host]["first_byte_p95_s"] > 0
        assert it.daemon.mounted(place)["source"] == it.server.host


def test_metrics_and_events_name_the_endpoint(tmp_path: Path) -> None:
    with site(tmp_path) as it:
        place = it.mount()
        it.mirrors[0].script("GET /blobs/ status 500 x9")
        with it.daemon.watching(place) as watcher:
            it.read(place, 0)
            assert watcher.stdout is not None
            seen: list[dict[str, Any]] = []
            while not seen or seen[-1]["event"] != "present":
                seen.append(json.loads(watcher.stdout.readline()))
            assert seen[-1]["source"] == it.server.host
        text = it.daemon.run("status", "--metrics").stdout
        labels = f'endpoint="{it.mirrors[0].host}",registry="{it.server.host}"'
        assert f"firstread_endpoint_healthy{{{labels}}} 0.0" in text
        failed = f"firstread_endpoint_failures_total{{{labels}}} "
        assert float(text.partition(failed)[2].split()[0]) >= 1
        told = it.daemon.run("status").stdout
        assert f"from {it.server.host}" in told
        assert f"endpoint {it.mirrors[0].host} of {it.server.host}: resting, " in told
        assert f"endpoint {it.server.host}: healthy, " in told


def test_a_mirror_with_a_certificate_of_its_own(tmp_path: Path) -> None:
    ca = tmp_path / "tls" / "server.pem"
    with site(tmp_path, tls=True, settings=f'ca = "{ca}"') as it:
        place = it.mount()
        it.read(place, 0)
        assert it.asked() == [1, 0]


def test_a_mirror_that_nobody_trusts_is_not_used(tmp_path: Path) -> None:
    with site(tmp_path, tls=True) as it:
        place = it.mount()
        it.read(place, 0)
        assert it.asked() == [0, 1]
        assert "not trusted" in it.endpoints()[it.mirrors[0].host]["last_error"]


def test_the_memory_of_endpoints_begins_anew_with_a_fetcher(tmp_path: Path) -> None:
    with site(tmp_path) as it:
        place = it.mount()
        it.mirrors[0].script("GET /blobs/ status 500")
        it.read(place, 0)
        os.kill(it.daemon.fetcher, signal.SIGKILL)
        it.read(place, 1)
        assert it.endpoints()[it.mirrors[0].host]["state"] == "healthy"
        assert it.daemon.mounted(place)["source"] == it.mirrors[0].host


def test_a_wrong_hosts_toml_is_a_clear_error(tmp_path: Path) -> None:
    with site(tmp_path, settings='capabilities = ["sing"]') as it:
        (tmp_path / "mnt").mkdir()
        ran = it.daemon.run("mount", f"{it.server.host}/lazy/plain:1", tmp_path / "mnt")
        assert ran.code == 2
        assert "hosts.toml: unknown capability 'sing'" in ran.stderr
        assert it.daemon.status()["mounts"] == []


def test_a_mount_may_have_a_hosts_dir_of_its_own(tmp_path: Path) -> None:
    with site(tmp_path) as it:
        place = it.daemon.scratch / "own"
        place.mkdir()
        name = f"{it.server.host}/lazy/plain:1"
        ran = it.daemon.run("mount", name, place, "--hosts-dir", tmp_path / "nothing")
        assert ran.code == 0, ran
        it.read(place, 0)
        assert it.asked()[0] == 0


def test_the_snapshotter_has_the_mirrors_of_the_daemon_or_its_own(tmp_path: Path) -> None:
    with site(tmp_path) as it:
        name = f"{it.server.host}/lazy/plain:1"
        images = DaemonImages(it.daemon.root, it.daemon.run_dir)
        images.pull(name)
        it.read(images.mount(name, 1), 0)
        mirror, server = it.asked()
        assert (mirror > 0, server) == (True, 0)
        images.release(1)

        own = {"hosts_dirs": [str(tmp_path / "nothing")]}
        images = DaemonImages(it.daemon.root, it.daemon.run_dir, own)
        it.read(images.mount(name, 2), 4)
        assert it.asked() == [mirror, 1]
        images.release(2)
