# SPDX-License-Identifier: Apache-2.0
"""Removes secrets from our command line, which other users of the machine can read.

``/proc/PID/cmdline`` is open to everybody while a process runs, and the attendant of a container
runs as long as the container; only its own user can read its environment and memory.

Source: proc(5), ``cmdline``, and fields 48 and 49 of ``stat``.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable

_ARG_START = 48 - 3  # fields of stat after the name, the first of which is number 3


def hide_values(settings: Iterable[str]) -> None:
    """Replace each value of `settings` in this process's command line by an asterisk.

    Args:
        settings: as typed, ``NAME=VALUE``; a name without a value stays.
    """
    hidden = {}
    for setting in settings:
        name, _, value = setting.partition("=")
        if value:
            hidden[os.fsencode(setting)] = os.fsencode(f"{name}=*")
    if hidden:
        with contextlib.suppress(OSError):  # without /proc nobody can read it
            _rewrite(hidden)


def _rewrite(hidden: dict[bytes, bytes]) -> None:
    """Replace the ends of arguments; the command line never grows."""
    with open("/proc/self/stat", "rb") as file:
        start, end = map(int, file.read().rpartition(b") ")[2].split()[_ARG_START:][:2])
    with open("/proc/self/mem", "r+b", buffering=0) as memory:
        memory.seek(start)
        arguments = memory.read(end - start).split(b"\0")
        lengths = sorted({len(setting) for setting in hidden}, reverse=True)
        for place, argument in enumerate(arguments):
            length = next((n for n in lengths if argument[-n:] in hidden), 0)
            if length:
                arguments[place] = argument[:-length] + hidden[argument[-length:]]
        memory.seek(start)
        memory.write(b"\0".join(arguments).ljust(end - start, b"\0"))
