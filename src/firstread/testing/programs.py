# SPDX-License-Identifier: Apache-2.0
"""ELF files and trees of files for tests of start sets, built from a description.

Owns a linker's idea of a file: tables first, then code, constants with unwinding tables, data.
Invariant: the same description gives the same bytes.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from firstread.erofs.tree import Node, directory

PAGE = 4096
X86_64, AARCH64 = 62, 183


@dataclass(frozen=True)
class Program:
    """An ELF file.

    Args:
        needed: names of libraries.
        interpreter: of the program; b"" for a library.
        runpath: DT_RUNPATH.
        rpath: DT_RPATH.
        machine: e_machine.
        tables: bytes of the string table, at least.
        code: pages of it.
        constants: pages before the unwinding tables.
        unwinding: pages of these.
        data: pages of the writable segment.
    """

    needed: tuple[bytes, ...] = ()
    interpreter: bytes = b""
    runpath: bytes | None = None
    rpath: bytes | None = None
    machine: int = X86_64
    tables: int = PAGE
    code: int = 32
    constants: int = 16
    unwinding: int = 16
    data: int = 2

    @property
    def first_code_page(self) -> int:
        """The page at which the code begins: the tables lie before it."""
        return -(-(2 * PAGE + self.tables) // PAGE)

    @property
    def first_data_page(self) -> int:
        return self.first_code_page + self.code + self.constants + self.unwinding

    def image(self) -> bytes:
        """Return the file. Addresses are offsets, so that a page of it has one number."""
        strings, named = _strings(self)
        code = self.first_code_page * PAGE
        constants = code + self.code * PAGE
        data = self.first_data_page * PAGE
        tags = [*named, (5, 2 * PAGE), (10, len(strings)), (12, code), (13, constants - 16)]
        tags += [(25, data + PAGE // 2), (27, 8), (0, 0)]
        dynamic = b"".join(struct.pack("<qQ", *tag) for tag in tags)
        segments = [
            (1, 4, 0, 2 * PAGE + len(strings)),
            (1, 5, code, self.code * PAGE),
            (1, 4, constants, (self.constants + self.unwinding) * PAGE),
            (1, 6, data, self.data * PAGE),
            (2, 6, data, len(dynamic)),
            (0x6474E550, 4, constants + self.constants * PAGE, 64),
        ]
        if self.interpreter:
            segments.append((3, 4, PAGE, len(self.interpreter) + 1))
        file = bytearray((self.first_data_page + self.data) * PAGE + 64 * PAGE)  # and symbols
        struct.pack_into(
            "<16sHHIQQQIHHHHHH", file, 0, b"\x7fELF\x02\x01\x01", 3, self.machine, 1, code,
            64, 0, 0, 64, 56, len(segments), 64, 0, 0,
        )  # fmt: skip
        for number, (kind, flags, offset, size) in enumerate(segments):
            row = (kind, flags, offset, offset, offset, size, size, PAGE)
            struct.pack_into("<IIQQQQQQ", file, 64 + 56 * number, *row)
        file[PAGE : PAGE + len(self.interpreter)] = self.interpreter
        file[2 * PAGE : 2 * PAGE + len(strings)] = strings
        file[data : data + len(dynamic)] = dynamic
        initializer = code + self.code // 2 * PAGE
        file[data + PAGE // 2 : data + PAGE // 2 + 8] = struct.pack("<Q", initializer)
        return bytes(file)


def _strings(program: Program) -> tuple[bytes, list[tuple[int, int]]]:
    """Return the string table, and the tags that point into it."""
    strings, tags = bytearray(b"\0"), []
    named = [(1, name) for name in program.needed]
    named += [(tag, path) for tag, path in ((29, program.runpath), (15, program.rpath)) if path]
    for tag, name in named:
        tags.append((tag, len(strings)))
        strings += name + b"\0"
    return bytes(strings.ljust(program.tables, b"\0")), tags


def tree_of(
    files: Mapping[str, bytes | str],
) -> tuple[Node, Callable[[bytes, int, int], bytes]]:
    """Return a tree and a reader of its files.

    Args:
        files: content by path; a string is the target of a symbolic link.
    """
    root = directory()
    contents: dict[bytes, bytes] = {}
    for path, content in files.items():
        *parents, name = path.encode().split(b"/")
        at = root
        for parent in parents:
            assert at.children is not None
            at = at.children.setdefault(parent, directory())
        assert at.children is not None
        if isinstance(content, str):
            at.children[name] = Node(stat.S_IFLNK | 0o777, target=content.encode())
        else:
            at.children[name] = Node(stat.S_IFREG | 0o755, size=len(content))
            contents[path.encode()] = content

    def read(path: bytes, offset: int, length: int) -> bytes:
        return contents.get(path, b"")[offset : offset + length]

    return root, read
