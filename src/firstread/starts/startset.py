# SPDX-License-Identifier: Apache-2.0
"""The static start set: what the image's own command will read first, found without a run. Pure.

Owns the choice: which programs the command starts, which of their bytes and which small files come
in, in which order, and how many. Invariant: the result depends only on the image; whatever the
image says, it costs bounded reads, and has at most `MAX_SET` bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from firstread.erofs.tree import Node, walk
from firstread.sectors.format import BLOCK_SIZE
from firstread.starts.imagecommand import Command, Started, after_env, command_of
from firstread.starts.libraries import CACHE, Libraries, Object, ReadFile
from firstread.starts.runtimes import Runtime, runtime_of
from firstread.starts.treepaths import Found, Part, TreePaths, head
from firstread.traces.firstreads import only_first
from firstread.traces.tracefile import MAX_READ_SIZE, VERSION, Trace, TracedRead, TraceHeader
from firstread.units import KiB, MiB, round_up

MAX_SET = 128 * MiB  # a start of pandas reads 67
MAX_SHARE = 2  # of an image: a set of more than half of its bytes is no set
MAX_CODE = 8 * MiB  # of one segment: of larger ones a start reads too little
MAX_FILE = MiB  # of a script, or of a file that the command names
MAX_SYSTEM = 256 * KiB  # of a file that the C library reads
MAX_SMALL = 64 * KiB  # of a configuration file
MAX_FILES = 64  # below a directory of configuration, or one that the command names
MAX_CHAIN = 4  # interpreters of scripts: BINPRM_MAX_RECURSION of Linux

# Files that the C library or OpenSSL opens in most starts. ADR 109 has the counts.
_SYSTEM = (
    *(CACHE, b"etc/nsswitch.conf", b"etc/passwd", b"etc/group", b"etc/localtime"),
    *(b"etc/hosts", b"etc/host.conf", b"etc/gai.conf", b"usr/lib/ssl/openssl.cnf"),
    *(b"etc/ssl/openssl.cnf", b"etc/locale.alias", b"usr/lib/locale/C.utf8/LC_CTYPE"),
    b"usr/lib/x86_64-linux-gnu/gconv/gconv-modules.cache",
    b"usr/lib/aarch64-linux-gnu/gconv/gconv-modules.cache",
)


def start_set(root: Node, read: ReadFile, config: Mapping[str, Any]) -> Trace | None:
    """Return what a start of an image will read, as a trace; None if nothing is known of it.

    Args:
        root: of the image's tree.
        read: returns bytes of a file: (path without a leading slash, offset, length).
        config: the image config.

    Raises:
        FirstreadError: `read` does.
    """
    command = command_of(config)
    parts = _StartSet(TreePaths(root), read, command).parts()
    reads = list(_limited(only_first(read for part in parts for read in _reads(part))))
    size = sum(node.size for _, node in walk(root) if node.is_file)
    if not reads or MAX_SHARE * sum(read.length for read in reads) > size:
        return None
    words = [word.decode(errors="replace") for word in command.words]
    return Trace(TraceHeader(version=VERSION, command=words), reads)


class _StartSet:
    def __init__(self, paths: TreePaths, read: ReadFile, command: Command) -> None:
        self.paths, self.read, self.command = paths, read, command
        library_path = command.variables.get(b"LD_LIBRARY_PATH", b"")
        self.libraries = Libraries(paths, read, library_path)
        self.scripts: list[Found] = []
        self.programs: list[Object] = []
        self.runtimes: list[Runtime] = []

    def parts(self) -> Iterator[Part]:
        """Yield the set, the surest parts first; nothing if the command starts no program."""
        for start in self.command.starts:
            self._follow(self.command.words[start:])
        if not self.programs:
            return
        mapped = list(self.libraries.objects(self.programs))
        found = (self.paths.file(one.elf.interpreter) for one in self.programs)
        loaders = {loader.path for loader in found if loader}
        for one in mapped:
            yield from _sure(one)
            if one.file.path in loaders:  # a start runs nearly all of its code
                yield from _likely(one)
        yield from self._files()
        for runtime in self.runtimes:
            yield from runtime.parts
        loaded = self._loaded({one.file.path for one in mapped})
        yield from (part for one in loaded for part in _sure(one))
        yield from (part for one in (*mapped, *loaded) for part in _likely(one))

    def _loaded(self, mapped: set[bytes]) -> list[Object]:
        """Return the libraries that runtimes open, and what these need, except those `mapped`."""
        files = [file for runtime in self.runtimes for file in runtime.libraries]
        roots = [root for file in files if (root := self.libraries.open(file))]
        return [one for one in self.libraries.objects(roots) if one.file.path not in mapped]

    def _follow(self, words: list[bytes]) -> None:
        """Find the program that `words` start, through scripts and env(1)."""
        directory, variables = self.command.directory, self.command.variables
        for _ in range(MAX_CHAIN + 2):
            called, file = self._program(words[0]) if words else (b"", None)
            if file is None:
                return
            if program := self.libraries.open(file):
                self.programs.append(program)
                if file.name != b"env":
                    started = Started(file, called, words[1:], directory, variables)
                    self.runtimes.append(runtime_of(started, self.paths, self.read))
                    return
                words = after_env(words)
            else:
                self.scripts.append(file)
                line = self.read(file.path, 0, 256).partition(b"\n")[0]
                if not line.startswith(b"#!"):
                    return
                words = [*line[2:].split(None, 1), b"/" + file.path, *words[1:]]

    def _program(self, word: bytes) -> tuple[bytes, Found | None]:
        """Return the path by which a program is called, and its file."""
        places = [directory + b"/" + word for directory in self.command.path if word]
        for place in [word] if b"/" in word else places:
            path = place if place.startswith(b"/") else self.command.directory + b"/" + place
            if file := self.paths.file(path):
                return path, file
        return b"", None

    def _files(self) -> Iterator[Part]:
        """Yield scripts, configuration, and the files that the command names."""
        yield from (head(script, MAX_FILE) for script in self.scripts)
        for path in _SYSTEM:
            if found := self.paths.file(path):
                yield head(found, MAX_SYSTEM)
        if self.command.variables.keys() & {b"LANG", b"LC_ALL"}:
            for file in self.paths.small_files(b"usr/lib/locale/C.utf8", b"", MAX_FILES):
                yield head(file, MAX_SYSTEM)
        names = [file.name for file in (*self.scripts, *(one.file for one in self.programs))]
        for name in names:
            for file in self.paths.small_files(b"etc/" + name, b"", MAX_FILES):
                yield head(file, MAX_SMALL)
        words = self.command.words
        for path in dict.fromkeys(
            path for word in words for path in (word, word.partition(b"=")[2])
        ):
            if path.strip(b"/."):
                yield from self._argument(path)

    def _argument(self, path: bytes) -> Iterator[Part]:
        if file := self.paths.file(path, self.command.directory):
            yield head(file, MAX_FILE)
        elif b"/" in path:
            for file in self.paths.small_files(path, self.command.directory, MAX_FILES):
                yield head(file, MAX_SMALL)


def _sure(one: Object) -> Iterator[Part]:
    return (Part(one.file, *part) for part in one.elf.sure)


def _likely(one: Object) -> Iterator[Part]:
    fit = [part for part in one.elf.likely if part.end - part.start <= MAX_CODE]
    return (Part(one.file, *part) for part in fit)


def _reads(part: Part) -> Iterator[TracedRead]:
    """Yield the reads of a part: whole blocks, in pieces that a trace can hold."""
    at = part.start // BLOCK_SIZE * BLOCK_SIZE
    end = round_up(min(part.end, part.file.node.size), BLOCK_SIZE)
    while at < end:
        length = min(end - at, MAX_READ_SIZE)
        yield TracedRead(0, at, length, part.file.path)
        at += length


def _limited(reads: Iterable[TracedRead]) -> Iterator[TracedRead]:
    left = MAX_SET
    for read in reads:
        if read.length > left:
            return
        left -= read.length
        yield read
