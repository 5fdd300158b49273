# SPDX-License-Identifier: Apache-2.0
"""``firstread trace``: what a start reads of its image, as a file.

Owns the three forms of the command; `firstread.cli.tracing` has the start itself.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from firstread.cli.forms import Forms
from firstread.cli.options import (
    SecondsType,
    access_options,
    login_options,
    mount_request,
    node_options,
    policy_options,
    pull_option,
)
from firstread.cli.output import check_output, complain
from firstread.cli.tracing import Tracing
from firstread.errors import NodeError, UsageError
from firstread.idmaps import owner
from firstread.run.options import CONTEXT_SETTINGS, RunOptions, run_options
from firstread.units import counted, format_size

if TYPE_CHECKING:
    from firstread.registry.options import AccessOptions
    from firstread.run.probes import Probe
    from firstread.run.readiness import Conditions
    from firstread.traces.tracefile import Trace

_SILENT_S = 1.0  # to see that nothing answers yet
_FILE = click.Path(path_type=Path, dir_okay=False)
_output_option = click.option(
    "-o", "--output", type=_FILE, required=True, metavar="FILE", help="The trace."
)


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=_FILE)
@_output_option
def _merge(files: tuple[Path, ...], output: Path) -> None:
    """Merge the traces of several starts of an image into one."""
    from firstread.traces.firstreads import merge
    from firstread.traces.savedtrace import load_trace, save_trace
    from firstread.traces.tracefile import MAX_READS

    check_output(output)
    traces = [load_trace(path) for path in files]
    trace = merge(traces)
    save_trace(output, trace)
    complain([f"{output}: {_describe(trace)}"])
    if len(trace.reads) == MAX_READS < sum(len(each.reads) for each in traces):
        complain([f"  later ones are left out: a trace has {MAX_READS:,} at most"])


@click.command()
@click.option("--from", "place", metavar="DIR", required=True, help="Mount point.")
@_output_option
@node_options
def _from(place: str, output: Path, root: Path, run_dir: Path) -> None:
    """Write what the mount at DIR has read of data that was not on this node.

    The daemon's record has the first 65,536 such reads of the first ten minutes. It is coarser than
    a trace of its own: it lacks reads of present data.
    """
    from firstread.cache.imagestore import ImageStore
    from firstread.control.client import Client
    from firstread.documents import decode
    from firstread.fetch.tracelog import SeenReads
    from firstread.traces.savedtrace import save_trace
    from firstread.traces.sectorreads import trace_of, unpack_reads

    check_output(output)
    seen = decode(Client(run_dir).post("/seen", directory=os.path.abspath(place)), SeenReads)
    image = ImageStore(root, tidy=False).load(seen.digest).block_image
    trace = trace_of(image, unpack_reads(seen.reads), read_ahead_kib=seen.read_ahead_kib)
    save_trace(output, trace)
    complain([f"{output}: {_describe(trace)}"])
    if not seen.since_mount:
        complain(["  the record began with the daemon's last restart, not with the mount"])


@click.command(
    cls=Forms,
    forms={"merge": _merge, "--from": _from},
    context_settings=CONTEXT_SETTINGS,
    epilog="'firstread trace merge FILE... -o FILE' merges traces; 'firstread trace --from DIR -o"
    " FILE' writes what the mount at DIR has read.",
)
@click.option("-o", "--output", type=_FILE, metavar="FILE", help="Write the trace to FILE.")
@click.option("--attach", is_flag=True, help="Attach the trace to the image, in its repository.")
@click.option("--until", metavar="URL", help="The workload is ready when this answers with 2xx.")
@click.option(
    "--until-command", metavar="COMMAND", help="It is ready when this, run here, exits with 0."
)
@click.option(
    "--until-line", metavar="REGEX", help="It is ready when a line of its output matches."
)
@click.option(
    "--seconds",
    type=SecondsType(),
    metavar="N",
    help="End after N seconds; with another --until a failure.",
)
@pull_option
@policy_options
@node_options
@access_options
@login_options
@run_options
def command(
    options: RunOptions,
    output: Path | None,
    attach: bool,
    until: str | None,
    until_command: str | None,
    until_line: str | None,
    seconds: float | None,
    pull: str,
    root: Path,
    run_dir: Path,
    access: AccessOptions,
    policies: dict[str, Any],
    login: tuple[str, str] | None,
) -> int:
    """Run a container of the converted image REF, and write what it reads until it is ready.

    Fetches the whole image first. Without any --until and --seconds the start ends with the
    container. The container is removed.
    """
    from firstread.signals import unwinding_on_signals
    from firstread.traces.savedtrace import save_trace

    logging.basicConfig(format="firstread: %(message)s", level=logging.WARNING)
    conditions = _conditions(until, until_command, until_line, seconds)
    if owner():
        raise NodeError(
            "the kernel lets root alone see all reads of a start",
            hint="run it as root; or mount the image, start it, and: firstread trace --from DIR",
        )
    if output is not None:
        check_output(output)
    elif not attach:
        raise UsageError("say where the trace is to go", hint="-o FILE, --attach, or both")
    if attach:
        _check_attachable(options.image)
    how = mount_request(pull, access, policies, login)
    os.umask(0o022)  # as for `run`
    with unwinding_on_signals():
        tracing = Tracing(_prepared(options), conditions, root, run_dir)
        trace, start = tracing.run(how)
        if output is not None:
            save_trace(output, trace)
        complain([f"{output or options.image}: {_describe(trace)}"])
        if start.signal is not None and not start.stopped:
            raise SystemExit(128 + start.signal)  # not attached: nobody knows what is missing
        if attach:
            _attach(options.image, access, tracing.digest, trace)
    return 0 if start.stopped else start.code


def _conditions(
    url: str | None, asked: str | None, line: str | None, seconds: float | None
) -> Conditions:
    from firstread.run.readiness import Conditions, parse_pattern

    probe = _probe(url, asked)
    return Conditions(probe, None if line is None else parse_pattern(line), seconds)


def _probe(url: str | None, asked: str | None) -> Probe | None:
    from firstread.run.probes import parse_command, parse_url

    if url is not None and asked is not None:
        raise UsageError("--until and --until-command exclude each other", hint="leave one out")
    probe: Probe | None = None if url is None else parse_url(url)
    if asked is not None:
        probe = parse_command(asked)
    if probe is not None and probe.succeeds(_SILENT_S, threading.Event()):
        raise UsageError(
            f"{probe} succeeds before the container runs",
            hint="stop the other server, or ask for something else",
        )
    return probe


def _prepared(options: RunOptions) -> RunOptions:
    if options.detach:
        raise UsageError("a container that is traced cannot be detached", hint="leave -d out")
    rest = options.command[options.command[:1] == ("--",) :]
    return dataclasses.replace(options, command=rest, remove=True)


def _check_attachable(name: str) -> None:
    from firstread.oci.reference import parse_reference

    transport = parse_reference(name).transport
    if transport not in ("docker", "oci"):
        raise UsageError(
            f"nothing can be attached to an image in {transport}:",
            image=name,
            hint="write the trace to a file: -o FILE",
        )


def _attach(name: str, access: AccessOptions, digest: str, trace: Trace) -> None:
    """Attach a trace to the original of a converted image, or else to the converted one."""
    from firstread.oci.reference import parse_reference
    from firstread.oci.repository import naming
    from firstread.registry.open import open_destination
    from firstread.traces.attachedtraces import attach_trace

    reference = parse_reference(name).absolute()
    here = dataclasses.replace(reference, tag=None, digest=None)
    subjects = filter(None, (trace.header.image, digest))
    with naming(reference), open_destination(here, access) as repository:
        subject, artifact = attach_trace(repository, subjects, trace)
    complain([f"{artifact.digest} is attached to {subject.digest}"])


def _describe(trace: Trace) -> str:
    """Return what people want to know of a trace, in one line."""
    size = sum(read.length for read in trace.reads)
    files = len({read.path for read in trace.reads})
    ready = trace.header.ready_us
    when = "" if ready is None else f", ready after {ready / 1e6:.2f} s"
    reads = counted(len(trace.reads), "read")
    return f"{reads} of {counted(files, 'file')}, {format_size(size)}{when}"
