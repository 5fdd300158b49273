# SPDX-License-Identifier: Apache-2.0
"""``firstread run``: a container on a lazy mount.

Owns the order of a run, and what its user sees of it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from firstread.cli.explain import explain_option, explained
from firstread.cli.holding import hold, reserve
from firstread.cli.nodestate import container_store, release_mount
from firstread.cli.options import (
    access_options,
    login_options,
    mount_request,
    node_options,
    policy_options,
    pull_option,
)
from firstread.cli.output import complain, report
from firstread.cli.recording import recording_into
from firstread.cli.timeline import Timeline
from firstread.errors import FirstreadError, UsageError
from firstread.run.options import CONTEXT_SETTINGS, RunOptions, run_options

if TYPE_CHECKING:
    from firstread.registry.options import AccessOptions
    from firstread.run.containers import Record

DETACHED_HINT = "while a detached one runs: firstread report REF"


@click.command(context_settings=CONTEXT_SETTINGS)
@pull_option
@click.option("--stats", is_flag=True, help="Print the time of each step, and the bytes fetched.")
@explain_option
@click.option(
    "--record",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write to FILE what the start has done and read, for firstread report.",
)
@policy_options
@node_options
@access_options
@login_options
@run_options
def command(
    options: RunOptions,
    pull: str,
    stats: bool,
    explain: bool,
    record: Path | None,
    root: Path,
    run_dir: Path,
    access: AccessOptions,
    policies: dict[str, Any],
    login: tuple[str, str] | None,
) -> int:
    """Run a container of the converted image REF; data is fetched when the container reads it.

    Options are those of docker run. The exit code is the container's; 125 if firstread itself
    fails, 126 if the command cannot be invoked, 127 if it is not found.
    """
    from firstread.signals import unwinding_on_signals

    logging.basicConfig(format="firstread: %(message)s", level=logging.WARNING)
    if record and options.detach:
        raise UsageError("--record goes with a container in the foreground", hint=DETACHED_HINT)
    keep = recording_into(record, root) if record else None
    timeline = Timeline(keep) if stats or keep else None
    os.umask(0o022)  # new directories for volumes and binds get docker's 0755
    with unwinding_on_signals():
        how = mount_request(pull, access, policies, login)
        code = _run(options, root, run_dir, how, timeline, explain=explain)
    if timeline is not None and stats:
        complain(timeline.report())
    return code


def _run(
    options: RunOptions,
    root: Path,
    run_dir: Path,
    how: dict[str, Any],
    timeline: Timeline | None,
    *,
    explain: bool,
) -> int:
    from firstread.oci.reference import parse_reference

    image = str(parse_reference(options.image).absolute())
    store = container_store(root)
    record, client = reserve(options, store, root, run_dir)
    try:
        mount = hold(client, record, image, how)
        if explain:
            complain(explained(mount))
        if timeline is not None:
            timeline.mounted(mount, client)
    except BaseException:
        release_mount(root, run_dir, record)
        store.delete(record)
        raise
    from firstread.run.lifecycle import run_container

    stages = _Stages(timeline, lambda: release_mount(root, run_dir, record), detach=options.detach)
    # It cleans up after itself: an error can come after the container has started, or ended.
    try:
        return run_container(
            Path(mount["mountpoint"]),
            mount["config"],
            options,
            store.state_dir,
            record=record,
            on_start=stages.started,
            on_first_output=stages.first_output,
            on_unused=stages.unused,
        )
    except FirstreadError as exc:
        exc.about(image=image)
        raise


class _Stages:
    """Follows a container from its start to its end.

    Args:
        timeline: notes each stage.
        release: gives the mount back.
        detach: the command returns at the start, and prints the container's id.
    """

    def __init__(
        self, timeline: Timeline | None, release: Callable[[], None], *, detach: bool
    ) -> None:
        self._timeline = timeline
        self._release = release
        self._detach = detach

    def started(self, record: Record) -> None:
        if self._timeline is not None:
            self._timeline.note("start")
            if self._detach:
                self._timeline.fetched()
        if self._detach:
            report([record.id])

    def first_output(self) -> None:
        if self._timeline is not None:
            self._timeline.first_output()

    def unused(self) -> None:
        if self._timeline is not None and not self._detach:
            self._timeline.note("exit")
            self._timeline.fetched()
        self._release()
