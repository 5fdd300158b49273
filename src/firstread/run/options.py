# SPDX-License-Identifier: Apache-2.0
"""The flags of ``firstread run``: one value, and the click options that make it.

Owns names, short forms and help of the flags, and their meaning together; `parse` has the meaning
of each flag's text. Invariant: a `RunOptions` is complete and valid by itself; creating the
container looks up everything that depends on the image or the host (users, processors, devices).

Unlike docker, the network is the host's unless the user asks for ``none``, as there is no bridge;
named volumes, ``--init`` and detach keys do not exist.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import click

from firstread.errors import UsageError
from firstread.run import capabilities, parse
from firstread.run.commandline import hide_values

NETWORKS = ("host", "none")

CONTEXT_SETTINGS = {"allow_interspersed_args": False}
"""For the click command: all arguments after the image belong to the container's command."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """The user's wishes for a container.

    Args:
        image: reference as typed; ``ps`` shows it.
        command: arguments after the image.
        env: name to value; None removes a variable that the image sets.
        mounts: of ``-v`` and ``--tmpfs``.
        volumes: paths of anonymous volumes, in addition to the image's.
        user: ``user[:group]``, names or numbers, not yet resolved.
        entrypoint: replaces the image's, an empty tuple clears it; None leaves it.
        memory_bytes: limit of memory; swap may be as large again.
        pids_limit: greatest number of tasks; None for no limit.
        cap_add: normalized names, or ``ALL``.
        seccomp: False for ``--security-opt seccomp=unconfined``.
        runtime: name or path of the OCI runtime; None chooses one.
    """

    image: str = ""
    command: tuple[str, ...] = ()
    remove: bool = False
    interactive: bool = False
    tty: bool = False
    detach: bool = False
    name: str | None = None
    env: Mapping[str, str | None] = field(default_factory=lambda: MappingProxyType({}))
    mounts: tuple[parse.Mount, ...] = ()
    volumes: tuple[str, ...] = ()
    workdir: str | None = None
    user: str | None = None
    entrypoint: tuple[str, ...] | None = None
    hostname: str | None = None
    read_only: bool = False
    memory_bytes: int | None = None
    cpus: float | None = None
    pids_limit: int | None = None
    network: str = "host"
    cap_add: tuple[str, ...] = ()
    cap_drop: tuple[str, ...] = ()
    privileged: bool = False
    devices: tuple[parse.DeviceFlag, ...] = ()
    rlimits: tuple[parse.Rlimit, ...] = ()
    labels: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    extra_hosts: tuple[tuple[str, str], ...] = ()
    no_new_privileges: bool = False
    seccomp: bool = True
    runtime: str | None = None


def parse_options(flags: Mapping[str, Any], environ: Mapping[str, str]) -> RunOptions:
    """Return the options that the texts of the flags state.

    Args:
        flags: by the parameter names of `run_options`; a missing flag was not given.
        environ: the caller's environment, for ``-e NAME``.

    Raises:
        UsageError: a flag does not parse, or two contradict each other.
    """
    from firstread.run.document import to_json  # noqa: PLC0415 - help does not wait for it

    if flags.get("publish") or flags.get("publish_all"):
        raise UsageError(
            "no port can be published: there is no bridge, the container has the host's network",
            hint="leave -p and -P out: what listens in the container listens on the host",
        )
    options = RunOptions(
        image=flags.get("image", ""),
        command=tuple(flags.get("command", ())),
        remove=flags.get("rm", False),
        interactive=flags.get("interactive", False),
        tty=flags.get("tty", False),
        detach=flags.get("detach", False),
        name=_filled(flags, "name", parse.check_name),
        env=parse_environment(flags, environ),
        workdir=_filled(flags, "workdir", check_workdir),
        user=flags.get("user") or None,
        entrypoint=_given(flags, "entrypoint", lambda text: (text,) if text else ()),
        hostname=_filled(flags, "hostname", parse.check_hostname),
        read_only=flags.get("read_only", False),
        network=_network(flags.get("network") or "host"),
        labels=dict(map(parse.parse_label, flags.get("label", ()))),
        extra_hosts=tuple(map(parse.parse_extra_host, flags.get("add_host", ()))),
        runtime=flags.get("runtime"),
        **_mounts(flags),
        **_limits(flags),
        **_rights(flags),
    )
    to_json(options)  # refuses now what the container's configuration could not hold
    return options


def _mounts(flags: Mapping[str, Any]) -> dict[str, Any]:
    volumes = [parse.parse_volume(text) for text in flags.get("volume", ())]
    binds = [volume for volume in volumes if isinstance(volume, parse.Mount)]
    mounts = (*binds, *map(parse.parse_tmpfs, flags.get("tmpfs", ())))
    _refuse_duplicates(mounts)
    anonymous = tuple(volume for volume in volumes if isinstance(volume, str))
    return {"mounts": mounts, "volumes": anonymous}


def _limits(flags: Mapping[str, Any]) -> dict[str, Any]:
    processors = os.cpu_count() or 1
    return {
        "memory_bytes": _given(flags, "memory", parse.parse_memory),
        "cpus": _given(flags, "cpus", lambda text: parse.parse_cpus(text, processors)),
        "pids_limit": _given(flags, "pids_limit", lambda number: number if number > 0 else None),
        "rlimits": tuple(map(parse.parse_rlimit, flags.get("ulimit", ()))),
    }


def _rights(flags: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "cap_add": tuple(map(capabilities.normalize, flags.get("cap_add", ()))),
        "cap_drop": tuple(map(capabilities.normalize, flags.get("cap_drop", ()))),
        "privileged": flags.get("privileged", False),
        "devices": tuple(map(parse.parse_device, flags.get("device", ()))),
        **_security(flags.get("security_opt", ())),
    }


def _given(flags: Mapping[str, Any], name: str, convert: Callable[[Any], Any]) -> Any:
    value = flags.get(name)
    return None if value is None else convert(value)


def _filled(flags: Mapping[str, Any], name: str, convert: Callable[[Any], Any]) -> Any:
    """As `_given`, but an empty text counts as not given, as docker has it."""
    return convert(flags[name]) if flags.get(name) else None


def parse_environment(
    flags: Mapping[str, Any], environ: Mapping[str, str]
) -> dict[str, str | None]:
    """Merge files and single variables; as with docker, a single one always wins.

    Args:
        flags: ``env`` and ``env_file``.
        environ: the caller's environment.

    Raises:
        UsageError: one does not parse.
    """
    merged: dict[str, str | None] = {}
    for path in flags.get("env_file", ()):
        merged.update(parse.read_env_file(path, environ))
    merged.update(parse.parse_env(text, environ) for text in flags.get("env", ()))
    return merged


def _refuse_duplicates(mounts: Iterable[parse.Mount]) -> None:
    seen: set[str] = set()
    for mount in mounts:
        if mount.target in seen:
            raise UsageError(f"duplicate mount point: {mount.destination}")
        seen.add(mount.target)


def check_workdir(path: str) -> str:
    """Return a working directory that docker would accept.

    Raises:
        UsageError: it is relative.
    """
    if not path.startswith("/"):
        raise UsageError(
            f"the working directory {path!r} is invalid, it needs to be an absolute path"
        )
    return path


def _network(name: str) -> str:
    if name not in NETWORKS:
        raise UsageError(f"network {name} not found", hint="choose host or none")
    return name


def _security(texts: Iterable[str]) -> dict[str, bool]:
    found: dict[str, bool] = {}
    for text in texts:
        match text.replace(":", "=", 1):
            case "no-new-privileges" | "no-new-privileges=true":
                found["no_new_privileges"] = True
            case "no-new-privileges=false":
                found["no_new_privileges"] = False
            case "seccomp=unconfined":
                found["seccomp"] = False
            case _:
                raise UsageError(f"invalid --security-opt: {text!r}")
    return found


def _flag(*names: str, **more: str) -> Callable[[Any], Any]:
    return click.option(*names, is_flag=True, **more)  # type: ignore[arg-type]


def _list(*names: str, **more: str) -> Callable[[Any], Any]:
    more["help"] += "  [repeatable]"
    return click.option(*names, multiple=True, **more)  # type: ignore[arg-type]


_OPTIONS = (
    _flag("--rm", help="Remove the container when it exits."),
    _flag("-i", "--interactive", help="Keep standard input open."),
    _flag("-t", "--tty", help="Give the container a terminal."),
    _flag("-d", "--detach", help="Run in the background and print the container's id."),
    click.option("--name", metavar="NAME", help="Name of the container."),
    _list("-e", "--env", metavar="NAME[=VALUE]", help="Set a variable, or pass the caller's on."),
    _list("--env-file", metavar="FILE", help="Read variables from a file."),
    _list("-v", "--volume", metavar="SRC:DST[:ro]", help="Bind a directory or file of the host."),
    _list("--tmpfs", metavar="DST[:OPTIONS]", help="Mount a tmpfs."),
    click.option("-w", "--workdir", metavar="DIR", help="Working directory."),
    click.option("-u", "--user", metavar="USER[:GROUP]", help="User and group, by name or number."),
    click.option("--entrypoint", metavar="PROGRAM", help="Replace the image's entrypoint."),
    click.option("-h", "--hostname", metavar="NAME", help="Host name of the container."),
    _flag("--read-only", help="Mount the root file system read-only."),
    click.option("-m", "--memory", metavar="BYTES", help="Memory limit, such as 512m."),
    click.option("--cpus", metavar="NUMBER", help="Processors, such as 1.5."),
    click.option("--pids-limit", type=int, metavar="NUMBER", help="Greatest number of tasks."),
    click.option(
        "--network",
        "--net",
        metavar="host|none",
        help="The host's network (default), or none.",
    ),
    click.option("-p", "--publish", multiple=True, hidden=True),  # refused, with the reason
    click.option("-P", "--publish-all", is_flag=True, hidden=True),
    _list("--cap-add", metavar="CAP", help="Add a capability."),
    _list("--cap-drop", metavar="CAP", help="Drop a capability."),
    _flag("--privileged", help="All capabilities and devices, nothing hidden or filtered."),
    _list("--device", metavar="SRC[:DST[:rwm]]", help="Add a device of the host."),
    _list("--ulimit", metavar="NAME=SOFT[:HARD]", help="Set a resource limit."),
    _list("-l", "--label", metavar="KEY=VALUE", help="Label the container."),
    _list("--add-host", metavar="NAME:ADDRESS", help="Add a line to /etc/hosts."),
    _list("--security-opt", metavar="OPTION", help="no-new-privileges, or seccomp=unconfined."),
    click.option(
        "--runtime",
        envvar="FIRSTREAD_RUNTIME",
        metavar="PROGRAM",
        help="OCI runtime, crun or runc.  [env: FIRSTREAD_RUNTIME]",
    ),
    click.argument("image", metavar="REF"),
    click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="[CMD]..."),
)


def run_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a click command all flags of a run, as one parameter ``options: RunOptions``.

    Other parameters of the command pass through. The command needs `CONTEXT_SETTINGS`. The call
    hides the values of variables in the process's command line, which everybody can read.

    Raises:
        UsageError: from the call, before it reaches `function`.
    """

    @functools.wraps(function)
    def parsed(**parameters: Any) -> Any:
        flags = {name: parameters.pop(name) for name in own}
        hide_values(flags["env"])
        return function(options=parse_options(flags, os.environ), **parameters)

    others = len(getattr(function, "__click_params__", ()))
    command: Any = parsed
    for option in reversed(_OPTIONS):
        command = option(command)
    own = [parameter.name for parameter in command.__click_params__[others:]]
    return parsed
