# SPDX-License-Identifier: Apache-2.0
"""Runs the ``firstread`` command inside a test, and returns everything that its user would see."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from firstread.cli.main import run
from firstread.testing.patience import PATIENCE_S


@dataclass(frozen=True)
class Ran:
    """A command that has ended: its exit code and its output."""

    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        """The one object on stdout."""
        return json.loads(self.stdout)


def without_progress(stderr: str) -> str:
    """Return the output of a command without its progress, which depends on the machine."""
    return re.sub(r"^after \d+ s: .*\n", "", stderr, flags=re.MULTILINE)


def firstread(*arguments: str | os.PathLike[str]) -> Ran:
    """Run ``firstread`` with `arguments` in this process; neither output is a terminal."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        code = run([os.fspath(argument) for argument in arguments])
    return Ran(code, stdout.getvalue(), stderr.getvalue())


def ran(
    command: Sequence[str | os.PathLike[str]],
    *,
    stdin: str | None = None,
    timeout_s: float = PATIENCE_S,
    cwd: str | os.PathLike[str] | None = None,
    env: Mapping[str, str] | None = None,
) -> Ran:
    """Run another program in a process of its own, however it ends."""
    done = subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        input=stdin,
        timeout=timeout_s,
        cwd=cwd,
        env=env,
    )
    return Ran(done.returncode, done.stdout, done.stderr)


def program(*arguments: str | os.PathLike[str]) -> list[str]:
    """Return the command line that runs ``firstread`` with `arguments` in its own process."""
    start = "from firstread.__main__ import main; main()"
    return [sys.executable, "-c", start, *(os.fspath(argument) for argument in arguments)]
