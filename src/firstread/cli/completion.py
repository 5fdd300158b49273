# SPDX-License-Identifier: Apache-2.0
"""``firstread completion``: what a shell needs to complete command lines of firstread."""

from __future__ import annotations

import click

from firstread.cli.output import report

SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print the script that completes verbs, options and their values in a shell.

    The Debian package installs it. Elsewhere, add 'eval "$(firstread completion bash)"' to
    ~/.bashrc, the same with zsh to ~/.zshrc, or 'firstread completion fish | source' to fish's
    configuration.
    """
    from click.shell_completion import ShellComplete, get_completion_class

    kind = get_completion_class(shell) or ShellComplete  # which knows all of `SHELLS`
    script = kind(ctx.find_root().command, {}, "firstread", "_FIRSTREAD_COMPLETE")
    # Not bash's own method: it starts a bash to warn of versions before 4.4.
    report(ShellComplete.source(script).splitlines())
