# SPDX-License-Identifier: Apache-2.0
"""The output of a verb: one JSON object, or lines for people.

Invariant: stdout gets one of the two and nothing else. A reader that has gone (``| head``) is not
an error, a full disk is.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator

import click

from firstread.errors import from_os_error
from firstread.printable import printable


def show(document: object) -> None:
    """Print a document as one line of JSON (docs/json.md).

    Raises:
        NodeError: stdout cannot be written.
    """
    from firstread.documents import encode

    _write(f"{encode(document)}\n")


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
