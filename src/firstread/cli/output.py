# SPDX-License-Identifier: Apache-2.0
"""The output of a verb: one JSON object, or lines for people.

Invariant: stdout gets one of the two and nothing else. A reader that has gone (``| head``) is not
an error, a full disk is.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import click

from firstread.errors import UsageError, from_os_error
from firstread.printable import printable
from firstread.wholefile import whole_file


def show(document: object) -> None:
    """Print a document as one line of JSON (docs/json.md).

    Raises:
        NodeError: stdout cannot be written.
    """
    from firstread.documents import encode

    _write(f"{encode(document)}\n")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return a table as lines: the head, then a line for each row, in columns.

    Each cell is made printable, or one with a line end would shift the others.
    """
    shown = [head, *([printable(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    return [
        "   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in shown
    ]


def report(lines: Iterable[str]) -> None:
    """Print `lines`, each made printable; print nothing for none.

    Raises:
        NodeError: stdout cannot be written.
    """
    if text := "".join(f"{printable(line)}\n" for line in lines):
        _write(text)


def complain(lines: Iterable[str]) -> None:
    """Print `lines` to stderr, each made printable; ignore a failure."""
    with contextlib.suppress(OSError):
        click.echo("\n".join(map(printable, lines)), err=True)


def _write(text: str) -> None:
    with writing():
        click.echo(text, nl=False)


def check_output(path: Path) -> None:
    """Check that a file can be made, before anything is done for it.

    Raises:
        UsageError: there is no such directory, or it cannot be written.
    """
    is_odd = path.exists() and not path.is_file()  # such as a pipe, which stays
    place = path if is_odd else path.absolute().parent
    if path.is_dir() or not (is_odd or place.is_dir()) or not os.access(place, os.W_OK):
        raise UsageError(f"{path} cannot be written", hint="choose a file in a writable directory")


def write_whole(path: Path, text: str) -> None:
    """Write `text` to a file, or to the pipe or terminal that is there.

    Raises:
        NodeError: it cannot be written; nothing is left then.
    """
    is_file = path.is_file() or not path.exists()
    try:
        with whole_file(Path(os.path.realpath(path)) if is_file else path) as out:  # a link stays
            out.write(text.encode(errors="backslashreplace"))
    except OSError as exc:
        exc.filename = str(path)  # not the one that nobody asked for
        raise from_os_error(exc, "cannot write") from exc


@contextlib.contextmanager
def writing() -> Iterator[None]:
    """Write to stdout in the block; end the block if the reader has gone.

    Raises:
        NodeError: stdout cannot be written.
    """
    try:
        yield
    except OSError as exc:
        # Python flushes the rest at exit, and would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(exc, BrokenPipeError):
            raise from_os_error(exc, "cannot write the output") from exc
