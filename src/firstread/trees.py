# SPDX-License-Identifier: Apache-2.0
"""Removing trees that a container has written.

Owns the removal. Invariant: what is in a tree, however deep, is no reason to fail: Python's
``shutil.rmtree`` calls itself for each level, and a container makes as many as it likes.
"""

from __future__ import annotations

import os
import subprocess

from firstread.errors import NodeError, from_os_error


def remove_tree(*paths: str | os.PathLike[str]) -> None:
    """Remove files and directories with all that is in them; what is not there is no error.

    Symbolic links are not followed, nor are other file systems entered.

    Raises:
        NodeError: something cannot be removed; all else is.
    """
    command = ["rm", "-rf", "--one-file-system", "--", *map(os.path.abspath, paths)]
    try:
        # In a process group of its own: Ctrl-C in a terminal is not for it.
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
