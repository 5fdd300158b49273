# SPDX-License-Identifier: Apache-2.0
r"""A trace: the first reads of a start, by file, in order; and its file.

Owns the document and its bounds. A trace names files, never sectors, so it stays valid when the
image is converted again with other parameters. docs/traces.md is the authority for the format: JSON
Lines, a header, then one array for each read::

    {"firstread_trace":1,"image":"sha256:…","command":["python3"],"read_ahead_kib":16,"ready_us":812}
    [1250,0,4096,"/usr/bin/python3.11"]

Invariant: a `Trace` is valid: its reads lie in order of time, each within a file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Annotated, BinaryIO, NamedTuple

import msgspec

from firstread.errors import ImageError, LimitError, UnsupportedError
from firstread.units import MiB, format_size

VERSION = 1
MAX_TRACE_SIZE = 64 * MiB  # of the file; 4 KiB reads of 3 GB have 40
MAX_READS = 1_000_000
MAX_LINE = 64 * 1024  # bytes; a path of 4,095 bytes has at most 16,380 as escapes
MAX_READ_SIZE = 4 * MiB  # of one line; no kernel reads more at once
MAX_FILE_SIZE = 1 << 62
MAX_MICROSECONDS = 1 << 53
MAX_WORDS = 256  # of a command
MAX_WORD = 4096  # characters of one of them


class TracedRead(NamedTuple):
    """The first read of a range of a file.

    Args:
        time_us: microseconds since the start.
        offset: first byte, a multiple of 4096.
        length: bytes, at most `MAX_READ_SIZE`; the last block of a file counts whole.
        path: of the file within the image, without a leading slash.
    """

    time_us: int
    offset: int
    length: int
    path: bytes


_Word = Annotated[str, msgspec.Meta(max_length=MAX_WORD)]


class TraceHeader(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The first line of a trace file.

    Args:
        version: of the format.
        image: digest of the manifest of the ordinary image; "" if several images were merged.
        command: that ran.
        read_ahead_kib: of the mount while it ran; a read covers what the kernel read ahead.
        ready_us: when the workload was ready, in microseconds since the start; None if unknown.
        starts: how many starts were merged into this trace.
    """

    version: int = msgspec.field(name="firstread_trace")
    image: Annotated[str, msgspec.Meta(max_length=256)] = ""
    command: Annotated[list[_Word], msgspec.Meta(max_length=MAX_WORDS)] = []
    read_ahead_kib: Annotated[int, msgspec.Meta(ge=0, le=1 << 20)] = 0
    ready_us: Annotated[int, msgspec.Meta(ge=0, le=MAX_MICROSECONDS)] | None = None
    starts: Annotated[int, msgspec.Meta(ge=1, le=1 << 30)] = 1


class Trace(NamedTuple):
    """What a start has read.

    Args:
        header: about the start.
        reads: in order of time; no two cover the same block of a file.
    """

    header: TraceHeader
    reads: Sequence[TracedRead]


_Offset = Annotated[int, msgspec.Meta(ge=0, lt=MAX_FILE_SIZE)]
_Length = Annotated[int, msgspec.Meta(gt=0, le=MAX_READ_SIZE)]
_Time = Annotated[int, msgspec.Meta(ge=0, le=MAX_MICROSECONDS)]
_header = msgspec.json.Decoder(TraceHeader)
_read = msgspec.json.Decoder(tuple[_Time, _Offset, _Length, str])
_encoder = msgspec.json.Encoder()
_ESCAPED = re.compile(r"\\(?:\\|x([0-9a-f]{2}))")


def escape(path: bytes) -> str:
    r"""Return a path as text: a backslash as ``\\``, a byte that is not UTF-8 as ``\xNN``."""
    return path.replace(b"\\", b"\\\\").decode(errors="backslashreplace")


def unescape(text: str) -> bytes:
    """Return the path that `escape` gave `text` for."""
    if "\\" not in text:
        return text.encode(errors="surrogatepass")
    out, end = bytearray(), 0
    for match in _ESCAPED.finditer(text):
        out += text[end : match.start()].encode(errors="surrogatepass")
        out += bytes.fromhex(match[1]) if match[1] else b"\\"
        end = match.end()
    return bytes(out + text[end:].encode(errors="surrogatepass"))


def header_of(image: str, command: Iterable[str], **fields: int | None) -> TraceHeader:
    """Return the header of a trace of this version.

    Args:
        image: as `TraceHeader.image`.
        command: that ran; what would make the line too long is left out.
        fields: others of `TraceHeader`.
    """
    words = [word[:MAX_WORD] for word in islice(command, MAX_WORDS)]
    while True:
        header = TraceHeader(version=VERSION, image=image, command=words, **fields)  # type: ignore[arg-type]
        if not words or len(_encoder.encode(header)) < MAX_LINE:
            return header
        words = words[: len(words) // 2]


def write_trace(trace: Trace, out: BinaryIO) -> None:
    """Write a trace file to `out`."""
    out.write(_encoder.encode(trace.header) + b"\n")
    out.writelines(
        _encoder.encode((time_us, offset, length, "/" + escape(path))) + b"\n"
        for time_us, offset, length, path in trace.reads
    )


def read_trace(source: BinaryIO) -> Trace:
    """Return the trace in the file `source`.

    Raises:
        UnsupportedError: its format has another version.
        LimitError: it is larger than a trace can be.
        ImageError: it is no trace, or a damaged one.
    """
    lines = _lines(source)
    try:
        header = _header.decode(next(lines, b""))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise ImageError(f"this is not a trace: {exc}") from exc
    if header.version != VERSION:
        raise UnsupportedError(f"the trace has format version {header.version}, not {VERSION}")
    return Trace(header, list(_reads(lines)))


def _lines(source: BinaryIO) -> Iterator[bytes]:
    left, first = MAX_TRACE_SIZE, True
    while line := source.readline(MAX_LINE):
        left -= len(line)
        if left < 0:
            raise LimitError(f"the trace is larger than {format_size(MAX_TRACE_SIZE)}")
        if len(line) == MAX_LINE:
            what = "this is not a trace: its first line" if first else "a line of the trace"
            raise ImageError(f"{what} is longer than {format_size(MAX_LINE)}")
        first = False
        yield line


def _reads(lines: Iterable[bytes]) -> Iterable[TracedRead]:
    last = 0
    for number, line in enumerate(lines, 2):
        try:
            time_us, offset, length, path = _read.decode(line)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
            raise ImageError(f"line {number} of the trace is damaged: {exc}") from exc
        if time_us < last or not path.startswith("/"):
            raise ImageError(f"line {number} of the trace is out of order or names no file")
        if number > MAX_READS + 1:
            raise LimitError(f"the trace has more than {MAX_READS} reads")
        last = time_us
        yield TracedRead(time_us, offset, length, unescape(path[1:]))
