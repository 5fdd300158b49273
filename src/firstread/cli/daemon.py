# SPDX-License-Identifier: Apache-2.0
"""``firstread daemon``: supervisor and fetcher."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from firstread.cli.configoptions import config_option, hosts_option
from firstread.cli.options import SIZE, SecondsType, node_options
from firstread.cli.output import report
from firstread.errors import UsageError
from firstread.units import counted

if TYPE_CHECKING:
    from firstread.config import Config

STATUS_S = 5.0  # for a daemon to list its mounts before it stops
_COMMAND_LINE = click.core.ParameterSource.COMMANDLINE


@click.command()
@node_options
@config_option(
    "by default /etc/firstread/config.toml, if it exists, or an ordinary user's"
    " ~/.config/firstread/config.toml"
)
@click.option(
    "--device",
    type=click.Choice(["auto", "fanotify", "flat", "loop", "mixed", "nbd", "fuse"]),
    help="How the kernel asks for bytes; auto takes the first that works. [auto]",
)
@click.option("--metrics", metavar="HOST:PORT", help="Serve Prometheus metrics there.")
@click.option(
    "--stall",
    "stall_s",
    type=SecondsType(),
    help="Seconds that a read waits for a failing registry before it gets EIO; a mount can override"
    " it. [300]",
)
@click.option(
    "--workers",
    type=click.IntRange(1, 64),
    help="Requests at a time to one image repository. [4]",
)
@click.option(
    "--health",
    "health_s",
    type=SecondsType(2),
    help="Seconds without a sign of life until the fetcher is replaced. [15]",
)
@click.option(
    "--anchor",
    "anchor_s",
    type=SecondsType(0),
    help="Seconds that reads wait for another daemon when all processes of this one die. [300]",
)
@click.option(
    "--on-stop",
    type=click.Choice(["fail", "wait"]),
    help="Whether reads of absent sectors fail after SIGTERM, or wait for another daemon as after a"
    " death. [fail]",
)
@click.option(
    "--cache-max",
    type=SIZE,
    metavar="SIZE",
    help="Limit of sectors and metadata of images, such as 20GiB; 0: no limit. [0]",
)
@click.option(
    "--cache-max-files",
    type=click.IntRange(0),
    metavar="COUNT",
    help="The same limit in files, one inode each; 0: no limit. [0]",
)
@click.option(
    "--cache-min-free",
    type=SIZE,
    metavar="SIZE",
    help="Space that stays free on the file system of --root; 0: no limit. [0]",
)
@click.option(
    "--log-level",
    type=click.Choice(["DEBUG", "INFO", "WARNING", "ERROR"], case_sensitive=False),
    help="[INFO]",
)
@click.option(
    "--replace", is_flag=True, help="Take the place of the running daemon; no read fails."
)
@click.option(
    "--reload",
    is_flag=True,
    help="Restart the running daemon in place, with the installed version and the current"
    " configuration; no read fails. SIGHUP does the same.",
)
@click.option(
    "--stop",
    is_flag=True,
    help="End the running daemon, as SIGTERM does, and say what becomes of its mounts.",
)
@click.option("--inherit", type=int, hidden=True)
@click.option("--rehearse", type=int, hidden=True)
@hosts_option("/etc/containerd/certs.d")
@click.option(
    "--credentials-dir",
    type=click.Path(path_type=Path),
    envvar="FIRSTREAD_CREDENTIALS_DIR",
    show_envvar=True,
    help="Directory of HOST.json with the credentials of one registry each.",
)
def command(
    root: Path,
    run_dir: Path,
    config_path: Path | None,
    hosts_dirs: tuple[Path, ...],
    credentials_dir: Path | None,
    replace: bool,
    reload: bool,
    stop: bool,
    inherit: int | None,
    rehearse: int | None,
    **options: str | float | None,
) -> None:
    """Serve the mounts of this node until SIGTERM.

    Other commands start a daemon when none runs; systemd can run it as a service
    (packaging/firstread.service). A daemon that takes its place takes its mounts over; docs/node.md
    says what becomes of them without one.
    """
    if reload or stop:
        _alone("reload" if reload else "stop")
        (_reload if reload else _stop)(run_dir)
        return
    from firstread.control.usernamespace import enter
    from firstread.daemon.start import serve

    enter(root, run_dir)
    config_path = config_path and config_path.absolute()
    registry = {
        "hosts_dirs": [str(path.absolute()) for path in hosts_dirs] or None,
        "credentials_dir": str(credentials_dir.absolute()) if credentials_dir else None,
    }
    arguments = _arguments(
        root=root,
        run_dir=run_dir,
        config=config_path,
        hosts_dir=registry["hosts_dirs"],
        credentials_dir=registry["credentials_dir"],
        **options,
    )
    config = _config(config_path, registry, options)
    if rehearse is not None or replace:
        from firstread.daemon import trial

        trial.rehearse(root, *([rehearse] if rehearse is not None else []))
        if rehearse is not None:
            return
    serve(root, run_dir, config, arguments, replace=replace, inherited=inherit)


def _config(path: Path | None, registry: dict[str, Any], options: dict[str, Any]) -> Config:
    """Return the configuration of a file, overridden by the command line."""
    from firstread.config import load_config

    cache = {
        "max_bytes": options.pop("cache_max"),
        "min_free_bytes": options.pop("cache_min_free"),
        "max_files": options.pop("cache_max_files"),
    }
    stall_s, level = options.pop("stall_s"), options.pop("log_level")
    config = load_config(path).override("policy", stall_s=stall_s).override("cache", **cache)
    config = config.override("node", log_level=level and str(level).upper(), **options)
    return config.override("registry", **registry)


def _alone(flag: str) -> None:
    context = click.get_current_context()
    given = {n for n in context.params if context.get_parameter_source(n) is _COMMAND_LINE}
    if given - {"root", "run_dir", flag}:
        raise UsageError(
            f"--{flag} takes no other option but --run-dir",
            hint="see 'firstread daemon --help'"
            if flag == "stop"
            else "the daemon keeps its own; to change them, use --replace",
        )


def _reload(run_dir: Path) -> None:
    from firstread.daemon.succession import ask_reload

    serving = ask_reload(str(run_dir))
    lines = [f"firstread {serving['version']} serves now (process {serving['pid']})"]
    device = _status(run_dir).get("device", {})
    if device.get("wanted", "auto") not in ("auto", device.get("name")):
        lines += [
            f"its device stays {device['name']}: to have {device['wanted']}, as the configuration"
            " asks, stop the daemon (--stop) and start it"
        ]
    report(lines)


def _stop(run_dir: Path) -> None:
    from firstread.daemon.stop import stop_daemon

    status = _status(run_dir)
    pid = stop_daemon(run_dir)
    report([f"the daemon (process {pid}) has ended{fate(status)}"])


def fate(status: dict[str, Any]) -> str:
    """Return what becomes of the mounts that a daemon had when it was stopped; "" for none."""
    from firstread.daemon.choice import Unheld, kind_of

    count = len(status.get("mounts", ()))
    if not count:
        return ""
    unheld = kind_of(status.get("device", {}).get("name", "fanotify")).unheld
    if waits_s := status["configuration"].get("waits_s", 0):
        advice = f"reads wait for another daemon for {waits_s:g} s"
    elif unheld is Unheld.READABLE:
        advice = "start another before anybody reads absent data"
    elif unheld is Unheld.WAITING:
        advice = "reads fail until another starts"
    else:
        lost = "is lost: unmount it, or mount the image again"
        if count > 1:
            lost = "are lost: unmount them, or mount the images again"
        return f"; {counted(count, 'mount')} {lost}"
    return f"; {counted(count, 'mount')} {'stays' if count == 1 else 'stay'}: {advice}"


def _status(run_dir: Path) -> dict[str, Any]:
    """Return what the daemon says of itself; nothing if it does not answer: all the same."""
    from firstread.control.client import Client
    from firstread.errors import FirstreadError

    try:
        status: dict[str, Any] = Client(run_dir, timeout_s=STATUS_S).get("/status")
    except FirstreadError:
        return {}
    return status


def _arguments(**options: object) -> list[str]:
    """Return the command line with these options."""
    arguments = []
    for name, value in options.items():
        flag = "--" + name.removesuffix("_s").replace("_", "-")
        for each in value if isinstance(value, list) else [value]:
            if each is not None:
                arguments += [flag, str(each)]
    return arguments
