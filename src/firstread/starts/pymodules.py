# SPDX-License-Identifier: Apache-2.0
"""The modules that a Python program imports, found in its sources. Pure.

Owns a reader of import statements and the search along ``sys.path``. It follows statements that
run when a module is loaded: outside of functions and classes. Names that a program computes stay
unknown. Invariant: at most `MAX_MODULES` modules, and `MAX_SOURCES` bytes of source.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import chain, islice, product, zip_longest
from typing import NamedTuple

from firstread.starts.imagecommand import Started
from firstread.starts.libraries import ReadFile
from firstread.starts.treepaths import Found, TreePaths
from firstread.units import KiB, MiB

MAX_MODULES = 20_000  # names that are looked up; of pandas 2,000, most of them no module
MAX_SOURCE = 512 * KiB  # of one module
MAX_CONFIGURATIONS = 100  # files of paths, of all site-packages
MAX_SOURCES = 32 * MiB  # pandas has 20
MAX_IMPORTS = 2000  # of one module
MAX_NAMES = 256  # of one statement
MAX_DEPTH = 16  # packages in packages
MAX_LINES = 256  # of one statement

_STARTUP = (b"encodings", b"encodings.aliases", b"encodings.utf_8", b"sitecustomize")
_VERSION = re.compile(rb"python(3\.[0-9]{1,2})")
_STRINGS = re.compile(rb'"""|\'\'\'')
_NAME = re.compile(rb"[\w.]{1,256}")
_FROM = re.compile(rb"from[ \t]{1,9}(\.{0,9})([\w.]{0,256})[ \t]{1,9}import[ \t(]")
_APPLICATION = re.compile(rb"([A-Za-z_][\w.]{0,255}):\w{1,64}(\(\))?")
_SKIPPED = (b"def ", b"async ", b"class ", b"if TYPE_CHECKING", b"if typing.", b"if __name__")


class Imported(NamedTuple):
    """One import: of `name`, and of its submodules `names`; `level` counts the leading dots."""

    level: int
    name: bytes
    names: list[bytes]


def imports(source: bytes) -> Iterator[Imported]:
    """Yield the imports that a module does when it is loaded, from its source text."""
    lines = iter(b"".join(_STRINGS.split(source)[::2]).split(b"\n"))
    skipping = False
    for line in lines:
        if line[:1].strip(b" \t\r)#"):
            skipping = line.startswith(_SKIPPED)
        words = line.strip()
        if not skipping and words.startswith((b"import ", b"from ")):
            yield from _statement(_joined(words, lines))


def _joined(line: bytes, lines: Iterator[bytes]) -> bytes:
    """Return a statement with the lines that continue it, without comments."""
    parts: list[bytes] = []
    for more in chain([line], islice(lines, MAX_LINES)):
        part = more.partition(b"#")[0].strip()
        parts.append(part.rstrip(b"\\"))
        if b")" in part or not (part.endswith(b"\\") or b"(" in parts[0]):
            break
    return b" ".join(parts)


def _statement(line: bytes) -> Iterator[Imported]:
    line = line.partition(b";")[0]
    if match := _FROM.match(line):
        names = line[match.end() :].strip(b" \t()").split(b",")[:MAX_NAMES]
        words = [name.split()[0] for name in names if name.split()]
        yield Imported(len(match[1]), match[2], [word for word in words if _NAME.fullmatch(word)])
    elif line.startswith(b"import "):
        for name in line[7:].split(b",")[:MAX_NAMES]:
            if (words := name.split()) and _NAME.fullmatch(words[0]):
                yield Imported(0, words[0], [])


def python_files(started: Started, paths: TreePaths, read: ReadFile) -> list[Found]:
    """Return the files that a start of Python loads: bytecode, sources without any, extensions.

    Args:
        started: the interpreter, such as ``usr/bin/python3.11``.
        paths: of the image.
        read: returns bytes of its files.

    Raises:
        FirstreadError: `read` does.
    """
    found = _VERSION.fullmatch(started.program.name)
    if not found:
        return []
    version = b"/lib/python" + found[1]
    library = _above(started.program.directory) + version
    environment = _above(_above(started.called))
    places = [
        *started.variables.get(b"PYTHONPATH", b"").split(b":")[:16],
        *(library, library + b"/lib-dynload"),
        *([environment + version] if paths.file(environment + b"/pyvenv.cfg") else [library]),
    ]
    places[-1] += b"/site-packages"
    places += [b"usr/local" + version + b"/dist-packages", b"usr/lib/python3/dist-packages"]
    modules = _Modules(paths, read, found[1].replace(b".", b""))
    for path in filter(None, places):
        place = paths.find(path)
        if place and all(place.node is not other.node for other in modules.path):
            modules.path.append(place)
    return list(modules.files(started.words, started.directory))


def _above(path: bytes) -> bytes:
    return path.rpartition(b"/")[0]


