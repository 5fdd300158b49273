# SPDX-License-Identifier: Apache-2.0
"""The command of an image, as its config states it, and the programs that it starts. Pure.

Owns the bounds on a text that others wrote: `MAX_WORDS` words, of `MAX_WORD` bytes each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import dropwhile, islice
from typing import Any, NamedTuple

from firstread.starts.treepaths import Found

MAX_WORDS, MAX_WORD = 256, 4096
MAX_STARTS = 4
DEFAULT_PATH = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Command(NamedTuple):
    """The command of an image, from its config.

    Args:
        words: Entrypoint, then Cmd.
        starts: numbers of the words that may be programs.
        variables: the environment.
        directory: WorkingDir.
    """

    words: list[bytes]
    starts: list[int]
    variables: dict[bytes, bytes]
    directory: bytes

    @property
    def path(self) -> list[bytes]:
        """The directories of PATH."""
        return self.variables.get(b"PATH", DEFAULT_PATH).split(b":")[:MAX_WORDS]


class Started(NamedTuple):
    """A program that the command starts.

    Args:
        program: its file.
        called: the path by which it is called, which may be a symbolic link.
        words: its arguments; of the interpreter of a script, the script and those behind it.
        directory: the working directory.
        variables: the environment.
    """

    program: Found
    called: bytes
    words: list[bytes]
    directory: bytes
    variables: dict[bytes, bytes]


def command_of(config: Mapping[str, Any]) -> Command:
    """Return the command in an image config; leave out what has another type.

    A program that Entrypoint starts often starts the one that Cmd names, or that follows ``--``.
    """
    section = config.get("config")
    section = section if isinstance(section, Mapping) else {}
    entrypoint, cmd = _words(section.get("Entrypoint")), _words(section.get("Cmd"))
    words = (entrypoint + cmd)[:MAX_WORDS]
    starts = [0, len(entrypoint)] + [at + 1 for at, word in enumerate(words) if word == b"--"]
    pairs = [word.partition(b"=") for word in _words(section.get("Env"))]
    directory = _words([section.get("WorkingDir")])
    return Command(
        words,
        [at for at in dict.fromkeys(starts) if at < len(words)][:MAX_STARTS],
        {name: value for name, _, value in pairs},
        directory[0] if directory else b"",
    )


def _words(value: object) -> list[bytes]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        return []
    words = [word for word in value[:MAX_WORDS] if isinstance(word, str)]
    return [word.encode(errors="surrogatepass")[:MAX_WORD] for word in words]


def after_env(words: list[bytes]) -> list[bytes]:
    """Return the words that env(1) runs, `MAX_WORDS` of them."""
    parts = (part for word in words[1:] for part in word.split())
    rest = dropwhile(lambda part: part.startswith(b"-") or b"=" in part, parts)
    return list(islice(rest, MAX_WORDS))
