# SPDX-License-Identifier: Apache-2.0
"""What the runtimes of languages read by themselves when they start. Pure.

Owns the knowledge of Java, Python and Node: the files that they open by name, beyond what the
dynamic linker does. Other programs have nothing here.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from firstread.starts.imagecommand import Started
from firstread.starts.jsmodules import node_files
from firstread.starts.libraries import ReadFile
from firstread.starts.pymodules import python_files
from firstread.starts.treepaths import Found, Part, TreePaths, head
from firstread.units import KiB, MiB


class Runtime(NamedTuple):
    """What a runtime reads.

    Args:
        libraries: shared libraries that it opens by name.
        parts: of other files, in order.
    """

    libraries: list[Found]
    parts: list[Part]


_JIMAGE = struct.Struct("<7I")  # magic, version, flags, resources, table length, sizes
_JIMAGE_MAGIC = 0xCAFEDADA
_JAVA_LIBRARIES = (
    *(b"server/libjvm.so", b"libjava.so", b"libjimage.so"),
    *(b"libnio.so", b"libnet.so", b"libextnet.so", b"libzip.so", b"libjsvml.so"),
)
_JAVA_FILES = (b"lib/jvm.cfg", b"conf/net.properties", b"lib/tzdb.dat")
_CLASSES = 32 * MiB  # of the shared archive of classes; 17 has 13


def runtime_of(started: Started, paths: TreePaths, read: ReadFile) -> Runtime:
    """Return what the runtime in a program reads.

    Raises:
        FirstreadError: `read` does.
    """
    name = started.program.name
    if name == b"java":
        return _java(started, paths, read)
    if name.startswith(b"python"):
        return _python(started, paths, read)
    if name in (b"node", b"nodejs"):
        return _node(started, paths, read)
    return Runtime([], [])


def _java(started: Started, paths: TreePaths, read: ReadFile) -> Runtime:
    home = started.program.directory.rpartition(b"/")[0]
    libraries = [paths.file(b"lib/" + name, home) for name in _JAVA_LIBRARIES]
    files = [paths.file(name, home) for name in _JAVA_FILES]
    parts = [head(file, 128 * KiB) for file in files if file]
    if classes := paths.file(b"lib/server/classes.jsa", home):
        parts.append(head(classes, _CLASSES))
    if modules := paths.file(b"lib/modules", home):
        parts.append(head(modules, _jimage_index(read(modules.path, 0, _JIMAGE.size))))
    return Runtime([library for library in libraries if library], parts)


def _jimage_index(data: bytes) -> int:
    """Return how many bytes of a jimage file are its index, by ``imageFile.hpp`` of OpenJDK."""
    if len(data) < _JIMAGE.size:
        return 0
    magic, _, _, _, table, locations, strings = _JIMAGE.unpack(data)
    index = _JIMAGE.size + 8 * table + locations + strings
    return index if magic == _JIMAGE_MAGIC and index <= 16 * MiB else 0


def _python(started: Started, paths: TreePaths, read: ReadFile) -> Runtime:
    files = python_files(started, paths, read)
    return Runtime(
        [file for file in files if b".so" in file.name],
        [head(file, 512 * KiB) for file in files if b".so" not in file.name],
    )


def _node(started: Started, paths: TreePaths, read: ReadFile) -> Runtime:
    files = node_files(started, paths, read)
    return Runtime([], [head(file, 512 * KiB) for file in files])
