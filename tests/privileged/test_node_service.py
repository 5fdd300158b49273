# SPDX-License-Identifier: Apache-2.0
"""A daemon as a service: systemd keeps its descriptors while none of its processes lives."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from firstread.daemon.handover import FIXED
from firstread.testing.caches import drop_caches
from firstread.testing.daemon import Daemon
from firstread.testing.lazymount import output
from firstread.testing.manager import ServiceManager
from firstread.testing.plainimage import PlainImage, put_plain_image
from firstread.testing.scripted import ScriptedRegistry

pytestmark = pytest.mark.privileged

EIO = "errno 5"
NUMBERS = (0, 3, 5)


class Service:
    """A service with a mount that has three reads waiting for a dead registry."""

    def __init__(self, scratch: Path, registry: ScriptedRegistry, manager: ServiceManager) -> None:
        self.registry, self.manager = registry, manager
        self.daemon = Daemon(scratch, manager=manager)
        reference = f"{registry.host}/lazy/plain:1"
        self.image: PlainImage = put_plain_image(f"docker://{reference}")
        self.daemon.start()
        self.place = self.daemon.mount(reference)
        registry.script("GET /blobs/ status 503 x100000")
        self.readers = [self.daemon.reading(self.place / f"f{n}", how="random") for n in NUMBERS]
        self.wait(3)

    def wait(self, count: int) -> None:
        self.daemon.wait(lambda: self.daemon.status()["fetcher"]["waiting_reads"] == count)

    def finish(self) -> None:
        """Repair the registry, and check that every read gets its bytes."""
        self.registry.script("")
        expected = [self.image.summary(number) for number in NUMBERS]
        assert [output(reader) for reader in self.readers] == expected


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with ScriptedRegistry() as registry, ServiceManager(tmp_path) as manager:
        service = Service(tmp_path, registry, manager)
        try:
            yield service
        finally:
            manager.drop()
            service.daemon.__exit__()


def test_it_notifies_systemd(service: Service) -> None:
    daemon, manager = service.daemon, service.manager
    assert {"READY": "1", "MAINPID": str(daemon.supervisor)} in manager.messages
    assert sorted(name for name, _ in manager.kept) == sorted(FIXED)
    assert daemon.run("daemon", "--reload").code == 0
    words = [set(message) for message in manager.messages]
    assert words.index({"RELOADING", "MONOTONIC_USEC"}) < len(words) - 1
    assert words[-1] == {"READY", "MAINPID"}
    assert sorted(name for name, _ in manager.kept) == sorted(FIXED)
    service.finish()


def test_all_die_and_no_read_fails(service: Service) -> None:
    daemon = service.daemon
    daemon.end_all(signal.SIGKILL)
    late = daemon.reading(service.place / "f7", how="random")
    daemon.start()
    service.wait(4)
    daemon.end_all(signal.SIGKILL)
    daemon.start()
    service.wait(4)
    service.finish()
    assert output(late) == service.image.summary(7)
    assert len(daemon.log("goes on with what was kept while no daemon lived")) == 2
    assert not daemon.log("a read fails")


def test_a_restart_fails_no_read(service: Service) -> None:
    daemon = service.daemon
    daemon.end_all(signal.SIGTERM)
    late = daemon.reading(service.place / "f7", how="random")
    daemon.start()
    service.wait(4)
    service.finish()
    assert output(late) == service.image.summary(7)
    assert daemon.log("stopping while 3 reads wait: systemd has them")


def test_a_command_waits_for_the_restart(service: Service) -> None:
    daemon = service.daemon
    daemon.end_all(signal.SIGKILL)
    assert daemon.client.alive()  # systemd keeps the socket, too
    daemon.start()
    service.finish()


def test_a_stop_lets_reads_fail(service: Service) -> None:
    daemon = service.daemon
    daemon.end_all(signal.SIGTERM)
    service.manager.drop()
    assert [output(reader) for reader in service.readers] == [EIO] * 3
    drop_caches()
    assert output(daemon.reading(service.place / "f6")) == EIO
    service.registry.script("")
    daemon.start()
    assert output(daemon.reading(service.place / "f6")) == service.image.summary(6)


def test_a_missing_file_fails_only_its_read(service: Service) -> None:
    daemon = service.daemon
    daemon.end_all(signal.SIGKILL)
    paths = list((daemon.root / "sectors").glob("*/*"))
    assert len(paths) == 8
    for path in paths:
        path.rename(path.with_name(path.name + ".away"))
    daemon.start()
    assert [output(reader) for reader in service.readers] == [EIO] * 3
    assert len(daemon.log("a read fails: the supervisor died")) == 3


def test_it_cannot_be_replaced_by_a_stranger(service: Service) -> None:
    ran = service.daemon.run("daemon", "--replace")
    assert ran.code == 5
    assert "the daemon belongs to a service manager" in ran.stderr
    assert "systemctl reload" in ran.stderr
    service.finish()
