# SPDX-License-Identifier: Apache-2.0
"""``firstread run``: a container on a lazy mount.

Owns what ties the two together: the container's id is the name under which it holds its mount, from
before the mount is made until nothing of the container needs it. So whatever dies in between,
``firstread rm`` gives it back.
"""

from __future__ import annotations

import importlib
import logging
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from firstread.cli.containers import container_store, release_mount
from firstread.cli.options import (
    access_options,
    access_request,
    check_lazy,
    login_options,
    login_request,
    node_options,
    policy_options,
)
from firstread.cli.output import complain, report
from firstread.cli.timeline import Timeline
from firstread.errors import FirstreadError
from firstread.run.options import CONTEXT_SETTINGS, RunOptions, run_options

if TYPE_CHECKING:
    from firstread.oci.options import AccessOptions
    from firstread.run.containers import Record


@click.command(context_settings=CONTEXT_SETTINGS)
@click.option(
    "--pull",
    type=click.Choice(["missing", "always", "never"]),
    default="missing",
    show_default=True,
    help="When to ask the registry what REF names.",
)
@click.option("--stats", is_flag=True, help="Print at the end when what happened, and its bytes.")
@policy_options
@node_options
@access_options
@login_options
@run_options
def command(
    options: RunOptions,
    pull: str,
    stats: bool,
    root: Path,
    run_dir: Path,
    access: AccessOptions,
    policies: dict[str, Any],
    login: tuple[str, str] | None,
) -> int:
    """Run a container of the converted image REF; what it reads is fetched when it reads it.

    Options are those of docker run. The exit code is the container's; 125 if firstread itself
    fails, 126 if the command cannot be invoked, 127 if it is not found.
    """
    from firstread.signals import unwinding_on_signals

    logging.basicConfig(format="firstread: %(message)s", level=logging.WARNING)
    timeline = Timeline() if stats else None
    # Directories that it makes for volumes and binds are docker's 0755 whoever calls.
    os.umask(0o022)
    with unwinding_on_signals():
        how = {
            "policy": pull,
            "access": access_request(access),
            "policies": policies,
            "login": login_request(login),
        }
        code = _run(options, root, run_dir, how, timeline)
    if timeline is not None:
        complain(timeline.report())
    return code


def _run(
    options: RunOptions,
    root: Path,
    run_dir: Path,
    how: dict[str, Any],
    timeline: Timeline | None,
) -> int:
    from firstread.node.client import Client, connected
    from firstread.oci.reference import parse_reference
    from firstread.run.containers import reserve_container

    image = str(parse_reference(options.image).absolute())
    store = container_store(root)
    if not Client(run_dir).alive():
        # One that runs costs nothing to ask, and these are loaded while it is at work.
        from firstread.run.early import check_early

        check_early(options, store.state_dir)
    record = reserve_container(options, store)
    try:
        client = connected(root, run_dir)
    except BaseException:
        store.delete(record)
        raise

    def on_start(started: Record) -> None:
        if timeline is not None:
            timeline.note("start")
            if options.detach:
                timeline.fetched()
        if options.detach:
            report([started.id])

    def on_unused() -> None:
        if timeline is not None and not options.detach:
            timeline.note("exit")
            timeline.fetched()
        release_mount(root, run_dir, record)

    try:
        # It takes as long to load as the daemon needs for a mount. No thread is left after it: a
        # detached container's monitor is forked.
        loading = threading.Thread(target=importlib.import_module, args=("firstread.run.launch",))
        loading.start()
        mount = client.mount(image=image, holder=record.id, **how)
        loading.join()
        check_lazy(mount, how["policies"])
        from firstread.run.launch import run_container

        if timeline is not None:
            timeline.mounted(mount, client)
    except BaseException:
        release_mount(root, run_dir, record)
        store.delete(record)
        raise
    # It clears up after itself: an error may well come after the container has started, or ended.
    try:
        return run_container(
            Path(mount["mountpoint"]),
            mount["config"],
            options,
            store.state_dir,
            record=record,
            on_start=on_start,
            on_first_output=timeline.first_output if timeline is not None else lambda: None,
            on_unused=on_unused,
        )
    except FirstreadError as exc:
        exc.about(image=image)
        raise
