# SPDX-License-Identifier: Apache-2.0
"""Removing trees that a container has written.

Owns the removal. Invariant: no depth of a tree makes it fail: Python's ``shutil.rmtree`` recurses
for each level, and a container can create any number of levels.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from typing import Final

from firstread.errors import NodeError, from_os_error

BATCH: Final = 256  # paths of one rm: of 4,096 bytes each they are half of what execve(2) takes


def remove_tree(*paths: str | os.PathLike[str]) -> None:
    """Remove any number of files and directories with their content; missing ones are no error.

    It neither follows symbolic links nor enters other file systems.

    Raises:
        NodeError: something cannot be removed; everything else is.
    """
    batches = [paths[start : start + BATCH] for start in range(0, len(paths), BATCH)]
    failures = [failure for batch in batches if (failure := _remove(batch)) is not None]
    if failures:
        raise failures[0]


def _remove(paths: Sequence[str | os.PathLike[str]]) -> NodeError | None:
    """Remove at most `BATCH` paths; return what went wrong.

    Raises:
        NodeError: nothing can be removed.
    """
    command = ["rm", "-rf", "--one-file-system", "--", *map(os.path.abspath, paths)]
    try:
        # In a separate process group: Ctrl-C in a terminal must not reach it.
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            process_group=0,
            check=False,
        )
    except OSError as exc:
        raise from_os_error(exc, "cannot start rm") from exc
    if not done.returncode:
        return None
    words = os.fsdecode(done.stderr).strip().partition("\n")[0].removeprefix("rm: ")
    return NodeError(words or f"rm ended with {done.returncode}")
