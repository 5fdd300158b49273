# SPDX-License-Identifier: Apache-2.0
"""Records of containers: names, ids, and states that are asked of the kernel."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from firstread.errors import NodeError, UsageError
from firstread.run.containers import ContainerStore, Record, Status, new_id, now, status_of
from firstread.run.control import read_container_log, remove_container, stop_container
from firstread.run.names import make_name
from firstread.run.parse import check_name
from firstread.run.processes import ProcessIdentity, identify, is_alive, open_process
from firstread.testing.deeptree import make_deep
from firstread.testing.shortage import unreadable


@pytest.fixture
def store(tmp_path: Path) -> ContainerStore:
    return ContainerStore(tmp_path / "state")


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


def add(store: ContainerStore, name: str | None = None, **fields: object) -> Record:
    record = msgspec.structs.replace(Record(id=new_id(), created=now()), **fields)
    return store.create(record, name)


def test_a_record_comes_back(store: ContainerStore) -> None:
    record = add(store, "web", command=("a", "b"), labels={"k": "v"}, process=identify(os.getpid()))
    assert store.list() == [record]
    assert store.find("web") == store.find(record.id) == store.find(record.id[:5]) == record
    assert ContainerStore(store.state_dir).find("web") == record


def test_a_record_that_cannot_be_read_now_is_no_damaged_one(store: ContainerStore) -> None:
    record = add(store, "web")
    with unreadable(store.directory(record) / "record.json"):
        with pytest.raises(NodeError, match="Input/output error"):
            store.list()
        with pytest.raises(NodeError):
            store.reload(record)
    assert store.list() == [record]


def test_a_name_is_given_once(store: ContainerStore) -> None:
    first = add(store, "web")
    with pytest.raises(UsageError) as caught:
        add(store, "web")
    assert caught.value.message == (
        f'the container name "web" is already in use by container {first.short_id}'
    )
    store.delete(first)
    add(store, "web")


def test_what_a_container_has_written_may_be_deep(store: ContainerStore) -> None:
    record = add(store)
    upper = store.directory(record) / "upper"
    make_deep(upper, 2 * sys.getrecursionlimit())
    store.delete(record)
    assert store.list() == []
    assert not store.directory(record).exists()


def test_a_record_that_cannot_be_written(store: ContainerStore) -> None:
    with pytest.raises(UsageError, match="not UTF-8"):
        add(store, labels={"a": "\udcff"})
    record = add(store)
    with pytest.raises(UsageError, match="not UTF-8"):
        store.save(msgspec.structs.replace(record, lower="/\udcff"))
    assert store.list() == [record]
    assert list(store.directory(record).parent.glob("*.new")) == []


def test_names_are_made_up(store: ContainerStore) -> None:
    names = {add(store).name for _ in range(20)}
    assert len(names) == 20
    assert all(check_name(name) for name in names)


def test_names_do_not_run_out() -> None:
    class Everything:
        def __contains__(self, name: object) -> bool:
            return isinstance(name, str) and not name[-1].isdigit()

    assert check_name(make_name(Everything()))


def test_one_name_and_many_who_want_it(store: ContainerStore) -> None:
    won: list[Record] = []

    def want() -> None:
        with contextlib.suppress(UsageError):
            won.append(add(ContainerStore(store.state_dir), "web"))

    threads = [threading.Thread(target=want) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1


def test_keys_that_find_nothing(store: ContainerStore) -> None:
    for key in ("", "none", "../x"):
        with pytest.raises(UsageError, match=f"no such container: {key}"):
            store.find(key)
    store.create(Record(id="ab" + "0" * 62), "one")
    store.create(Record(id="ab" + "1" * 62), "two")
    with pytest.raises(UsageError, match="multiple IDs found with provided prefix: ab"):
        store.find("ab")


def test_states(sleeper: subprocess.Popen[bytes]) -> None:
    alive = identify(sleeper.pid)
    record = Record(id=new_id())
    replace = msgspec.structs.replace
    assert status_of(record) is Status.DEAD
    assert status_of(replace(record, attendant=alive)) is Status.CREATED
    assert status_of(replace(record, process=alive)) is Status.RUNNING
    assert status_of(replace(record, process=alive, exit_code=3)) is Status.EXITED
    sleeper.kill()
    sleeper.wait()
    assert status_of(replace(record, process=alive)) is Status.DEAD
    assert status_of(replace(record, attendant=alive)) is Status.DEAD


def test_a_recycled_number_is_another_process() -> None:
    me = identify(os.getpid())
    assert me is not None
    assert is_alive(me)
    assert not is_alive(msgspec.structs.replace(me, start_ticks=me.start_ticks - 1))
    assert not is_alive(msgspec.structs.replace(me, boot_id="another boot"))
    assert open_process(ProcessIdentity(me.pid, 1, me.boot_id)) is None


def test_a_zombie_does_not_run(sleeper: subprocess.Popen[bytes]) -> None:
    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
    assert identify(sleeper.pid) is None
    assert identify(2**22) is None


def test_a_damaged_record_can_be_removed(store: ContainerStore) -> None:
    record = add(store, "web")
    for content in (b"", b"{", b'{"id": 5}', b"\xff"):
        (store.directory(record) / "record.json").write_bytes(content)
        assert store.list() == [Record(id=record.id)]
    (store.directory(record) / "log").touch()
    (store.directory(record) / "record.json").unlink()
    remove_container(store, store.find(record.id))
    assert store.list() == []
    assert not store.directory(record).exists()


def test_removing_what_runs(store: ContainerStore, sleeper: subprocess.Popen[bytes]) -> None:
    record = add(store, "web", process=identify(sleeper.pid))
    with pytest.raises(UsageError, match=f"cannot remove a running container {record.short_id}"):
        remove_container(store, record)
    reaper = threading.Thread(target=sleeper.wait)
    reaper.start()
    remove_container(store, record, force=True)
    reaper.join()
    assert sleeper.returncode == -9
    assert store.reload(record) is None
    remove_container(store, record)  # again: nothing to do


def test_a_container_that_is_being_made(
    store: ContainerStore, sleeper: subprocess.Popen[bytes]
) -> None:
    record = add(store, "web", attendant=identify(sleeper.pid))
    stop_container(store, record)
    assert status_of(record) is Status.CREATED
    with pytest.raises(UsageError, match="cannot remove a running container"):
        remove_container(store, record)
    remove_container(store, record, force=True)
    assert sleeper.wait(10) == -signal.SIGTERM
    assert store.list() == []


def test_a_container_that_starts_while_it_is_removed(store: ContainerStore) -> None:
    """Its attendant hands the signal on, and the container does not listen."""
    ignoring = ["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1; done"]
    waiting = ["sh", "-c", "trap 'echo got' TERM; echo ready; while :; do sleep 0.1; done"]
    with (
        subprocess.Popen(ignoring, stdout=subprocess.PIPE) as container,
        subprocess.Popen(waiting, stdout=subprocess.PIPE) as attendant,
    ):
        assert container.stdout
        assert attendant.stdout
        container.stdout.readline()
        attendant.stdout.readline()
        record = add(store, attendant=identify(attendant.pid))
        failed: list[BaseException] = []

        def remove() -> None:
            try:
                remove_container(store, record, force=True)
            except BaseException as exc:  # noqa: BLE001 - shown below
                failed.append(exc)

        removing = threading.Thread(target=remove)
        removing.start()
        assert attendant.stdout.readline() == b"got\n"
        store.save(msgspec.structs.replace(record, process=identify(container.pid)))
        assert container.wait(10) == -signal.SIGKILL
        attendant.kill()
        attendant.wait(10)
        removing.join(30)
    assert failed == []
    assert store.list() == []


def test_stopping_what_ignores_the_signal(store: ContainerStore) -> None:
    script = "trap '' TERM; echo ready; while :; do sleep 1; done"
    with subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        stop_container(store, add(store, process=identify(process.pid)), timeout_seconds=0.2)
        assert process.wait() == -9


def test_stopping_what_does_not_run(store: ContainerStore) -> None:
    stop_container(store, add(store, exit_code=0))
    stop_container(store, add(store))


def test_only_a_detached_container_has_a_log(store: ContainerStore) -> None:
    with pytest.raises(UsageError, match="was not detached"):
        list(read_container_log(store, add(store)))
    assert list(read_container_log(store, add(store, detached=True), follow=True)) == []


def test_following_from_before_the_start(
    store: ContainerStore, sleeper: subprocess.Popen[bytes]
) -> None:
    """The command hands the container over to its monitor, which makes the log."""
    seen = add(store, detached=True, attendant=identify(sleeper.pid))
    following: list[bytes] = []

    def follow() -> None:
        following.extend(entry.content for entry in read_container_log(store, seen, follow=True))

    thread = threading.Thread(target=follow)
    thread.start()
    with subprocess.Popen(["sleep", "60"]) as monitor:
        store.save(msgspec.structs.replace(seen, attendant=identify(monitor.pid)))
        sleeper.kill()
        sleeper.wait(10)
        (store.directory(seen) / "log").write_bytes(b"T stdout F first\n")
        thread.join(0.5)  # some looks
        assert thread.is_alive()
        monitor.kill()
    thread.join(10)
    assert following == [b"first\n"]


def test_a_state_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NodeError, match=r"cannot make the directory .*/file"):
        ContainerStore(tmp_path / "file")
