# SPDX-License-Identifier: Apache-2.0
"""The manual pages, made of the commands themselves, and one of the configuration.

Owns the order of a page and the language of man(7); every word about a command or an option comes
from its help, settings come from the docstring of `firstread.config`, and exit codes from
`firstread.errors`. Needs no clock: the caller says the date.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final

import click

from firstread import __version__, config, errors
from firstread.cli.main import VERBS, cli

_FILES: Final = {
    "/etc/firstread/config.toml": "settings of the node, see \\fBfirstread.toml\\fR(5)",
    "/var/lib/firstread": "sectors, metadata and records of mounts (--root)",
    "/run/firstread": "sockets and mounts of the daemon (--run-dir)",
}


def pages(epoch: int) -> dict[str, str]:
    """Return the pages by file name, such as ``firstread-cache-ls.1``.

    Args:
        epoch: date of the pages, in seconds since 1970.
    """
    made = {_name(ctx) + ".1": _command(ctx, epoch) for ctx in contexts()}
    return made | {"firstread.toml.5": _configuration(epoch)}


def contexts() -> Iterator[click.Context]:
    """Yield a context for each command, each group before its commands."""
    yield from _below(click.Context(cli, info_name="firstread", **cli.context_settings))


def settings() -> str:
    """Return the example in the docstring of `firstread.config`: every setting and its default."""
    _, _, example = inspect.cleandoc(config.__doc__ or "").partition("with the defaults::\n")
    return inspect.cleandoc("\n" + example) + "\n"


def _below(ctx: click.Context) -> Iterator[click.Context]:
    yield ctx
    if isinstance(ctx.command, click.Group):
        for name in ctx.command.list_commands(ctx):
            command = ctx.command.get_command(ctx, name)
            if command is not None and not command.hidden:
                below = click.Context(command, parent=ctx, info_name=name)
                yield from _below(below)


def _command(ctx: click.Context, epoch: int) -> str:
    command = ctx.command
    arguments = " ".join(command.collect_usage_pieces(ctx))
    lines = [
        *_head(_name(ctx), 1, _summary(ctx), epoch),
        ".SH SYNOPSIS",
        f"\\fB{_plain(ctx.command_path)}\\fR {_plain(arguments)}",
        ".SH DESCRIPTION",
        *_prose(command.help or ""),
    ]
    records = [each.get_help_record(ctx) for each in command.get_params(ctx)]
    lines += _section("OPTIONS", {record[0]: record[1] for record in records if record})
    below = [each for each in _below(ctx) if each.parent is ctx]
    lines += _section("COMMANDS", {f"{_name(each)}(1)": _summary(each) for each in below})
    if ctx.parent is None:
        lines += _about()
    return "\n".join([*lines, *_see_also(ctx), ""])


def _configuration(epoch: int) -> str:
    lines = [
        *_head("firstread.toml", 5, "settings of a node", epoch),
        ".SH DESCRIPTION",
        *_prose(
            "/etc/firstread/config.toml, an ordinary user's ~/.config/firstread/config.toml, or"
            " the file that FIRSTREAD_CONFIG or 'firstread daemon --config' names. It is TOML; a"
            " setting that is missing has its default. 'firstread daemon --reload' applies a"
            " change; no read fails.\n\nAll settings, with their defaults:"
        ),
        *_verbatim(settings()),
        ".SH SEE ALSO",
        "\\fBfirstread-daemon\\fR(1)",
    ]
    return "\n".join([*lines, ""])


def _head(name: str, section: int, summary: str, epoch: int) -> list[str]:
    date = datetime.fromtimestamp(epoch, UTC).date().isoformat()
    return [
        ".\\\" Made by tools/release/manpages.py of the command's own help.",
        f'.TH {_plain(name.upper())} {section} {date} "firstread {__version__}" firstread',
        ".SH NAME",
        f"{_plain(name)} \\- {_plain(summary)}",
    ]


def _about() -> list[str]:
    """Return what is true of all commands: their files and exit codes."""
    codes: dict[str, str] = {"0": "done"}
    for kind in _errors(errors.FirstreadError):
        meaning = inspect.cleandoc(kind.__doc__ or "").partition("\n")[0].rstrip(".")
        codes.setdefault(str(kind.exit_code), meaning)
    run = "\\fBfirstread run\\fR exits with the code of its container."
    files = [line for path, use in _FILES.items() for line in (".TP", _plain(path), use)]
    return [*_section("EXIT STATUS", codes), ".PP", run, ".SH FILES", *files]


def _errors(kind: type[errors.FirstreadError]) -> Iterator[type[errors.FirstreadError]]:
    yield kind
    for each in kind.__subclasses__():
        if each.__module__ == errors.__name__:
            yield from _errors(each)


def _section(title: str, entries: dict[str, str]) -> list[str]:
    lines = [f".SH {title}"] if entries else []
    for term, meaning in entries.items():
        lines += [".TP", f"\\fB{_plain(term)}\\fR", _plain(meaning)]
    return lines


def _see_also(ctx: click.Context) -> list[str]:
    named = [f"\\fB{_plain(_name(ctx.parent))}\\fR(1)"] if ctx.parent else []
    named.append("\\fBfirstread.toml\\fR(5)")
    return [".SH SEE ALSO", ", ".join(named), ".PP", "/usr/share/doc/firstread"]


def _prose(text: str) -> Iterator[str]:
    """Yield paragraphs; one that begins with a backspace keeps its lines, as in click."""
    for number, paragraph in enumerate(inspect.cleandoc(text).split("\n\n")):
        if paragraph.startswith("\b\n"):
            yield from _verbatim(paragraph[2:])
        else:
            yield from ([".PP"] if number else [])
            yield _plain(" ".join(paragraph.split()))


def _verbatim(text: str) -> list[str]:
    return [".PP", ".nf", *(_plain(line) for line in text.splitlines()), ".fi"]


def _summary(ctx: click.Context) -> str:
    listed = VERBS.get(ctx.info_name or "") if ctx.parent and not ctx.parent.parent else None
    text = (listed or ctx.command.get_short_help_str(limit=200)).rstrip(".")
    return text[:1].lower() + text[1:]


def _name(ctx: click.Context) -> str:
    return ctx.command_path.replace(" ", "-")


def _plain(text: str) -> str:
    """Return text as troff shows it, character by character (groff_char(7))."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq")
    text = text.replace("^", "\\(ha").replace("~", "\\(ti").replace("`", "\\(ga")
    return re.sub(r"^\.", r"\\&.", text)
