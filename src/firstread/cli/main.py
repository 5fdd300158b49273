# SPDX-License-Identifier: Apache-2.0
"""The ``firstread`` command: its verbs, exit codes and error messages.

A verb is a module of this package, imported on use, so that ``--help`` costs nothing. Invariant:
whatever happens, there is one message, in ``--json`` mode one JSON object on stdout, and no
traceback unless FIRSTREAD_DEBUG is set.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import signal
import sys
import traceback
from typing import NoReturn

import click
from click.shell_completion import CompletionItem

from firstread import __version__
from firstread.cli.output import complain, show
from firstread.errors import (
    FirstreadError,
    UsageError,
    from_os_error,
    from_shortage,
    is_disk_full,
)
from firstread.redact import redact

VERBS = {
    "convert": "Turn an OCI image into a block-device image.",
    "sync": "Convert all images of registries and clusters that are not converted yet.",
    "convert-layer": "Pack one layer of a conversion, for engines that run commands.",
    "optimize": "Copy what a start reads into hot sectors of a converted image.",
    "inspect": "Show the parts of a converted image.",
    "verify": "Read a converted image back and check every byte.",
    "extract": "Unpack a converted image into a directory.",
    "export": "Write a converted image into one file or a tar archive, or serve it over NBD.",
    "run": "Run a container of a converted image; it starts before its data is here.",
    "exec": "Run a command in a running container.",
    "ps": "List containers.",
    "logs": "Show the output of a detached container.",
    "stop": "Stop a container.",
    "rm": "Remove a container.",
    "mount": "Mount a converted image; reads fetch its data.",
    "enter": "Run a command where an ordinary user's mounts are seen.",
    "login": "Give the daemon a password for a registry, or replace it.",
    "umount": "Unmount an image.",
    "trace": "Note what a start reads of its image, for hot sectors.",
    "fetch": "Fetch all of a mounted image, so that it no longer needs its registry.",
    "cache": "List, prune and verify the images and sectors on this node.",
    "status": "Show mounts, what they have fetched, and the daemon's health.",
    "report": "Make a page about starts: what they waited for, fetched and read.",
    "events": "Show reads and fetches as they happen.",
    "daemon": "Serve mounts, in the foreground.",
    "snapshotter": "Serve images to containerd, in the foreground.",
    "pull": "Pull an image into containerd without its data.",
    "install": "Enter the snapshotter into containerd's configuration.",
    "uninstall": "Remove the snapshotter from containerd's configuration.",
    "tune": "Simulate starts of an image with other settings, from its traces.",
    "doctor": "Check that this host can serve lazy mounts, and say what to do if not.",
    "completion": "Print the completion script of a shell.",
    "version": "Show the versions of command, daemon and kernel.",
}


_CONTAINERS = {"run", "exec", "trace"}
_OTHER_FORMS = {"merge", "--from"}  # of `trace`


def _is_containers(arguments: list[str]) -> bool:
    """Return whether the last arguments and the exit code are those of a process in a container."""
    form = {word.partition("=")[0] for word in arguments[1:2]}
    return bool({*arguments[:1]} & _CONTAINERS) and not form & _OTHER_FORMS


class InterruptError(FirstreadError):
    """A signal, such as that of Ctrl-C, ended the command.

    Args:
        code: 128 plus the number of the signal, as in a shell.
    """

    def __init__(self, code: int = 128 + signal.SIGINT) -> None:
        number = signal.Signals(code - 128)
        ended = "interrupted" if number is signal.SIGINT else f"ended by {number.name}"
        super().__init__(ended)
        self.exit_code = code


class _Verbs(click.Group):
    """A group that imports its commands on use; `VERBS` has their help."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        module = importlib.import_module(f"firstread.cli.{cmd_name.replace('-', '')}")
        _hear_interrupts()
        command: click.Command = module.command
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Offer verbs with the help in `VERBS`, without importing a module."""
        verbs = [
            CompletionItem(verb, help=VERBS[verb]) for verb in VERBS if verb.startswith(incomplete)
        ]
        return verbs + click.Command.shell_complete(self, ctx, incomplete)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="firstread")
def cli() -> None:
    """Containers that start before their image is pulled."""


def main() -> NoReturn:
    """Run the command line and exit with its code (firstread.errors lists them)."""
    _open_streams()
    try:
        code = run(sys.argv[1:])
        with contextlib.suppress(OSError):  # the write itself has reported it
            sys.stdout.flush()
    except KeyboardInterrupt:  # once more, while the first one was reported
        code = InterruptError().exit_code
    # Not `sys.exit`: a thread that still waits for a registry leaves nothing behind, and taking the
    # interpreter down takes as long as some commands.
    os._exit(code)


def _hear_interrupts() -> None:
    """Let Ctrl-C raise KeyboardInterrupt, where it has ended the process: `firstread.__main__`."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _open_streams() -> None:
    """Open the standard streams that the caller has closed, as /dev/null.

    Otherwise a file, a socket or a pipe with such a number would pass for the stream.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) < 3:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115 - it stays open


def run(arguments: list[str]) -> int:
    """Run the command line `arguments`; return the exit code."""
    try:
        code = cli.main(arguments, prog_name="firstread", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except FirstreadError as exc:
        return _fail(exc, arguments)
    except click.exceptions.NoArgsIsHelpError as exc:
        complain(exc.format_message().splitlines())
        return UsageError.exit_code
    except click.ClickException as exc:
        return _fail(_usage_error(exc), arguments)
    except (KeyboardInterrupt, click.Abort):
        return _fail(InterruptError(), arguments)
    except SystemExit as exc:
        # From a signal, see `unwinding_on_signals`; or from click, when nobody reads its help.
        code = int(exc.code or 0)
        return _fail(InterruptError(code), arguments) if code > 128 else code
    except Exception as exc:  # noqa: BLE001 - the last line of defence
        return _fail(_unexpected(exc), arguments)


def _usage_error(exc: click.ClickException) -> UsageError:
    context = getattr(exc, "ctx", None)
    hint = f"see '{context.command_path} --help'" if context else None
    # click puts choices on lines of their own.
    message = " ".join(exc.format_message().split())
    return UsageError(message.rstrip("."), hint=hint)


def _unexpected(exc: Exception) -> FirstreadError:
    if isinstance(exc, PermissionError):
        return from_os_error(exc, "this user may not use")
    if isinstance(exc, OSError) and exc.errno == errno.ENAMETOOLONG:
        return from_os_error(exc, "cannot use")
    if is_disk_full(exc) and isinstance(exc, OSError) and exc.filename is None:
        return from_os_error(exc, "cannot write the output")  # click prints help by itself
    if (shortage := from_shortage(exc)) is not None:
        return shortage
    if os.environ.get("FIRSTREAD_DEBUG"):
        click.echo(redact("".join(traceback.format_exception(exc))), err=True, nl=False)
    return FirstreadError(
        redact(f"internal error: {type(exc).__name__}: {exc}"),
        hint="this is a defect of firstread; FIRSTREAD_DEBUG=1 shows where it happened",
    )


def _fail(exc: FirstreadError, arguments: list[str]) -> int:
    if "--json" in arguments and not _is_containers(arguments):  # else it may be the container's
        with contextlib.suppress(FirstreadError):  # stdout itself has failed; the exit code says so
            show(exc.to_dict())
    else:
        more = [*exc.details, *([exc.hint] if exc.hint else [])]
        complain([f"firstread: {exc}", *(f"  {line}" for line in more)])
    return _exit_code(exc, arguments)


def _exit_code(exc: FirstreadError, arguments: list[str]) -> int:
    if not _is_containers(arguments) or isinstance(exc, InterruptError):
        return exc.exit_code
    from firstread.run.runtime import run_exit_code

    return run_exit_code(exc)
