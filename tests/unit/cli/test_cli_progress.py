# SPDX-License-Identifier: Apache-2.0
"""What is shown while a conversion runs: a line for each layer, on a terminal only."""

from __future__ import annotations

import os
import pty
import re
import subprocess

from firstread.testing.command import program
from firstread.testing.features import content
from firstread.testing.images import File, Image, Layer, digest_of, write_layout

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


def test_layers_that_are_known_say_so() -> None:
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


def on_terminal(*arguments: str) -> tuple[str, int]:
    """Run the command with a terminal for stderr; return what it shows there, and the code."""
    leader, follower = pty.openpty()
    with subprocess.Popen(
        program(*arguments),
        stdout=subprocess.DEVNULL,
        stderr=follower,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "200", "NO_COLOR": "1"},
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
