# SPDX-License-Identifier: Apache-2.0
"""Containers with a terminal, driven from a terminal of the test."""

from __future__ import annotations

import os
import shutil
import signal
import time

import pytest

from firstread.testing.containers import Node, find_busybox, make_rootfs
from firstread.testing.terminal import Terminal

pytestmark = pytest.mark.privileged

RUNTIMES = [name for name in ("crun", "runc") if shutil.which(name)]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Node:
    busybox = find_busybox()
    if os.geteuid() or not busybox or not RUNTIMES:
        pytest.skip("needs root, busybox-static, and crun or runc")
    rootfs = make_rootfs(tmp_path_factory.mktemp("rootfs"), busybox)
    return Node(rootfs, tmp_path_factory.mktemp("state"), {"Env": ["PATH=/bin", "PS1=> "]})


def terminal(node: Node, *arguments: str) -> Terminal:
    return Terminal(node.argv(*arguments))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_shell(node: Node, runtime: str) -> None:
    with terminal(node, "--runtime", runtime, "--rm", "-it", "image", "sh") as shell:
        shell.expect("> ")
        shell.type("tty; stty size; echo $TERM\r")
        shell.expect("/dev/pts/0\r\n33 77\r\nxterm\r\n")
        shell.resize(10, 20)
        shell.process.send_signal(signal.SIGWINCH)
        # The key can arrive before the signal.
        shell.type("until stty size | grep '10 20'; do sleep 0.05; done\r")
        shell.expect("10 20\r\n")
        shell.type("exit 4\r")
        assert shell.process.wait(15) == 4
        assert shell.restored()


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_keys_reach_the_container(node: Node, runtime: str) -> None:
    with terminal(node, "--runtime", runtime, "--rm", "-it", "image", "sh") as shell:
        shell.expect("> ")
        shell.type("sleep 60; echo interrupted $?\r")
        shell.expect("$?\r\n")
        time.sleep(0.2)
        shell.type("\x03")
        shell.expect("> ")
        shell.type("\x04")
        assert shell.process.wait(15) == 130


def test_a_terminal_without_input(node: Node) -> None:
    with terminal(node, "--rm", "-t", "image", "sh", "-c", "echo out; exit 2") as opened:
        opened.expect("out")
        assert opened.process.wait(15) == 2
        assert opened.restored()


def test_the_terminal_is_restored_when_nothing_starts(node: Node) -> None:
    with terminal(node, "--rm", "-it", "image", "nosuch") as opened:
        opened.expect("executable not found in $PATH")
        assert opened.process.wait(15) == 127
        assert opened.restored()


def test_without_a_terminal_ours_is_not_reachable(node: Node) -> None:
    show = "for n in 0 1 2; do [ -t $n ] && echo terminal $n; done; echo done"
    with terminal(node, "--rm", "-i", "image", "sh", "-c", show) as opened:
        opened.expect("done")
        assert b"terminal" not in opened.seen
        assert opened.process.wait(15) == 0
