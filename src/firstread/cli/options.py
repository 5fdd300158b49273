# SPDX-License-Identifier: Apache-2.0
"""Options and parameter types of several verbs."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from firstread.cli.configoptions import hosts_option
from firstread.errors import NodeError, UsageError
from firstread.units import MAX_SECONDS, parse_size
from firstread.userdirs import runtime_directory, store_directory

if TYPE_CHECKING:
    from firstread.oci.platform import Platform
    from firstread.oci.reference import Reference
    from firstread.registry.options import AccessOptions

MAX_SECRET_BYTES = 64 * 1024  # identity tokens have some thousands

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")


class ParsedType(click.ParamType[T]):
    """A word that a function parses.

    Args:
        name: in help.
        parse: raises UsageError; imports what it needs, so that `--help` does not.
    """

    def __init__(self, name: str, parse: Callable[[str], T]) -> None:
        self.name, self._parse = name, parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> T:
        return self._parse(value) if isinstance(value, str) else value


def _reference(text: str) -> Reference:
    from firstread.oci.reference import parse_reference

    return parse_reference(text)


def _platform(text: str) -> Platform:
    from firstread.oci.platform import parse_platform

    return parse_platform(text)


class SizeType(click.ParamType[int]):
    """A number of bytes, such as 4MiB."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            return parse_size(value)
        except UsageError as exc:
            self.fail(f"{exc.message}: {exc.hint}" if exc.hint else exc.message, param, ctx)


class SecondsType(click.ParamType[float]):
    """A time to wait, in seconds.

    Args:
        least: the minimum.
    """

    name = "seconds"

    def __init__(self, least: int = 0) -> None:
        self._least = least

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        try:
            seconds = float(value)
        except ValueError:
            seconds = -1.0
        if not self._least <= seconds < MAX_SECONDS:
            self.fail(
                f"{value!r} is not a number of seconds, {self._least} at least and below"
                f" {MAX_SECONDS:,.0f}",
                param,
                ctx,
            )
        return seconds


class PlaceType(click.ParamType[Path]):
    """A directory of ours; its symbolic links must be safe from others, and are resolved.

    Whether it can be read or created shows on use.
    """

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        from firstread.private import check_way

        path = Path(value).absolute()
        resolved = Path(os.path.realpath(path))
        if resolved != path:
            check_way(path, whole=True)  # now: the resolved path no longer shows the links
        return resolved


REFERENCE = ParsedType("reference", _reference)
PLATFORM = ParsedType("platform", _platform)
SIZE = SizeType()

platform_option = click.option(
    "--platform", type=PLATFORM, help="Which image of an index.  [default: this machine's]"
)

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object (docs/json.md)."
)

DEFAULT_HOSTS_DIRS = (Path("/etc/containerd/certs.d"),)
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_ACCESS = (
    click.option(
        "--plain-http",
        is_flag=True,
        help="Speak HTTP to registries; loopback addresses get it without this option.",
    ),
    click.option("--insecure-tls", is_flag=True, help="Accept any certificate of a registry."),
    click.option("--ca-file", type=_FILE, help="Trust these certificates, not the system's."),
    click.option(
        "--authfile", type=_FILE, help="Credentials, in the format of docker's config.json."
    ),
    hosts_option("/etc/containerd/certs.d, or the daemon's setting"),
    click.option(
        "--retries",
        type=click.IntRange(0),
        default=5,
        show_default=True,
        help="Attempts after a failed one.",
    ),
)


def access_options(command: F) -> F:
    """Add the options for access to registries.

    `command` gets them as one argument: ``access``, the `AccessOptions`.
    """

    @functools.wraps(command)
    def with_access(
        *,
        plain_http: bool,
        insecure_tls: bool,
        ca_file: Path | None,
        authfile: Path | None,
        hosts_dirs: tuple[Path, ...],
        retries: int,
        **arguments: Any,
    ) -> Any:
        from firstread.registry.options import AccessOptions

        directory = os.environ.get("FIRSTREAD_CREDENTIALS_DIR")
        access = AccessOptions(
            plain_http=plain_http,
            insecure_tls=insecure_tls,
            ca_file=ca_file,
            auth_file=authfile,
            hosts_dirs=hosts_dirs or DEFAULT_HOSTS_DIRS,
            credentials_dir=Path(directory) if directory else None,
            retries=retries,
        )
        return command(access=access, **arguments)

    result: Any = with_access
    for option in reversed(_ACCESS):
        result = option(result)
    return result  # type: ignore[no-any-return]


pull_option = click.option(
    "--pull",
    type=click.Choice(["missing", "always", "never"]),
    default="missing",
    show_default=True,
    help="When to ask the registry for the image of REF.",
)


