# SPDX-License-Identifier: Apache-2.0
"""What execve(2) takes is what `check_room` lets through."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from firstread.run.execroom import MAX_ALL, MAX_EACH, check_room
from firstread.run.runtime import CommandError
from firstread.units import MiB

START = """
import os, resource, sys
stack, count, length = map(int, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_STACK, (stack, resource.getrlimit(resource.RLIMIT_STACK)[1]))
env = {f"N{number:04}": "x" * length for number in range(count)}
os.execve(sys.executable, [sys.executable, "-S", "-E", "-c", ""], env)
"""


def process(env: list[str], stack: int | None = None) -> dict[str, Any]:
    limits = [] if stack is None else [{"type": "RLIMIT_STACK", "soft": stack, "hard": stack}]
    return {"args": [sys.executable], "env": env, "rlimits": limits}


def starts(stack: int, count: int, length: int) -> bool:
    """Return whether the kernel takes so many variables of such a length."""
    argv = [sys.executable, "-c", START, str(stack), str(count), str(length)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert not done.returncode or "Argument list too long" in done.stderr
    return not done.returncode


def passes(stack: int | None, count: int, length: int) -> bool:
    try:
        check_room(process([f"N{number:04}={'x' * length}" for number in range(count)], stack))
    except CommandError as exc:
        return exc.exit_code != 126
    return True


@pytest.mark.parametrize("stack", [1 * MiB, 8 * MiB, 64 * MiB])
def test_the_check_refuses_what_the_kernel_refuses(stack: int) -> None:
    most = min(MAX_ALL, stack // 4) // (len("N0000=") + 1000 + 1 + 8)
    for count, expected in ((most - 2, True), (most + 2, False)):
        assert starts(stack, count, 1000) is expected
        assert passes(stack, count, 1000) is expected


def test_one_variable_may_be_as_long_as_the_kernel_says() -> None:
    longest = MAX_EACH - len("N0000=") - 1
    for length, expected in ((longest, True), (longest + 1, False)):
        assert starts(8 * MiB, 1, length) is expected
        assert passes(8 * MiB, 1, length) is expected


def test_the_message_names_the_program_and_the_limit() -> None:
    with pytest.raises(CommandError) as caught:
        check_room(process(["A=b"] * 1_000_000, 8 * MiB))
    words = f'exec: "{sys.executable}": the arguments and variables take more than 2.0 MiB'
    assert caught.value.message == words
    assert "--ulimit stack" in (caught.value.hint or "")


def test_a_stack_without_a_limit_takes_the_most() -> None:
    assert passes(-1, 6000, 1000)
    assert not passes(-1, 6300, 1000)


def test_a_process_inherits_our_stack() -> None:
    assert passes(None, 100, 1000)
    assert not passes(None, 6300, 1000)
