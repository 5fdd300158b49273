# SPDX-License-Identifier: Apache-2.0
"""Progress of a verb: a line for each layer on a terminal, else one now and then."""

from __future__ import annotations

import os
import pty
import queue
import re
import subprocess
import threading

import pytest

from firstread.cli.progressdisplay import LayerProgress, PeriodicLines
from firstread.testing.command import program
from firstread.testing.features import content
from firstread.testing.images import File, Image, Layer, digest_of, write_layout
from firstread.testing.patience import PATIENCE_S
from firstread.units import MiB

IMAGE = Image([Layer([File(name, content(name, 2_000_000))]) for name in ("a", "b")])
CONVERT = ("convert", "oci:in:latest", "oci:out:latest", "--no-cache")


def test_a_terminal_shows_a_line_for_each_layer() -> None:
    write_layout(IMAGE, "in")
    shown, code = on_terminal(*CONVERT)
    assert code == 0
    for layer in IMAGE.layers:
        name = digest_of(layer.blob).removeprefix("sha256:")[:12]
        last = [line for line in shown.splitlines() if line.startswith(name)][-1]
        assert re.fullmatch(name + r" \S+ 1\.9 MiB of 1\.9 MiB  packed", last.rstrip()), last


def test_known_layers_say_so() -> None:
    write_layout(IMAGE, "in")
    for _ in range(2):
        shown, code = on_terminal("convert", "oci:in:latest", "oci:out:latest")
        assert code == 0
    assert shown.count("1.9 MiB of 1.9 MiB  packed before") >= len(IMAGE.layers)


def test_without_a_terminal_or_with_json_nothing_is_shown() -> None:
    write_layout(IMAGE, "in")
    ran = subprocess.run(program(*CONVERT), capture_output=True, check=True)
    assert ran.stderr == b""
    assert on_terminal(*CONVERT, "--json") == ("", 0)


def test_an_error_stands_below_the_lines() -> None:
    write_layout(Image([Layer(b"no tar" * 1000)]), "in")
    shown, code = on_terminal(*CONVERT)
    assert code == 3
    *_, message, hint = shown.splitlines()
    assert message.startswith("firstread: oci:in:latest: layer sha256:")
    assert hint.startswith("  the image is damaged")


@pytest.mark.parametrize("columns", [20, 40, 60])
def test_a_narrow_terminal_has_one_line_for_a_layer(columns: int) -> None:
    """It is cut, never wrapped, because moving the cursor up counts lines."""
    write_layout(IMAGE, "in")
    shown, code = on_terminal(*CONVERT, columns=columns)
    assert code == 0
    lines = [line.rstrip() for line in shown.splitlines() if line.strip()]
    assert all(len(line) <= columns for line in lines), lines
    names = {digest_of(layer.blob).removeprefix("sha256:")[:8] for layer in IMAGE.layers}
    assert {line[:8] for line in lines} == names
    if columns == 40:
        assert re.fullmatch(r"[0-9a-f]{8} +100 %  packed", lines[-1])


Said = queue.Queue[list[str]]


def test_without_a_terminal_a_line_comes_now_and_then() -> None:
    said = Said()
    with LayerProgress(interval_s=0.01, say=said.put) as progress:
        (line,) = said.get(timeout=PATIENCE_S)
        assert re.fullmatch(r"after \d+ s: looking at the image", line)
        progress.layers([("sha256:a", 3 * MiB), ("sha256:b", 1 * MiB)])
        progress.advance("sha256:a", 2 * MiB)
        progress.done("sha256:b", "known")
        expected = r"after \d+ s: 1 of 2 layers packed, 3\.0 MiB of 4\.0 MiB read"
        while not re.fullmatch(expected, said.get(timeout=PATIENCE_S)[0]):
            pass


def test_quiet_prints_nothing() -> None:
    said = Said()
    with LayerProgress(quiet=True, interval_s=0.0, say=said.put) as progress:
        progress.layers([("sha256:a", 1)])
        progress.done("sha256:a", "packed")
    assert said.empty()


def test_lines_end_with_the_work() -> None:
    said, asked = Said(), []

    def line() -> str:
        asked.append("")
        return f"line {len(asked)}"

    with PeriodicLines(line, interval_s=0.001, say=said.put):
        assert [said.get(timeout=PATIENCE_S) for _ in range(2)] == [["line 1"], ["line 2"]]
    assert not [thread for thread in threading.enumerate() if "PeriodicLines" in thread.name]


def on_terminal(*arguments: str, columns: int = 200) -> tuple[str, int]:
    """Run the command with a terminal for stderr; return the output there, and the code."""
    leader, follower = pty.openpty()
    with subprocess.Popen(
        program(*arguments),
        stdout=subprocess.DEVNULL,
        stderr=follower,
        env=os.environ | {"TERM": "xterm", "COLUMNS": str(columns), "NO_COLOR": "1"},
    ) as process:
        os.close(follower)
        data = b""
        try:
            while piece := os.read(leader, 65536):
                data += piece
        except OSError:  # Linux says EIO when the last writer is gone
            pass
        os.close(leader)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", data.decode())
    return text.replace("\r\n", "\n").replace("\r", "\n"), process.returncode
