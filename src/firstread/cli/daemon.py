# SPDX-License-Identifier: Apache-2.0
"""``firstread daemon``: supervisor and fetcher."""

from __future__ import annotations

from pathlib import Path

import click

from firstread.cli.options import SIZE, SecondsType, node_options
from firstread.cli.output import report
from firstread.errors import UsageError
from firstread.units import counted

STATUS_S = 5.0  # for a daemon to say what it serves, before it is stopped
_COMMAND_LINE = click.core.ParameterSource.COMMANDLINE


@click.command()
@node_options
@click.option(
    "--config",
    "config_path",
    envvar="FIRSTREAD_CONFIG",
    show_envvar=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="Configuration (docs/node.md); /etc/firstread/config.toml if it is there.",
)
@click.option("--metrics", metavar="HOST:PORT", help="Serve Prometheus metrics there.")
@click.option(
    "--stall",
    "stall_s",
    type=SecondsType(),
    help="Seconds that a read waits for a registry that fails, before it gets EIO, if its mount"
    " does not say otherwise. [300]",
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
    help="Seconds without a sign of life, after which the fetcher is replaced. [15]",
)
@click.option(
    "--anchor",
    "anchor_s",
    type=SecondsType(0),
    help="Seconds that reads wait for another daemon, if all processes of this one die. [300]",
)
@click.option(
    "--on-stop",
    type=click.Choice(["fail", "wait"]),
    help="What reads of absent sectors do after SIGTERM: fail, or wait for another daemon as after"
    " a death. [fail]",
)
@click.option(
    "--cache-max",
    type=SIZE,
    metavar="SIZE",
    help="What sectors and metadata of images may take, such as 20GiB; 0: no limit. [0]",
)
@click.option(
    "--cache-max-files",
    type=click.IntRange(0),
    metavar="COUNT",
    help="The same in files, each of which is an inode; 0: no limit. [0]",
)
@click.option(
    "--cache-min-free",
    type=SIZE,
    metavar="SIZE",
    help="What the file system of --root keeps free; 0: no limit. [0]",
)
@click.option(
    "--log-level",
    type=click.Choice(["DEBUG", "INFO", "WARNING", "ERROR"], case_sensitive=False),
    help="[INFO]",
)
@click.option(
    "--replace", is_flag=True, help="Take the place of the daemon that runs; no read fails."
)
@click.option(
    "--reload",
    is_flag=True,
    help="Have the daemon that runs go on as the version and with the configuration that are"
    " there now; no read fails. SIGHUP does the same.",
)
@click.option(
    "--stop",
    is_flag=True,
    help="Have the daemon that runs end, as SIGTERM does. Mounts stay, for the next one.",
)
@click.option("--inherit", type=int, hidden=True)
@click.option("--rehearse", type=int, hidden=True)
@click.option(
    "--hosts-dir",
    "hosts_dirs",
    multiple=True,
    type=click.Path(path_type=Path),
    envvar="FIRSTREAD_HOSTS_DIR",
    show_envvar=True,
    help="Directory of HOST/hosts.toml, as containerd's; may be repeated."
    " [/etc/containerd/certs.d]",
)
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

    The other commands start a daemon when none runs; as a service it is run by systemd
    (packaging/firstread.service). Mounts outlive it: the next daemon takes them over.
    """
    if reload or stop:
        _alone("reload" if reload else "stop")
        (_reload if reload else _stop)(run_dir)
        return
    from firstread.config import load_config
    from firstread.node.daemon import serve

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
    policy = {"stall_s": options.pop("stall_s")}
    limits = {f"{name}_bytes": options.pop(f"cache_{name}") for name in ("max", "min_free")}
    limits["max_files"] = options.pop("cache_max_files")
    level = options.pop("log_level")
    config = load_config(config_path).override("policy", **policy).override("cache", **limits)
    config = config.override("node", log_level=level and str(level).upper(), **options)
    config = config.override("registry", **registry)
    if rehearse is not None or replace:
        from firstread.node import trial

        trial.rehearse(root, *([rehearse] if rehearse is not None else []))
        if rehearse is not None:
            return
    serve(root, run_dir, config, arguments, replace=replace, inherited=inherit)


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
    from firstread.node.succession import ask_reload

    serving = ask_reload(str(run_dir))
    report([f"firstread {serving['version']} serves now (process {serving['pid']})"])


def _stop(run_dir: Path) -> None:
    from firstread.errors import FirstreadError
    from firstread.node.client import Client
    from firstread.node.farewell import stop_daemon

    try:
        mounts = len(Client(run_dir, timeout_s=STATUS_S).get("/status")["mounts"])
    except FirstreadError:
        mounts = 0  # one that does not answer can be stopped all the same
    pid = stop_daemon(run_dir)
    stay = ""
    if mounts:
        stay = f"; {counted(mounts, 'mount')} {'stays' if mounts == 1 else 'stay'}: start another"
        stay += " before what is not here is read"
    report([f"the daemon (process {pid}) has ended{stay}"])


def _arguments(**options: object) -> list[str]:
    """Return the command line that gives these options again."""
    arguments = []
    for name, value in options.items():
        flag = "--" + name.removesuffix("_s").replace("_", "-")
        for each in value if isinstance(value, list) else [value]:
            if each is not None:
                arguments += [flag, str(each)]
    return arguments
