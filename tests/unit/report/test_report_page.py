# SPDX-License-Identifier: Apache-2.0
"""The page: its sections, its bounds, and names that want to be more than text."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from msgspec import structs

from firstread.report.page import page
from firstread.report.shownstart import Start, of_record, of_trace
from firstread.testing.startrecords import start_record
from firstread.traces.tracefile import Trace, TracedRead, TraceHeader
from firstread.units import MiB

HOSTILE = '/x/<script>alert(1)</script>"onload="x\'&amp;\u202e\n{}<img src=http://192.0.2.1/>'
VOID = {"meta", "link"}


class Reader(HTMLParser):
    """Checks that every element is closed, and keeps what is in the page."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)


def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert reader.open == []
    return reader


def trace_start(count: int = 3) -> Start:
    reads = [TracedRead(n * 1000, n * 4096, 4096, b"usr/bin/app") for n in range(count)]
    return of_trace(Trace(TraceHeader(version=1, command=["app"], ready_us=2500), reads), "app")


def test_one_start() -> None:
    found = read(page([of_record(start_record())]))
    headings = ["Timeline", "Bytes that arrive", "Sectors", "How long reads waited"]
    headings += ["Fetched, but not read", "Directories", "Files"]
    for words in headings:
        assert words in found.text
    assert "first output 1.5 s" in found.text
    assert "ready 2 s" in found.text
    assert "p50 188 ms" in found.text
    assert "a read asked for it: 4 sectors, 16.0 MiB" in found.text
    assert "absent: 4 sectors, 16.0 MiB" in found.text
    assert "in memory: 4.0 MiB" in found.text
    assert "not: 12.0 MiB" in found.text
    assert "/usr/lib/f0" in found.text


def test_a_trace_has_files_and_no_sectors() -> None:
    found = read(page([trace_start()]))
    assert "/usr/bin/app" in found.text
    assert "ready 2.5 ms" in found.text
    assert "Sectors" not in found.text
    assert "How long reads waited" not in found.text


def test_several_starts_are_compared() -> None:
    slow, fast = start_record(), start_record()
    fast.steps[-1].seconds = 1.0
    fast.reads = []
    found = page([of_record(slow, "slow"), of_record(fast, "fast"), trace_start()])
    assert '<td>2 s</td><td class="best">1.5 s</td><td>2.5 ms</td>' not in found
    assert '<td>2 s</td><td>1.5 s</td><td class="best">2.5 ms</td>' in found
    text = read(found).text
    assert "3 starts compared" in text
    assert "1 ready 2 s" in text
    assert "2 ready 1.5 s" in text
    lines = re.findall(r'<polyline points="([^"]*)"', found)
    assert len(lines) == 3
    assert lines[0].split()[-1].startswith("1000.0,")  # the slowest reaches the end
    assert lines[1].split()[-1].startswith("750.0,")


def test_what_nobody_knows_is_said() -> None:
    record = structs.replace(start_record(), steps=[], used=None, lost=3)
    record.reads[-1].at = 50.0
    text = read(page([of_record(record)])).text
    assert "Time since a new fetcher took the mount over" in text
    assert "1 later read left out" in text
    assert "The record was full: 3 rows missing" in text
    assert "Not known: the node sees no reads of present sectors" in text


def test_a_mount_that_nobody_has_read() -> None:
    record = structs.replace(start_record(), reads=[], requests=[], files=[], used=None)
    for sector in record.sectors:
        sector.cause, sector.at, sector.filled = None, None, 0
    text = read(page([of_record(record)])).text
    assert "absent: 8 sectors" in text
    assert "Files" not in text
    assert read(page([Start("x", "start", [], [], [])])).text


def test_names_stay_text() -> None:
    record = structs.replace(
        start_record(name=HOSTILE), image=HOSTILE, digest=HOSTILE, repository=HOSTILE
    )
    record.steps[0].name = record.requests[0].cause = HOSTILE
    record.sectors[0].cause = HOSTILE
    header = TraceHeader(version=1, image=HOSTILE, command=[HOSTILE])
    trace = Trace(header, [TracedRead(1, 0, 4096, HOSTILE.encode())])
    starts = [of_record(record), of_trace(trace, HOSTILE)]
    for shown in (starts, starts[:1], starts[1:]):
        html = page(shown)
        found = read(html)
        assert not found.tags & {"script", "img", "a", "iframe"}
        assert not any(name.startswith("on") or name in ("href", "src") for name in (
            found.attributes - {"href"}
        ))  # fmt: skip
        assert html.count("href=") == 1  # the icon, which is empty
        assert "alert(1)" in found.text
        assert "\u202e" not in html


def test_the_page_forbids_every_request() -> None:
    html = page([of_record(start_record())])
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)
    assert policy
    assert policy[1].startswith("default-src 'none'; ")
    assert not re.search(r"https?:|@import|url\(", html)


@pytest.mark.parametrize("sectors", [2, 1024, 1025, 65_534])
def test_the_page_stays_small(sectors: int) -> None:
    record = start_record(sectors, files=5_000, name="/" + "d/" * 1000 + "f{}")
    html = page([of_record(record)])
    assert len(html) < 1 * MiB
    read(html)


def test_a_time_that_nobody_can_draw() -> None:
    record = start_record()
    for at in (1e-12, 9.99e8):
        record.steps = record.steps[:1]
        record.steps[0].seconds = record.reads[0].at = record.requests[0].seconds = at
        read(page([of_record(record)]))
