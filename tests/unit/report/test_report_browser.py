# SPDX-License-Identifier: Apache-2.0
"""The page in a browser: it draws without complaints and asks for nothing else."""

from __future__ import annotations

import functools
import http.server
import shutil
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from firstread.report.page import page
from firstread.report.shownstart import of_record
from firstread.testing.patience import PATIENCE_S
from firstread.testing.serving import serving
from firstread.testing.startrecords import start_record

CHROMIUM = shutil.which("chromium")
LIGHT, DARK = (255, 255, 255), (0x14, 0x17, 0x1B)

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


class Site:
    """A web server for one directory, and the paths that it was asked for."""

    def __init__(self, directory: Path) -> None:
        self.asked: list[str] = []
        site = self

        class Handler(http.server.SimpleHTTPRequestHandler):
            def do_GET(self) -> None:
                site.asked.append(self.path)
                super().do_GET()

            def log_message(self, *_: object) -> None:
                pass

        handler = functools.partial(Handler, directory=str(directory))
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    (tmp_path / "site").mkdir()
    found = Site(tmp_path / "site")
    with serving(found.server):
        yield found


def complaints(url: str, profile: Path, *options: str) -> list[str]:
    """Open a page; return what its console says."""
    assert CHROMIUM
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    command += [f"--user-data-dir={profile}", "--enable-logging=stderr", *options, url]
    ran = subprocess.run(
        command, capture_output=True, text=True, timeout=2 * PATIENCE_S, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return [line for line in ran.stderr.splitlines() if "CONSOLE" in line]


def first_pixel(picture: Path) -> tuple[int, ...]:
    """Return the colour at the top left of a PNG: no filter of its first line changes it."""
    data, at, lines = picture.read_bytes(), 8, b""
    while at < len(data):
        size = int.from_bytes(data[at : at + 4])
        if data[at + 4 : at + 8] == b"IDAT":
            lines += data[at + 8 : at + 8 + size]
        at += 12 + size
    return tuple(zlib.decompressobj().decompress(lines, 4)[1:])


@pytest.mark.parametrize(("scheme", "paper"), [(1, LIGHT), (0, DARK)], ids=["light", "dark"])
def test_a_page_draws_in_both_schemes(
    site: Site, tmp_path: Path, scheme: int, paper: tuple[int, ...]
) -> None:
    name = '/x/<img src="/stolen"><script>fetch("/stolen")</script>'
    starts = [of_record(start_record(name=name), name), of_record(start_record())]
    (tmp_path / "site/report.html").write_text(page(starts))
    picture = tmp_path / "page.png"
    options = f"--blink-settings=preferredColorScheme={scheme}", f"--screenshot={picture}"
    said = complaints(f"{site.url}/report.html", tmp_path / "profile", *options)
    assert said == []
    assert site.asked == ["/report.html"]
    assert first_pixel(picture) == paper


def test_a_page_with_a_foreign_picture_is_noticed(site: Site, tmp_path: Path) -> None:
    html = page([of_record(start_record())])
    (tmp_path / "site/bad.html").write_text(html.replace("<footer>", '<img src="/stolen"><footer>'))
    said = complaints(f"{site.url}/bad.html", tmp_path / "profile", "--dump-dom")
    assert "Content Security Policy" in " ".join(said)
    assert site.asked == ["/bad.html"]  # the page's own policy forbids the rest
