# SPDX-License-Identifier: Apache-2.0
"""The programs that a build runs, and what it knows of its surroundings.

Each failure is a FirstreadError; `main` prints it and gives the exit code.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from firstread.errors import FirstreadError, NodeError, UsageError, from_os_error

TIMEOUT_S: Final = 1200.0
_SHOWN: Final = 2000  # characters of what a program that failed said last


def run(
    *command: str | Path,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
    timeout_s: float = TIMEOUT_S,
) -> str:
    """Run a program; return what it printed.

    Args:
        command: its name and arguments.
        cwd: where; here unless given.
        environment: its variables; ours unless given.
        timeout_s: until it must have ended.

    Raises:
        NodeError: it is missing, failed, or took too long.
    """
    try:
        done = subprocess.run(
            [*map(str, command)],
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
    except FileNotFoundError as exc:
        raise NodeError(f"there is no program {command[0]}") from exc
    except subprocess.TimeoutExpired as exc:
        raise NodeError(f"{command[0]} has not ended in {timeout_s:.0f} s") from exc
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "no message")[-_SHOWN:]
        raise NodeError(f"{command[0]} failed: {said}")
    return done.stdout


def source_date() -> int:
    """Return SOURCE_DATE_EPOCH: the date of everything in a package, in seconds since 1970.

    Raises:
        UsageError: it is not set, or no number.
    """
    text = os.environ.get("SOURCE_DATE_EPOCH", "")
    if not text.isdecimal():
        raise UsageError("SOURCE_DATE_EPOCH is no number of seconds", hint="make sets it")
    return int(text)


def main(build: Callable[[], list[str]]) -> int:
    """Run a build and print what it says; return the exit code."""
    try:
        lines = build()
    except OSError as exc:
        return _complain(from_os_error(exc, "cannot build"))
    except FirstreadError as exc:
        return _complain(exc)
    print(*lines, sep="\n")
    return 0


def _complain(exc: FirstreadError) -> int:
    print(f"failed: {exc}", *([f"  {exc.hint}"] if exc.hint else []), sep="\n", file=sys.stderr)
    return exc.exit_code
