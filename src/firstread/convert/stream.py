# SPDX-License-Identifier: Apache-2.0
"""From the chunks of a layer blob to an uncompressed stream that can be read exactly.

Owns decompression (`decompress`) and reading by length (`Feed`); knows neither the source of the
chunks nor tar. Invariants: memory is bounded by a few chunks, whatever the compression ratio or the
lengths that the stream states; a stream that ends early, or is damaged, raises `ImageError` and
never just ends.
"""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, cast

from isal import igzip_lib

from firstread.errors import FirstreadError, ImageError, UnsupportedError
from firstread.units import KiB, MiB, format_size

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

CHUNK = 1 * MiB
"""Most bytes of one output chunk of `decompress`."""

WINDOW_LOG_MAX = 27
"""zstd window limit, 128 MiB: the default of ``zstd -d``."""

FIRST_STEP = 4 * KiB
"""Input for a new decoder. The unused rest is copied, so a layer of millions of tiny members must
not be fed by the megabyte; the step doubles while a member continues."""

MAX_GZIP_HEADER = 128 * KiB
"""An extra field can have 64 KiB; RFC 1952 does not limit name and comment."""

LAST_STEP = 256 * KiB
"""Largest input of a decoder; larger steps gain nothing (660 MB/s either way)."""

_DAMAGE = cast("tuple[type[Exception], ...]", (igzip_lib.IsalError, zstd.ZstdError))
_TOO_LARGE = "requires too much memory"  # libzstd's words for a window beyond the limit
_MAGIC_BYTES = 10
_GZIP = re.compile(rb"\x1f\x8b")
_ZSTD = re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18")
_REFUSED = {
    "xz": re.compile(rb"\xfd7zXZ\0"),
    "bzip2": re.compile(rb"BZh[1-9](?:1AY&SY|\x17\x72\x45\x38\x50\x90)"),
    "lz4": re.compile(rb"\x04\x22\x4d\x18"),
    "compress": re.compile(rb"\x1f[\x9d\xa0]"),
}


