# SPDX-License-Identifier: Apache-2.0
"""What a verb prints: one JSON object, or lines for people.

Invariant: stdout gets one of the two and nothing else. A reader that is gone (``| head``) is no
error, a full disk is one.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping

import click

from firstread.errors import from_os_error
from firstread.printable import printable


def show(document: Mapping[str, object]) -> None:
    """Print `document` as one line of JSON (docs/json.md).

    Raises:
        NodeError: stdout cannot be written.
    """
    _write(f"{json.dumps(document)}\n")


def report(lines: Iterable[str]) -> None:
    """Print `lines`, each made printable; without any, nothing.

    Raises:
        NodeError: stdout cannot be written.
    """
    if text := "".join(f"{printable(line)}\n" for line in lines):
        _write(text)


def complain(lines: Iterable[str]) -> None:
    """Print `lines` to stderr, each made printable; nobody is told if that fails."""
    with contextlib.suppress(OSError):
        click.echo("\n".join(map(printable, lines)), err=True)


def _write(text: str) -> None:
    with writing():
        click.echo(text, nl=False)


@contextlib.contextmanager
def writing() -> Iterator[None]:
    """Write to stdout; if its reader is gone, end what is inside.

    Raises:
        NodeError: stdout cannot be written.
    """
    try:
        yield
    except OSError as exc:
        # Python writes what it still holds when it exits, and would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(exc, BrokenPipeError):
            raise from_os_error(exc, "cannot write the output") from exc
