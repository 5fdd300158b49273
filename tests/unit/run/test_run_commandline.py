# SPDX-License-Identifier: Apache-2.0
"""The command line of a process, without the secrets that were typed into it."""

from __future__ import annotations

import subprocess
import sys

import pytest

SHOW = """
import sys
from firstread.run.commandline import hide_values
hide_values(sys.argv[1].split("|"))
print(open("/proc/self/cmdline", "rb").read().split(b"\\0")[4:])
"""


def shown(settings: list[str], *arguments: str) -> list[bytes]:
    """Return the command line after the settings, without what is empty at its end."""
    argv = [sys.executable, "-c", SHOW, "|".join(settings), *arguments]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    found: list[bytes] = eval(done.stdout)
    while found and not found[-1]:
        found.pop()
    return found


@pytest.mark.parametrize(
    ("typed", "left"),
    [
        (["-e", "A=hunter2"], [b"-e", b"A=*"]),
        (["--env", "A=hunter2"], [b"--env", b"A=*"]),
        (["--env=A=hunter2"], [b"--env=A=*"]),
        (["-eA=hunter2"], [b"-eA=*"]),
        (["-dieA=hunter2"], [b"-dieA=*"]),
        (["-e", "A=hunter2", "-e", "A=hunter2"], [b"-e", b"A=*", b"-e", b"A=*"]),
        (["-e", "A=a=b c"], [b"-e", b"A=*"]),
        (["-e", "A=\u00fc\udcff"], [b"-e", b"A=*"]),
    ],
)
def test_values_of_variables_go(typed: list[str], left: list[bytes]) -> None:
    settings = ["A=hunter2", "A=a=b c", "A=\u00fc\udcff"]
    assert shown(settings, "run", *typed, "image", "cmd") == [b"run", *left, b"image", b"cmd"]


def test_arguments_without_a_value_stay() -> None:
    assert shown(["A", "B=", ""], "-e", "A", "-e", "B=", "", "x") == [
        *(b"-e", b"A", b"-e", b"B=", b"", b"x")
    ]