class _Decoder(Protocol):
    """The common interface of igzip and zstd decoders; each decodes one member or frame."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: memoryview | bytes, max_length: int) -> bytes: ...


@dataclass(frozen=True, slots=True)
class _Form:
    """A compression.

    Args:
        new: makes the decoder of one member or frame.
        header_length: returns the bytes that a new decoder needs at once, given the start of the
            header; more than it was given if the header is incomplete.
        padding: bytes that can follow the last member.
    """

    name: str
    new: Callable[[], _Decoder]
    header_length: Callable[[memoryview], int]
    padding: bytes


def _gzip_decoder() -> _Decoder:
    decoder: _Decoder = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
    return decoder


def _gzip_header_length(view: memoryview) -> int:
    """Return the length of a member header (RFC 1952, 2.3), `view` starting with it.

    isal 1.9 fails on a header with several optional fields that arrives in parts.

    Raises:
        ImageError: the header is longer than `MAX_GZIP_HEADER`.
    """
    end = 10
    flags = view[3] if len(view) > 3 else 0
    if flags & 0x04:  # FEXTRA
        end += 2 + int.from_bytes(view[10:12], "little")
    for flag in (0x08, 0x10):  # FNAME, FCOMMENT
        if flags & flag:
            text, found, _ = bytes(view[end:MAX_GZIP_HEADER]).partition(b"\0")
            end += len(text) + 1
            if not found:
                break
    if flags & 0x02:  # FHCRC
        end += 2
    if end > MAX_GZIP_HEADER:
        raise ImageError(f"a gzip header is longer than {MAX_GZIP_HEADER} bytes")
    return end


def _zstd_decoder() -> _Decoder:
    limit: dict[int, int] = {zstd.DecompressionParameter.window_log_max: WINDOW_LOG_MAX}
    decoder: _Decoder = zstd.ZstdDecompressor(options=limit)
    return decoder


_GZIP_FORM = _Form("gzip", _gzip_decoder, _gzip_header_length, b"\0")
_ZSTD_FORM = _Form("zstd", _zstd_decoder, lambda _: 1, b"")


def decompress(chunks: Iterable[bytes | memoryview], media_type: str) -> Iterator[bytes]:
    """Yield the uncompressed content of a layer blob in chunks of at most `CHUNK` bytes.

    The first bytes decide the compression: media types in the wild are not always right, and
    runtimes go by these bytes as well. gzip can have several members (RFC 1952) and zeros after
    the last, as gzip(1) allows; zstd can have several frames and skippable ones (RFC 8878).

    Args:
        chunks: the blob, cut anywhere.
        media_type: from the manifest; that of an encrypted layer is refused.

    Raises:
        ImageError: the compressed data is damaged, ends early, or is followed by other bytes.
        UnsupportedError: the compression is another one, or the layer is encrypted.
    """
    if media_type.endswith("+encrypted"):
        raise UnsupportedError(f"the layer is encrypted ({media_type})")
    rest = iter(chunks)
    head = b""
    for chunk in rest:
        head += chunk
        if len(head) >= _MAGIC_BYTES:
            break
    whole = itertools.chain((head,), rest)
    if _GZIP.match(head):
        yield from _members(whole, _GZIP_FORM)
    elif _ZSTD.match(head):
        yield from _members(whole, _ZSTD_FORM)
    else:
        for name, magic in _REFUSED.items():
            if magic.match(head):
                raise UnsupportedError(f"the layer is compressed with {name}")
        for chunk in whole:
            for start in range(0, len(chunk), CHUNK):
                yield bytes(chunk[start : start + CHUNK])


def _members(source: Iterable[bytes | memoryview], form: _Form) -> Iterator[bytes]:
    """Yield the content of gzip members or zstd frames that lie back to back."""
    decoder: _Decoder | None = None
    step = 0
    before = 0  # bytes of finished chunks
    view = memoryview(b"")
    chunks = iter(source)
    for chunk in chunks:
        view = memoryview(bytes(view) + chunk if view else chunk)
        start = 0
        while start < len(view):
            if decoder is None:
                if before + start and view[start] in form.padding:
                    _expect_padding(itertools.chain((view[start:],), chunks), form)
                    return
                header = form.header_length(view[start:])
                if header > len(view) - start:
                    break
                decoder, step = form.new(), max(header, FIRST_STEP)
            piece = view[start : start + step]
            try:
                yield from _outputs(decoder, piece)
            except _DAMAGE as exc:
                raise _damaged(form.name, before + start, exc) from exc
            start += len(piece)
            step = min(2 * step, LAST_STEP)
            if decoder.eof:
                start -= len(decoder.unused_data)
                decoder = None
        view = view[start:]
        before += start
    if decoder is not None or view:
        raise ImageError(f"the {form.name} data is cut off at byte {before + len(view)}")


def _damaged(name: str, position: int, exc: Exception) -> ImageError:
    """Return the error for what a decoder says of the data after `position`."""
    if _TOO_LARGE in str(exc):
        return UnsupportedError(
            f"the zstd data needs a window of more than {format_size(1 << WINDOW_LOG_MAX)}",
            hint=f"compress the layer without --long, or with --long={WINDOW_LOG_MAX} at most",
        )
    return ImageError(f"the {name} data is damaged after byte {position}: {exc}")


def _expect_padding(chunks: Iterable[bytes | memoryview], form: _Form) -> None:
    for chunk in chunks:
        if bytes(chunk).strip(form.padding):
            raise ImageError(f"the {form.name} data is followed by something else")


def _outputs(decoder: _Decoder, piece: memoryview | bytes) -> Iterator[bytes]:
    """Yield the output of `decoder` for `piece`, in bounded chunks."""
    while True:
        output = decoder.decompress(piece, CHUNK)
        if output:
            yield output
        if decoder.eof or decoder.needs_input:
            return
        piece = b""


class Feed:
    """Reads a stream of chunks by length.

    Args:
        chunks: the uncompressed stream.
    """

    __slots__ = ("_before", "_chunk", "_chunks", "_start", "failure")

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._chunk = b""
        self._start = 0
        self._before = 0
        self.failure: FirstreadError | None = None  # of `chunks`, not of their reader

    @property
    def position(self) -> int:
        """Bytes read so far."""
        return self._before + self._start

    def at_end(self) -> bool:
        """Return whether the stream is at its end."""
        return self._start == len(self._chunk) and not self._advance()

    def exact(self, length: int) -> bytes:
        """Return the next `length` bytes; meant for small reads.

        Raises:
            ImageError: the stream ends early.
        """
        start = self._start
        data = self._chunk[start : start + length]
        if len(data) == length:
            self._start = start + length
            return data
        return b"".join(self.pieces(length))

    def pieces(self, length: int) -> Iterator[memoryview]:
        """Yield the next `length` bytes as slices of the chunks, without copying.

        Raises:
            ImageError: the stream ends early.
        """
        while length:
            if self._start == len(self._chunk) and not self._advance():
                raise self._cut_off()
            piece = memoryview(self._chunk)[self._start : self._start + length]
            self._start += len(piece)
            length -= len(piece)
            yield piece

    def skip(self, length: int, *, optional: bool = False) -> None:
        """Skip the next `length` bytes; if they are `optional`, as far as there are any.

        Raises:
            ImageError: the stream ends early.
        """
        while length > (left := len(self._chunk) - self._start):
            length -= left
            if not self._advance():
                if optional:
                    return
                raise self._cut_off()
        self._start += length

    def drain(self) -> None:
        """Read to the end, so that whoever digests the chunks has seen everything."""
        while self._advance():
            pass

    def _advance(self) -> bool:
        """Take the next non-empty chunk; return whether there is one."""
        self._before += len(self._chunk)
        self._start = 0
        try:
            for chunk in self._chunks:
                if chunk:
                    self._chunk = chunk
                    return True
        except FirstreadError as exc:
            self.failure = exc
            raise
        self._chunk = b""
        return False

    def _cut_off(self) -> ImageError:
        return ImageError(f"the layer is cut off at byte {self.position}")
