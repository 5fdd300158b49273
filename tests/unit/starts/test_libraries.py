# SPDX-License-Identifier: Apache-2.0
"""Libraries are found as ld.so(8) finds them."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstread.erofs.tree import walk
from firstread.starts.libraries import MAX_OBJECTS, MAX_PLACES, Libraries, read_cache
from firstread.starts.treepaths import Found, TreePaths
from firstread.testing.programs import AARCH64, Program, tree_of

APP = "opt/app/bin/app"
LIB = Program().image()


def loaded(files: dict[str, bytes | str], library_path: bytes = b"") -> list[str]:
    root, read = tree_of(files)
    paths = TreePaths(root)
    libraries = Libraries(paths, read, library_path)
    file = paths.file(APP.encode())
    assert file
    program = libraries.open(file)
    assert program
    return [one.file.path.decode() for one in libraries.objects([program])][1:]


def program(*needed: bytes, runpath: bytes | None = None, rpath: bytes | None = None) -> bytes:
    return Program(needed=needed, runpath=runpath, rpath=rpath).image()


def cache(*entries: tuple[bytes, bytes], variant: int = 0) -> bytes:
    strings, rows = bytearray(), b""
    start = 48 + 24 * len(entries)
    for pair in entries:
        offsets = []
        for text in pair:
            offsets.append(start + len(strings))
            strings += text + b"\0"
        rows += struct.pack("<iIIIQ", 0x303, *offsets, 0, variant)
    header = struct.pack("<20sII20x", b"glibc-ld.so.cache1.1", len(entries), len(strings))
    return header + rows + bytes(strings)


PLACES = ["rp/liba.so", "env/liba.so", "run/liba.so", "cached/liba.so", "usr/lib/liba.so"]


@pytest.mark.parametrize(
    ("runpath", "rpath", "expected"),
    [
        (None, b"/rp", ["rp/liba.so", "env/liba.so", "cached/liba.so", "usr/lib/liba.so"]),
        (b"/run", None, ["env/liba.so", "run/liba.so", "cached/liba.so", "usr/lib/liba.so"]),
        (b"/run", b"/rp", ["env/liba.so", "run/liba.so", "cached/liba.so", "usr/lib/liba.so"]),
        (None, None, ["env/liba.so", "cached/liba.so", "usr/lib/liba.so"]),
    ],
    ids=["rpath", "runpath", "both", "neither"],
)
def test_places_have_an_order(
    runpath: bytes | None, rpath: bytes | None, expected: list[str]
) -> None:
    files: dict[str, bytes | str] = dict.fromkeys(PLACES, LIB)
    files[APP] = program(b"liba.so", runpath=runpath, rpath=rpath)
    files["etc/ld.so.cache"] = cache((b"liba.so", b"/cached/liba.so"))
    found = []
    while places := loaded(files, b"/env"):
        found += places
        del files[places[0]]
    assert found == expected


def test_an_rpath_serves_the_libraries_of_libraries_and_a_runpath_does_not() -> None:
    files: dict[str, bytes | str] = {"own/liba.so": program(b"libb.so"), "own/libb.so": LIB}
    files[APP] = program(b"liba.so", rpath=b"/own")
    assert loaded(files) == ["own/liba.so", "own/libb.so"]
    files[APP] = program(b"liba.so", runpath=b"/own")
    assert loaded(files) == ["own/liba.so"]


@pytest.mark.parametrize("origin", [b"$ORIGIN/../lib", b"${ORIGIN}/../lib"])
def test_origin_is_the_real_directory_of_the_object(origin: bytes) -> None:
    files: dict[str, bytes | str] = {"opt/app/lib/liba.so": LIB, "opt/real": b""}
    files[APP] = program(b"liba.so", runpath=origin)
    assert loaded(files) == ["opt/app/lib/liba.so"]


def test_each_object_comes_once_breadth_first() -> None:
    files: dict[str, bytes | str] = {
        APP: program(b"liba.so", b"libb.so"),
        "lib/liba.so": program(b"libc.so", b"libb.so"),
        "lib/libb.so": "libb.so.1",
        "lib/libb.so.1": program(b"liba.so", b"libd.so"),
        "lib/libc.so": program(b"libb.so.1"),
        "lib/libd.so": LIB,
    }
    assert loaded(files) == ["lib/liba.so", "lib/libb.so.1", "lib/libc.so", "lib/libd.so"]


def test_the_interpreter_comes_first() -> None:
    files: dict[str, bytes | str] = {
        APP: Program(needed=(b"libc.so.6",), interpreter=b"/lib64/ld.so").image(),
        "lib/libc.so.6": LIB,
        "lib64/ld.so": "../lib/ld.so",
        "lib/ld.so": LIB,
    }
    assert loaded(files) == ["lib/ld.so", "lib/libc.so.6"]


def test_a_library_of_another_machine_is_passed_over() -> None:
    files: dict[str, bytes | str] = {
        APP: program(b"liba.so"),
        "lib64/liba.so": Program(machine=AARCH64).image(),
        "lib/liba.so": b"INPUT(liba.so.1)",
        "usr/lib/liba.so": LIB,
    }
    assert loaded(files) == ["usr/lib/liba.so"]


@pytest.mark.parametrize(
    ("machine", "directory"), [(62, "x86_64-linux-gnu"), (AARCH64, "aarch64-linux-gnu")]
)
def test_multiarch_directories_belong_to_a_machine(machine: int, directory: str) -> None:
    files: dict[str, bytes | str] = {
        APP: Program(needed=(b"liba.so",), machine=machine).image(),
        f"usr/lib/{directory}/liba.so": Program(machine=machine).image(),
    }
    assert loaded(files) == [f"usr/lib/{directory}/liba.so"]


def test_missing_libraries_are_left_out() -> None:
    assert loaded({APP: program(b"liba.so", b"/abs/libb.so", b"")}) == []


def test_the_number_of_objects_is_limited() -> None:
    small = Program(code=1, constants=1, unwinding=1)
    files: dict[str, bytes | str] = {APP: program(b"lib0.so")}
    for number in range(MAX_OBJECTS + 9):
        needed = (f"lib{number + 1}.so".encode(),)
        files[f"lib/lib{number}.so"] = Program(
            needed, code=small.code, constants=1, unwinding=1
        ).image()
    assert len(loaded(files)) == MAX_OBJECTS - 1


def test_the_number_of_places_is_limited() -> None:
    """Libraries ask for as many that do not exist, in as many directories, as they may."""
    runpath = b":".join(b"/d%d" % number for number in range(64))
    users = [b"lib%d.so" % number for number in range(9)]
    absent = [[b"no%d.%s" % (number, user) for number in range(256)] for user in users]
    files: dict[str, bytes | str] = {APP: program(*users)}
    for user, names in zip(users, absent, strict=True):
        files[f"lib/{user.decode()}"] = program(*names, runpath=runpath)
    root, read = tree_of(files)
    looks = 0

    class Counted(TreePaths):
        def file(self, path: bytes, directory: bytes = b"") -> Found | None:
            nonlocal looks
            looks += 1
            return super().file(path, directory)

    paths = Counted(root)
    libraries = Libraries(paths, read)
    app = TreePaths(root).file(APP.encode())
    assert app
    opened = libraries.open(app)
    assert opened
    assert len(list(libraries.objects([opened]))) == 1 + len(users)
    assert looks <= MAX_PLACES + 1  # and ld.so.cache


def test_the_cache_has_no_long_paths() -> None:
    found = read_cache(cache((b"liba.so", b"/" + b"x" * 100_000)))
    assert [len(path) for path in found[b"liba.so"]] == [512]


def test_the_cache_may_follow_one_in_the_old_format_and_has_variants() -> None:
    old = b"ld.so-1.7.0\0" + bytes(20)
    new = cache((b"liba.so", b"/x/liba.so"), (b"liba.so", b"/y/liba.so"))
    assert read_cache(new) == {b"liba.so": [b"/x/liba.so", b"/y/liba.so"]}
    assert read_cache(cache((b"liba.so", b"/v3/liba.so"), variant=1 << 62)) == {}
    assert read_cache(old) == {}


@given(st.binary(max_size=200), st.integers(0, 400))
def test_any_cache_is_read(data: bytes, cut: int) -> None:
    whole = cache((b"liba.so", b"/x/liba.so"), (b"libb.so", b"/x/libb.so"))
    read_cache(whole[:cut] + data)
    read_cache(data)


@pytest.mark.skipif(not shutil.which("ldconfig"), reason="glibc's ldconfig is not installed")
def test_ldconfig_agrees() -> None:
    listed = subprocess.run(["ldconfig", "-p"], capture_output=True, text=True, check=True).stdout
    plain = [line for line in listed.splitlines()[1:] if " => " in line and "hwcap" not in line]
    expected = {line.rpartition(" => ")[2].encode() for line in plain}
    found = read_cache(Path("/etc/ld.so.cache").read_bytes())
    assert {path for paths in found.values() for path in paths} == expected


def test_a_file_is_read_once_whatever_names_lead_to_it() -> None:
    """Of another machine, it is looked at for each library and in each directory."""
    names = [b"lib%d.so" % number for number in range(40)]
    foreign = Program(machine=AARCH64).image()
    root, read = tree_of({APP: program(*names), "d/lib0.so": foreign})
    directory = dict(walk(root))[b"d"]
    assert directory.children is not None
    for name in names:
        directory.children[name] = directory.children[b"lib0.so"]
    asked = list[bytes]()

    def counted(path: bytes, offset: int, length: int) -> bytes:
        asked.append(path)
        return read(path, offset, length)

    paths = TreePaths(root)
    libraries = Libraries(paths, counted, b"/d:/d:/d")
    file = paths.file(APP.encode())
    assert file
    found = libraries.open(file)
    assert found
    assert [one.file.path for one in libraries.objects([found])] == [APP.encode()]
    assert len({path for path in asked if path.startswith(b"d/")}) == 1


def test_so_many_files_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("firstread.starts.libraries.MAX_FILES", 3)
    names = [b"lib%d.so" % number for number in range(10)]
    files = {f"usr/lib/{name.decode()}": LIB for name in names}
    assert len(loaded({APP: program(*names), **files})) == 2