class _Loaded(NamedTuple):
    """A module: the file that Python reads, the source if it has one, and its package."""

    file: Found
    source: bytes
    package: bytes


class _Modules:
    def __init__(self, paths: TreePaths, read: ReadFile, tag: bytes) -> None:
        self.paths, self.read, self.tag = paths, read, tag
        self.path: list[Found] = []
        self._packages: dict[bytes, list[Found]] = {}  # name -> directories
        self._left = MAX_SOURCES

    def files(self, words: Sequence[bytes], directory: bytes) -> Iterator[Found]:
        """Yield the files in the order of loading: a module before those that it imports."""
        seen: set[bytes] = set()
        configurations = list(islice(self._site(), MAX_CONFIGURATIONS))
        yield from configurations
        loading = [self._program(words, directory)]
        loading += [self._wanted(self._source(file), b"") for file in configurations]
        loading.append(chain.from_iterable(map(_with_packages, _STARTUP)))
        while loading and len(seen) < MAX_MODULES:
            name = next(loading[-1], None)
            if name is None:
                loading.pop()
            elif name not in seen:
                seen.add(name)
                if loaded := self._load(name):
                    yield loaded.file
                    loading.append(self._wanted(loaded.source, loaded.package))

    def _site(self) -> Iterator[Found]:
        """Yield the files that ``site`` reads for paths, and which may import."""
        for place in self.path:
            for name in sorted(
                name for name in place.node.children or () if name.endswith(b".pth")
            ):
                if file := self.paths.file(name, b"/" + place.path):
                    yield file

    def _program(self, words: Sequence[bytes], directory: bytes) -> Iterator[bytes]:
        """Yield what the command line names: a script, ``-c``, ``-m``, ``module:application``."""
        here = self.paths.find(b".", directory)
        place, source = here, b""
        for option, value in zip_longest(words, words[1:], fillvalue=b""):
            if option == b"-m":
                yield from _with_packages(value + b".__main__")
            elif option == b"-c":
                source = value
            elif not option.startswith(b"-"):
                script = self.paths.file(option, directory)
                place = script and self.paths.find(b"/" + script.directory)
                source = self._source(script) if script else b""
            else:
                continue
            break
        self.path[:0] = [place] if place else []
        yield from self._wanted(source, b"")
        self.path += [here] if here else []
        for word in words:
            if match := _APPLICATION.fullmatch(word):
                yield from _with_packages(match[1])

    def _wanted(self, source: bytes, package: bytes) -> Iterator[bytes]:
        """Yield the names that a source imports, each when those before it are loaded.

        Args:
            source: its text.
            package: that relative imports start from.
        """
        for level, name, names in islice(imports(source), MAX_IMPORTS):
            parts = package.split(b".")
            base = parts[: len(parts) + 1 - level] if level else []
            full = b".".join([*base, *([name] if name else [])])
            yield from _with_packages(full)
            yield from (full + b"." + sub for sub in names if full in self._packages)

    def _load(self, name: bytes) -> _Loaded | None:
        parent, _, last = name.rpartition(b".")
        portions = []  # of a package without __init__.py
        for place in self._packages.get(parent, []) if parent else self.path:
            children = place.node.children or {}
            if last in children and (package := self.paths.find(last, b"/" + place.path)):
                if package.node.children and b"__init__.py" in package.node.children:
                    self._packages[name] = [package]
                    return self._module(package, b"__init__", name)
                portions += [package] if package.node.is_dir else []
            if last + b".py" in children:
                return self._module(place, last, parent)
            if extension := self._extension(place, last):
                return _Loaded(extension, b"", b"")
        if portions:
            self._packages[name] = portions
        return None

    def _module(self, place: Found, name: bytes, package: bytes) -> _Loaded | None:
        source = self.paths.file(name + b".py", b"/" + place.path)
        cached = b"__pycache__/" + name + b".cpython-" + self.tag + b".pyc"
        file = self.paths.file(cached, b"/" + place.path) or source
        return _Loaded(file, self._source(source) if source else b"", package) if file else None

    def _source(self, file: Found) -> bytes:
        size = min(file.node.size, MAX_SOURCE, self._left)
        self._left -= size
        return self.read(file.path, 0, size)

    def _extension(self, place: Found, name: bytes) -> Found | None:
        cpython = b".cpython-" + self.tag + b"-%b-linux-%b.so"
        suffixes = [cpython % pair for pair in product((b"x86_64", b"aarch64"), (b"gnu", b"musl"))]
        for suffix in (*suffixes, b".abi3.so", b".so"):
            if name + suffix in (place.node.children or {}):
                return self.paths.file(name + suffix, b"/" + place.path)
        return None


def _with_packages(name: bytes) -> Iterator[bytes]:
    """Yield the packages that a module lies in, from the outermost on, then itself."""
    parts = name.split(b".")[:MAX_DEPTH]
    yield from (b".".join(parts[:count]) for count in range(1, len(parts) + 1) if parts[0])
