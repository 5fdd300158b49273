# SPDX-License-Identifier: Apache-2.0
"""The state that one supervisor gives to the next, and between versions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from firstread.daemon import handover
from firstread.daemon.handover import Handover, Settings, read_handover
from firstread.device.base import Read
from firstread.errors import NodeError
from firstread.testing.patience import PATIENCE_S

SETTINGS = Settings(
    "/root", "/run", {"node": {"log_level": "INFO", "health_s": 3}}, ["--root", "x"]
)


def document(fd: int) -> dict[str, object]:
    found: dict[str, object] = json.loads(os.pread(fd, 1 << 20, 0))
    return found


def rewritten(**changes: object) -> int:
    """Return what another version would leave."""
    fd = Handover().write(SETTINGS)
    changed = document(fd) | changes
    os.close(fd)
    fd = os.memfd_create("handover")
    data = {name: value for name, value in changed.items() if value is not None}
    os.write(fd, json.dumps(data).encode())
    return fd


def test_it_arrives_as_it_was() -> None:
    held = [Read(7, 1, 1 << 40, 3, 9)]
    left = Handover(held, "reload", 3, 2, fetcher=77, channel=20, asker=21, door=22)
    assert read_handover(left.write(SETTINGS)) == (left, SETTINGS)
    assert left.descriptors() == [20, 21, 22, 9]


def test_another_version_may_know_more_or_less() -> None:
    more = rewritten(colour="red", held=[[7, 1, 2, 3, 9, "more"]], version="9.9")
    handover, _ = read_handover(more)
    assert handover.held == [Read(7, 1, 2, 3, 9)]
    assert handover.version == "9.9"
    less = rewritten(
        upgrades=None, asker=None, settings={"root": "/r", "run_dir": "", "config": {}}
    )
    handover, settings = read_handover(less)
    assert (handover.upgrades, handover.asker) == (0, -1)
    assert settings == Settings("/r", "", {})


def test_a_version_that_knows_fanotify_alone_refuses_mounts_of_another_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(handover, "is_group", lambda _: False)
    state = Handover().write(Settings("/r", "", {}))
    assert document(state)["format"] == 3
    assert read_handover(state)[1] == Settings("/r", "", {})


def test_a_format_that_is_not_known_is_refused() -> None:
    with pytest.raises(NodeError, match=r"firstread 9\.9 leaves its state in the format 2"):
        read_handover(rewritten(format=2, version="9.9"))


def test_numbers_of_events_are_kept_whatever_is_in_their_way(tmp_path: Path) -> None:
    # In a process of its own, because it moves descriptors that the test's process needs.
    code = """
import os, sys
from firstread.daemon.handover import FIXED, Handover, numbered
from firstread.device.base import Read
for number in FIXED.values():
    os.dup2(os.memfd_create("fixed"), number)
def file(name):
    fd = os.memfd_create(name)
    os.write(fd, name.encode())
    return fd
a, b, c, d = (file(name) for name in "abcd")
pairs = ((b, a), (a, b), (1500, c), (d, file("e")))
held = [Read(number, 0, 0, 0, fd) for number, fd in pairs]
after = numbered(Handover(held, channel=d, asker=file("f"), door=file("g")))
others = (after.channel, after.asker, after.door)
print(*(f"{os.pread(n, 9, 0).decode()}" for n in (b, a, 1500, d, *others)))
print([r.number == r.fd for r in after.held])
print(any(os.get_inheritable(fd) for fd in (*FIXED.values(), *after.descriptors())))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE_S, check=True
    )
    assert done.stdout.splitlines() == [
        "a b c e d f g",
        "[True, True, True, True]",
        "False",
    ]


def test_numbers_of_events_are_kept_in_a_table_that_is_full() -> None:
    code = """
import os, resource
from firstread.daemon.handover import FIXED, Handover, numbered
from firstread.device.base import Read
for number in FIXED.values():
    os.dup2(os.memfd_create("fixed"), number)
least = os.dup(0)
os.close(least)
used = [fd for fd in range(1100) if os.path.exists(f"/proc/self/fd/{fd}")]
fds = []
for number in range(1100):
    if number not in used and number < 1090:
        os.dup2(0, number)
        fds.append(number)
for fd in fds:
    new = os.memfd_create(str(fd))
    os.dup2(new, fd)
    os.close(new)
numbers = fds[1:] + fds[:1]  # each stands in the way of another
resource.setrlimit(resource.RLIMIT_NOFILE, (1091, 1091))
held = [Read(number, 0, 0, 0, fd) for number, fd in zip(numbers, fds)]
after = numbered(Handover(held))
names = [os.readlink(f"/proc/self/fd/{number}").split(":")[1].split()[0] for number in numbers]
print(names == [str(fd) for fd in fds], len(fds) > 1000, [r.fd for r in after.held] == numbers)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE_S, check=True
    )
    assert done.stdout.split() == ["True"] * 3
