# SPDX-License-Identifier: Apache-2.0
"""The modules that a Node program requires, found in its sources. Pure.

Owns a reader of ``require`` and ``import``, and the search in ``node_modules``. Names that a
program computes stay unknown. Invariant: at most `MAX_MODULES` files, `MAX_LOOKUPS` names
and `MAX_SOURCES` bytes of source.

Source: the documentation of Node, Modules: CommonJS modules, "All together".
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import msgspec

from firstread.starts.imagecommand import Started
from firstread.starts.libraries import ReadFile
from firstread.starts.treepaths import Found, TreePaths
from firstread.units import KiB, MiB

MAX_MODULES = 4000
MAX_LOOKUPS = 10_000  # names, each looked up once from a directory; express has 300
MAX_SOURCE = 512 * KiB  # of one module
MAX_SOURCES = 32 * MiB
MAX_PACKAGE = 64 * KiB  # of a package.json
MAX_DEPTH = 16  # directories with node_modules above a file

_REQUIRED = re.compile(rb"""\b(?:require\(|from |import )["']([\w@./-]{1,256})["']""")
_GLOBAL = (b"/usr/share/nodejs", b"/usr/lib/nodejs", b"/usr/lib/node_modules")
# Debian's node reads these of its own modules from the disk; other builds have them inside.
_EXTERNAL = (
    *(b"cjs-module-lexer", b"cjs-module-lexer/dist/lexer", b"undici/undici-fetch"),
    *(b"acorn", b"acorn-walk"),
)


class _Package(msgspec.Struct):
    main: str = ""


_package = msgspec.json.Decoder(_Package)


def node_files(started: Started, paths: TreePaths, read: ReadFile) -> list[Found]:
    """Return the files that a start of Node loads: the script, and what it requires.

    Args:
        started: node.
        paths: of the image.
        read: returns bytes of its files.

    Raises:
        FirstreadError: `read` does.
    """
    modules = _Modules(paths, read)
    found: dict[bytes, Found] = {}
    script = next((word for word in started.words if not word.startswith(b"-")), b"")
    start = [file for name in _EXTERNAL for file in modules.at(name, b"/usr/share/nodejs")]
    start += modules.at(script, started.directory)
    loading = [iter(start)]
    while loading and len(found) < MAX_MODULES:
        file = next(loading[-1], None)
        if file is None:
            loading.pop()
        elif file.path not in found:
            found[file.path] = file
            loading.append(modules.required(file))
    return list(found.values())


class _Modules:
    def __init__(self, paths: TreePaths, read: ReadFile) -> None:
        self.paths, self.read = paths, read
        self._looked_up: set[tuple[bytes, bytes]] = set()
        self._left = MAX_SOURCES

    def required(self, file: Found) -> Iterator[Found]:
        """Yield what the module in `file` requires, in order."""
        if not file.name.endswith((b".js", b".cjs", b".mjs")):
            return
        size = min(file.node.size, MAX_SOURCE, self._left)
        self._left -= size
        source = self.read(file.path, 0, size)
        here = b"/" + file.directory
        for name in dict.fromkeys(_REQUIRED.findall(source)):
            if len(self._looked_up) < MAX_LOOKUPS and (name, here) not in self._looked_up:
                self._looked_up.add((name, here))
                yield from self._resolve(name, here)

    def _resolve(self, name: bytes, directory: bytes) -> list[Found]:
        if name.startswith((b"/", b"./", b"../")) or name in (b".", b".."):
            return self.at(name, directory)
        for _ in range(MAX_DEPTH):
            if found := self.at(name, directory + b"/node_modules"):
                return found
            directory, slash, _ = directory.rpartition(b"/")
            if not slash:
                break
        return next((found for place in _GLOBAL if (found := self.at(name, place))), [])

    def at(self, name: bytes, directory: bytes) -> list[Found]:
        """Return the files of the module or package that `name` means in a directory."""
        return self._as_file(name, directory) or self._as_directory(name, directory)

    def _as_file(self, name: bytes, directory: bytes) -> list[Found]:
        """Return the file that `name` means, if it is one."""
        for suffix in (b"", b".js", b".json", b".node", b".cjs", b".mjs"):
            if name and (file := self.paths.file(name + suffix, directory)):
                return [file]
        return []

    def _as_directory(self, name: bytes, directory: bytes) -> list[Found]:
        """Return package.json and the main module of the directory that `name` means."""
        place = self.paths.find(name, directory)
        if not place or not place.node.is_dir:
            return []
        here = b"/" + place.path
        package = self.paths.file(b"package.json", here)
        main = self._main(package) if package else b""
        found = [package] if package else []
        return found + (
            (self._as_file(main, here) or self._as_file(main + b"/index", here) if main else [])
            or self._as_file(b"index", here)
        )

    def _main(self, package: Found) -> bytes:
        try:
            data = self.read(package.path, 0, min(package.node.size, MAX_PACKAGE))
            return _package.decode(data).main.encode(errors="surrogatepass")
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            return b""
