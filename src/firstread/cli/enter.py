# SPDX-License-Identifier: Apache-2.0
"""``firstread enter``: a command in an ordinary user's namespaces."""

from __future__ import annotations

import os
from pathlib import Path

import click

from firstread.cli.options import node_options


@click.command(context_settings={"allow_interspersed_args": False})
@node_options
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="[CMD...]")
def command(root: Path, run_dir: Path, command: tuple[str, ...]) -> None:
    """Run CMD, or a shell, where this user's daemon mounts: as root of its user namespace.

    An ordinary user's mounts are seen by the programs that run there, and by no others. Root's are
    seen everywhere; then CMD runs as it is. The exit code is the command's, 126 if it cannot be
    invoked, 127 if it is not found.
    """
    from firstread.control.usernamespace import enter
    from firstread.run.runtime import CommandError

    enter(root, run_dir)
    words = command or (os.environ.get("SHELL") or "/bin/sh",)
    try:
        os.execvp(words[0], words)
    except FileNotFoundError as exc:
        raise CommandError(f"{words[0]}: not found", exit_code=127) from exc
    except OSError as exc:
        raise CommandError(f"cannot run {words[0]}: {exc.strerror}") from exc
