# SPDX-License-Identifier: Apache-2.0
"""Trace files: what is written is read, and nothing else is."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstread.errors import ImageError, LimitError, UnsupportedError
from firstread.traces.tracefile import (
    MAX_LINE,
    MAX_READ_SIZE,
    Trace,
    TracedRead,
    TraceHeader,
    escape,
    header_of,
    read_trace,
    unescape,
    write_trace,
)

HEADER = b'{"firstread_trace":1}\n'

READS = st.lists(
    st.builds(
        TracedRead,
        st.integers(0, 1 << 40),
        st.integers(0, 1 << 40),
        st.integers(1, MAX_READ_SIZE),
        st.binary(max_size=40),
    )
).map(lambda reads: sorted(reads, key=lambda read: read.time_us))


def read(text: bytes) -> Trace:
    return read_trace(io.BytesIO(text))


@given(READS, st.integers(1, 9))
def test_a_trace_survives_its_file(reads: list[TracedRead], starts: int) -> None:
    trace = Trace(TraceHeader(version=1, command=["a", "ü"], ready_us=7, starts=starts), reads)
    out = io.BytesIO()
    write_trace(trace, out)
    assert read(out.getvalue()) == trace


@given(st.binary(max_size=60))
def test_a_path_survives_its_escapes(path: bytes) -> None:
    assert unescape(escape(path)) == path


def test_the_file_is_plain() -> None:
    out = io.BytesIO()
    header = TraceHeader(version=1, image="sha256:ab", read_ahead_kib=16)
    write_trace(Trace(header, [TracedRead(5, 4096, 8192, b"a\\\xff\n")]), out)
    assert out.getvalue() == (
        b'{"firstread_trace":1,"image":"sha256:ab","read_ahead_kib":16}\n'
        b'[5,4096,8192,"/a\\\\\\\\\\\\xff\\n"]\n'
    )


@pytest.mark.parametrize(
    ("text", "error"),
    [
        pytest.param(b"", ImageError, id="empty"),
        pytest.param(b"\x7fELF", ImageError, id="another file"),
        pytest.param(b'{"image":"x"}\n', ImageError, id="no version"),
        pytest.param(b'{"firstread_trace":2}\n', UnsupportedError, id="another version"),
        pytest.param(b'{"firstread_trace":1,"starts":0}\n', ImageError, id="bad header"),
        pytest.param(b'{"firstread_trace":1,"image":"\xff"}\n', ImageError, id="not UTF-8"),
        pytest.param(b'{"firstread_trace":1,"x":' + b"[" * 60_000, ImageError, id="nested"),
        pytest.param(HEADER + b"[1,0,4096]\n", ImageError, id="short line"),
        pytest.param(HEADER + b'[1,0,4096,"a"]\n', ImageError, id="relative path"),
        pytest.param(HEADER + b'[1,0,0,"/a"]\n', ImageError, id="nothing read"),
        pytest.param(HEADER + b'[1,-1,1,"/a"]\n', ImageError, id="before the file"),
        pytest.param(HEADER + b'[1,0,4194305,"/a"]\n', ImageError, id="too long"),
        pytest.param(HEADER + b'[2,0,1,"/a"]\n[1,0,1,"/a"]\n', ImageError, id="back in time"),
        pytest.param(HEADER + b'[1,0,1,"/\xff"]\n', ImageError, id="not UTF-8"),
        pytest.param(HEADER + b'[1,0,1,"/' + b"a" * 70_000 + b'"]\n', ImageError, id="long line"),
    ],
)
def test_a_damaged_trace_is_refused(text: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        read(text)


def test_a_trace_has_a_size_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("firstread.traces.tracefile.MAX_TRACE_SIZE", 40)
    with pytest.raises(LimitError, match="larger than"):
        read(HEADER + b'[1,0,1,"/a"]\n' * 3)


def test_a_trace_has_a_limit_of_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("firstread.traces.tracefile.MAX_READS", 3)
    assert len(read(HEADER + b'[1,0,1,"/a"]\n' * 3).reads) == 3
    with pytest.raises(LimitError, match="more than 3 reads"):
        read(HEADER + b'[1,0,1,"/a"]\n' * 4)


@pytest.mark.parametrize("word", ["x" * 5000, "\x1b" * 4096, "short"])
def test_a_header_fits_a_line_whatever_the_command(word: str) -> None:
    out = io.BytesIO()
    header = header_of("sha256:ab", [word] * 300, ready_us=7)
    write_trace(Trace(header, []), out)
    out.seek(0)
    assert read_trace(out).header == header
    assert (header.ready_us, bool(header.command)) == (7, True)


def test_a_line_has_a_limit() -> None:
    for text, words in (
        (b"x" * MAX_LINE, "this is not a trace"),
        (HEADER + b" " * MAX_LINE, "line"),
    ):
        with pytest.raises(ImageError, match=rf"{words}.* is longer than 64\.0 KiB"):
            read(text)