def policy_options(command: F) -> F:
    """Add the policies for reads through a mount.

    `command` gets them as one argument: ``policies``, in the daemon's form.
    """

    @functools.wraps(command)
    def with_policies(
        *,
        stall_s: float | None,
        on_corruption: str | None,
        require: str | None,
        prefetch: str | None,
        **arguments: Any,
    ) -> Any:
        given = {
            "stall_s": stall_s,
            "on_corruption": on_corruption,
            "require": require,
            "prefetch": prefetch,
        }
        policies = {name: value for name, value in given.items() if value is not None}
        return command(policies=policies, **arguments)

    result: Any = with_policies
    for option in (
        click.option(
            "--prefetch",
            type=click.Choice(["none", "hot", "all"]),
            help="What is fetched though nobody reads it: nothing, what a start reads, or all once"
            " it is quiet. [as the image or the node says: hot]",
        ),
        click.option(
            "--require",
            type=click.Choice(["lazy"]),
            help="Fail rather than fetch all data before the mount.",
        ),
        click.option(
            "--on-corruption",
            type=click.Choice(["refetch", "quarantine", "fail"]),
            help="Reaction to wrong bytes: fetch them again, quarantine them as well, or let the"
            " read fail. [refetch]",
        ),
        click.option(
            "--stall",
            "stall_s",
            type=SecondsType(),
            help="Seconds that a read waits for a failing registry before it gets EIO. [300]",
        ),
    ):
        result = option(result)
    return result  # type: ignore[no-any-return]


def check_lazy(answer: dict[str, Any], policies: dict[str, Any]) -> None:
    """Check that a mount is lazy, if it must be.

    Raises:
        NodeError: it is not, or the daemon is too old to say.
    """
    from firstread.config import DEVICES

    if policies.get("require") == "lazy" and answer.get("device") not in DEVICES:
        raise NodeError(
            "the daemon does not say that the mount is lazy",
            hint="it is of an older version: firstread daemon --reload",
        )


root_option = click.option(
    "--root",
    envvar="FIRSTREAD_ROOT",
    default=store_directory,
    show_default="/var/lib/firstread, or an ordinary user's ~/.local/share/firstread",
    show_envvar=True,
    type=PlaceType(),
    help="Directory of sectors, images and mounts.",
)


def node_options(command: F) -> F:
    """Add the options that select a daemon: ``root`` and ``run_dir``.

    An ordinary user's `command` runs where its daemon mounts, once there is such a namespace.
    """

    @functools.wraps(command)
    def in_namespace(*, run_dir: Path, **arguments: Any) -> Any:
        if os.geteuid() and not arguments.get("stop"):  # that helps whom others do not let in
            from firstread.control.usernamespace import join

            join(run_dir, arguments.get("root"))
        return command(run_dir=run_dir, **arguments)

    result: Any = in_namespace
    for option in (
        click.option(
            "--run-dir",
            envvar="FIRSTREAD_RUN_DIR",
            default=runtime_directory,
            show_default="/run/firstread, or an ordinary user's $XDG_RUNTIME_DIR/firstread",
            show_envvar=True,
            type=PlaceType(),
            help="Directory of the daemon's socket.",
        ),
        root_option,
    ):
        result = option(result)
    return result  # type: ignore[no-any-return]


def access_request(access: AccessOptions) -> dict[str, Any]:
    """Return the access options of a command line in the daemon's form."""
    return {
        "plain_http": access.plain_http,
        "insecure_tls": access.insecure_tls,
        "ca_file": str(access.ca_file.absolute()) if access.ca_file else None,
        "auth_file": str(access.auth_file.absolute()) if access.auth_file else None,
        "hosts_dirs": None
        if access.hosts_dirs is DEFAULT_HOSTS_DIRS
        else [str(path.absolute()) for path in access.hosts_dirs],
    }


def login_options(command: F) -> F:
    """Add the options for a password on stdin.

    `command` gets them as one argument: ``login``, a user name and a password, or None.
    """

    @functools.wraps(command)
    def with_login(*, username: str | None, password_stdin: bool, **arguments: Any) -> Any:
        if bool(username) != password_stdin:
            raise UsageError("--username and --password-stdin need each other")
        login = (username, read_secret()) if username else None
        return command(login=login, **arguments)

    result: Any = with_login
    for option in (
        click.option(
            "--password-stdin",
            is_flag=True,
            help="Read a password from the first line of stdin; it is not written to disk.",
        ),
        click.option(
            "--username", help="User of the password; literally '<token>' for an identity token."
        ),
    ):
        result = option(result)
    return result  # type: ignore[no-any-return]


def login_request(login: tuple[str, str] | None) -> dict[str, str] | None:
    """Return the login of a command line in the daemon's form."""
    return {"username": login[0], "password": login[1]} if login else None


def mount_request(
    pull: str,
    access: AccessOptions,
    policies: dict[str, Any],
    login: tuple[str, str] | None,
) -> dict[str, Any]:
    """Return what a command line says of a mount, in the daemon's form."""
    return {
        "policy": pull,
        "access": access_request(access),
        "policies": policies,
        "login": login_request(login),
    }


def read_secret() -> str:
    """Return the first line of stdin; leave the rest to others, such as a container.

    Raises:
        UsageError: it is empty, too long, or not UTF-8.
    """
    line = bytearray()
    while (letter := os.read(0, 1)) not in (b"", b"\n"):
        line += letter
        if len(line) > MAX_SECRET_BYTES:
            raise UsageError(f"the password on stdin is longer than {MAX_SECRET_BYTES} bytes")
    try:
        secret = line.removesuffix(b"\r").decode()
    except UnicodeDecodeError:
        raise UsageError("the password on stdin is not UTF-8") from None
    if not secret:
        raise UsageError("there is no password on stdin", hint="firstread … --password-stdin <FILE")
    return secret
