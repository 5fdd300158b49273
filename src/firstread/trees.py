# SPDX-License-Identifier: Apache-2.0
"""Removing trees that a container has written.

Owns the removal. Invariant: no depth of a tree makes it fail: Python's ``shutil.rmtree`` recurses
for each level, and a container can create any number of levels.
"""

from __future__ import annotations

import os
import subprocess

from firstread.errors import NodeError, from_os_error


def remove_tree(*paths: str | os.PathLike[str]) -> None:
    """Remove files and directories with their content; missing ones are no error.

    It neither follows symbolic links nor enters other file systems.

    Raises:
        NodeError: something cannot be removed; everything else is.
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
    if done.returncode:
        words = os.fsdecode(done.stderr).strip().partition("\n")[0].removeprefix("rm: ")
        raise NodeError(words or f"rm ended with {done.returncode}")
