# SPDX-License-Identifier: Apache-2.0
"""ELF files: their libraries, and the pages that a start reads."""

from __future__ import annotations

import random
import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstread.starts.elf import Elf, Range, read_elf
from firstread.testing.mutate import mutate
from firstread.testing.programs import PAGE, Program

LIBRARY = Program(needed=(b"libc.so.6", b"libm.so.6"), runpath=b"$ORIGIN/../lib")


def parse(data: bytes) -> Elf | None:
    return read_elf(lambda offset, length: data[offset : offset + length], len(data))


def parsed(program: Program) -> Elf:
    elf = parse(program.image())
    assert elf
    return elf


def pages(ranges: Iterable[Range]) -> set[int]:
    return {page for start, end in ranges for page in range(start // PAGE, -(-end // PAGE))}


def test_an_object_names_its_libraries() -> None:
    elf = parsed(LIBRARY)
    assert (elf.needed, elf.runpath) == ([b"libc.so.6", b"libm.so.6"], b"$ORIGIN/../lib")
    assert not elf.inherited
    assert (elf.machine, elf.interpreter) == (62, b"")


def test_a_program_names_its_interpreter_and_an_old_one_its_rpath() -> None:
    elf = parsed(Program(interpreter=b"/lib64/ld.so", rpath=b"/opt/lib"))
    assert (elf.interpreter, elf.runpath, elf.inherited) == (b"/lib64/ld.so", b"/opt/lib", True)


def test_the_loader_reads_tables_data_and_windows_around_initializers() -> None:
    program = replace(LIBRARY, tables=5 * PAGE)
    sure = pages(parsed(program).sure)
    code, data = program.first_code_page, program.first_data_page
    initializer = code + program.code // 2
    end = code + program.code
    assert set(range(code)) <= sure, "the tables"
    assert set(range(code, code + 8)) <= sure, "DT_INIT, and what it calls"
    assert {initializer - 2, initializer + 1} <= sure
    assert {end - 1} <= sure, "DT_FINI"
    assert set(range(data - 4, data + program.data + 4)) <= sure, "the data and its neighbours"
    others = {code + 8, initializer - 4, initializer + 4, end - 4, data - 8}
    assert not others & sure


def test_code_and_constants_are_likely_and_unwinding_tables_are_not() -> None:
    program = replace(LIBRARY, unwinding=40)
    likely = pages(parsed(program).likely)
    code, unwinding = program.first_code_page, program.first_data_page - 40
    assert set(range(code, unwinding)) <= likely
    assert max(likely) < unwinding + 10


def test_a_small_file_is_read_whole() -> None:
    data = Program(code=1, constants=1, unwinding=1).image()[: 16 * PAGE]
    elf = parse(data)
    assert elf
    assert elf.sure == [Range(0, 16 * PAGE)]


@pytest.mark.parametrize(
    "data", [b"", b"\x7fELF", b"#!/bin/sh\n", b"\x7fELF\x01\x01" + bytes(200), bytes(4096)]
)
def test_other_files_are_no_elf_files(data: bytes) -> None:
    assert parse(data) is None


IMAGE = replace(LIBRARY, interpreter=b"/lib64/ld.so").image()
PLACES = [place for place, byte in enumerate(IMAGE) if byte]


@given(st.randoms(use_true_random=False))
def test_damage_gives_ranges_within_the_file_after_bounded_reads(rng: random.Random) -> None:
    data = mutate(IMAGE, PLACES, rng)
    reads: list[int] = []

    def read(offset: int, length: int) -> bytes:
        assert offset >= 0
        reads.append(length)
        return data[offset : offset + length]

    elf = read_elf(read, len(data))
    assert len(reads) < 600
    assert max(reads) <= 64 * 1024
    for start, end in [*elf.sure, *elf.likely] if elf else []:
        assert start >= 0
        assert end <= len(data)


def host_objects() -> list[Path]:
    places = [Path("/bin/sh"), *Path("/usr/lib").glob("*-linux-gnu/lib[cmz].so.*")]
    return [place for place in places if place.exists()]


@pytest.mark.skipif(not shutil.which("readelf"), reason="binutils are not installed")
@pytest.mark.parametrize("path", host_objects(), ids=lambda path: path.name)
def test_readelf_agrees(path: Path) -> None:
    said = subprocess.run(["readelf", "-dW", path], capture_output=True, text=True, check=True)
    elf = parse(path.read_bytes())
    assert elf
    needed = re.findall(r"\(NEEDED\) .*\[(.*)\]", said.stdout)
    assert [name.decode() for name in elf.needed] == needed
