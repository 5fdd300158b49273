# SPDX-License-Identifier: Apache-2.0
"""A file that a verb writes. Invariant: a regular file gets its name when it is complete."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from firstread.errors import from_os_error


def write_whole(path: Path, text: str) -> None:
    """Write `text` to a file, or to the pipe or terminal that is there.

    Raises:
        NodeError: it cannot be written; nothing is left then.
    """
    import tempfile  # few verbs write a file, and a start must load little

    data, scratch = text.encode(errors="backslashreplace"), None
    try:
        if path.exists() and not path.is_file():
            path.write_bytes(data)
            return
        target = Path(os.path.realpath(path))  # a link stays one
        fd, name = tempfile.mkstemp(prefix=f".{target.name[:100]}.", dir=target.parent)
        scratch = Path(name)
        with os.fdopen(fd, "wb") as out:
            out.write(data)
        scratch.chmod(0o644)
        scratch.replace(target)
        scratch = None
    except OSError as exc:
        exc.filename = str(path)  # not the one that nobody asked for
        raise from_os_error(exc, "cannot write") from exc
    finally:
        if scratch is not None:
            with contextlib.suppress(OSError):
                scratch.unlink()
