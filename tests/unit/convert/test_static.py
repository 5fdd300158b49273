# SPDX-License-Identifier: Apache-2.0
"""A conversion without a trace makes hot sectors of what the image's command reads first."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from firstread.convert.conversion import ConvertOptions, convert
from firstread.convert.outcome import Conversion
from firstread.oci.reference import Reference, parse_reference
from firstread.oci.resolve import resolve
from firstread.registry.open import open_source
from firstread.sectors.hotnote import NO_TRACE
from firstread.sectors.image import HOT
from firstread.testing.command import firstread
from firstread.testing.images import File, Image, Layer, Symlink, write_layout
from firstread.testing.packed import SMALL
from firstread.testing.programs import Program
from firstread.testing.starts import trace_of
from firstread.traces.tracefile import Trace

PROGRAM = Program(needed=(b"libc.so.6",)).image()
IMAGE = Image(
    [
        Layer([File("rest", random.Random(1).randbytes(2_000_000))]),
        Layer([File("lib/libc.so.6", Program().image()), Symlink("bin/server", "real")]),
        Layer([File("bin/real", PROGRAM)]),
    ],
    {"Cmd": ["server"]},
)


def place(directory: Path, name: str) -> Reference:
    return parse_reference(f"oci:{directory}/{name}:latest")


def converted(
    directory: Path, name: str = "out", *, static: bool = True, traces: Sequence[Trace] = ()
) -> tuple[Conversion, str | None]:
    """Return a conversion, and what its manifest says of hot sectors."""
    write_layout(IMAGE, directory / "in")
    options = ConvertOptions(parameters=SMALL, static=static, traces=traces)
    done = convert(place(directory, "in"), place(directory, name), options)
    with open_source(place(directory, name)) as repository:
        last = resolve(repository).manifest.layers[-1]
    return done, (last.annotations or {}).get(HOT)


def test_programs_and_libraries_of_the_command_become_hot(tmp_path: Path) -> None:
    done, note = converted(tmp_path)
    assert note
    assert NO_TRACE in note
    assert done.hot
    assert (done.hot.files, done.hot.unfit_reads) == (2, 0)
    assert done.hot.size < len(PROGRAM) * 2
    again, _ = converted(tmp_path)
    assert (again.digest, again.unchanged) == (done.digest, True)


def test_a_trace_takes_the_place_of_the_start_set(tmp_path: Path) -> None:
    done, note = converted(tmp_path, traces=[trace_of(("rest", 0, 1))])
    assert note
    assert NO_TRACE not in note
    assert done.hot
    assert done.hot.files == 1


def test_an_image_can_be_left_without_hot_sectors(tmp_path: Path) -> None:
    done, note = converted(tmp_path, static=False)
    assert note is None
    assert done.hot is None


def test_the_option_and_its_contradiction(tmp_path: Path) -> None:
    write_layout(IMAGE, tmp_path / "in")
    trace = tmp_path / "trace.jsonl"
    trace.write_text('{"firstread_trace":1}\n')
    arguments = ["convert", "--no-cache", f"oci:{tmp_path}/in:latest", f"oci:{tmp_path}/out:latest"]
    plain = firstread(*arguments, "--no-hot", "--json")
    assert (plain.code, plain.json["hot"]) == (0, None)
    wrong = firstread(*arguments, "--no-hot", "--trace", trace)
    assert (wrong.code, wrong.stdout) == (2, "")
    assert "leave out one of --no-hot and --trace" in wrong.stderr
    full = firstread(*arguments, "--json")
    assert full.json["hot"]["files"] == 2


@pytest.mark.parametrize("command", [[], ["missing"]])
def test_an_image_without_a_known_command_is_converted_as_before(
    tmp_path: Path, command: list[str]
) -> None:
    write_layout(Image(IMAGE.layers, {"Cmd": command}), tmp_path / "in")
    options = ConvertOptions(parameters=SMALL)
    assert convert(place(tmp_path, "in"), place(tmp_path, "out"), options).hot is None
