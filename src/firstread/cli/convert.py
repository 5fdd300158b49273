# SPDX-License-Identifier: Apache-2.0
"""``firstread convert``: an image in, a block-device image out."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import click

from firstread.cli.engineoptions import COMMANDS, access_of_workers, engine_options, jobs_of
from firstread.cli.hotlines import TRACE_HELP, TRACES, hot_lines
from firstread.cli.options import (
    PLATFORM,
    REFERENCE,
    SIZE,
    SectorSizeType,
    access_options,
    json_option,
    login_options,
)
from firstread.cli.output import report, show
from firstread.errors import UsageError
from firstread.units import counted, format_size

if TYPE_CHECKING:
    from firstread.convert.conversion import ConvertOptions
    from firstread.convert.outcome import Attachments, Conversion
    from firstread.oci.platform import Platform
    from firstread.oci.reference import Reference
    from firstread.registry.logins import Logins
    from firstread.registry.options import AccessOptions

TAKE_ANOTHER = "nodes take another conversion attached to it"
MAX_NAMES, MAX_NAME = 16, 64  # platforms in a line, characters of each


@click.command()
@click.argument("source", type=REFERENCE)
@click.argument("destination", metavar="DEST", type=REFERENCE, required=False)
@click.option(
    "--attach",
    is_flag=True,
    help="Attach the result to SOURCE itself, so that SOURCE names both.",
)
@click.option(
    "--platform",
    type=PLATFORM,
    help="Which image of an index, such as linux/arm64.  [default: this machine's; with"
    " --attach every one for Linux]",
)
@click.option(
    "--sector-size",
    type=SectorSizeType(),
    default="auto",
    show_default=True,
    help="Unit of fetching, such as 4MiB; auto takes a larger one for very large images.",
)
@click.option(
    "--frame-size", type=SIZE, default="256KiB", show_default=True, help="Unit of compression."
)
@click.option(
    "--level", type=click.IntRange(1, 19), default=3, show_default=True, help="Level of zstd."
)
@click.option(
    "--jobs",
    type=click.IntRange(1),
    help="Sectors packed at a time.  [default: one for each CPU; 1 for each task of an engine]",
)
@engine_options
@click.option(
    "--no-hot",
    is_flag=True,
    help="Make no hot sectors. Without --trace they hold what the image's own command reads first.",
)
@click.option(
    "--tasks",
    is_flag=True,
    help="Pack nothing: print the tasks of its layers as JSON, for 'firstread convert-layer'.",
)
@click.option("--trace", "traces", type=TRACES, multiple=True, help=TRACE_HELP)
@click.option(
    "--no-cache",
    is_flag=True,
    help="Pack all layers again, without the cache (in FIRSTREAD_CACHE, else in"
    " ~/.cache/firstread).",
)
@access_options
@login_options
@json_option
def command(
    source: Reference,
    destination: Reference | None,
    attach: bool,
    platform: Platform | None,
    sector_size: int,
    frame_size: int,
    level: int,
    jobs: int | None,
    engine: str,
    worker_credentials: str | None,
    no_hot: bool,
    tasks: bool,
    traces: tuple[Path, ...],
    no_cache: bool,
    access: AccessOptions,
    login: tuple[str, str] | None,
    as_json: bool,
) -> None:
    """Turn the image SOURCE into a block-device image and tag it as DEST.

    Write SOURCE and DEST as for skopeo: docker://registry/repository:tag (docker:// is optional),
    oci:DIRECTORY:TAG, oci-archive:FILE; SOURCE also docker-archive:FILE.

    A layer that this machine has packed before, or that the image at DEST contains, is neither
    downloaded nor packed again. A password on stdin is for the registry of DEST, or for that of
    SOURCE if DEST is on a disk or left out.

    With --attach the result goes beside SOURCE, as an OCI referrer of its manifest: nodes with
    firstread find it by the name or digest of SOURCE, all others pull SOURCE as before. DEST is
    then an optional further name.
    """
    from firstread.memory import keep_large_buffers
    from firstread.sectors.format import DEFAULT_SECTOR_SIZE, Geometry
    from firstread.signals import unwinding_on_signals
    from firstread.traces.tracedirs import read_traces

    if destination is None and not attach:
        raise UsageError(
            "there is no DEST for the result",
            hint="firstread convert SOURCE DEST, or firstread convert --attach SOURCE",
        )
    if no_hot and traces:
        raise UsageError(
            "--no-hot makes no hot sectors, which a trace is for",
            hint="leave out one of --no-hot and --trace",
        )
    Geometry(sector_size or max(DEFAULT_SECTOR_SIZE, frame_size), frame_size)
    # Only the registry itself: a mirror's copy is no base for a conversion.
    access = dataclasses.replace(
        access, mirrors=False, logins=registry_logins(source, destination, login)
    )
    places = [place.transport for place in (source, destination) if place is not None]
    engine = COMMANDS if tasks else engine
    access = access_of_workers(
        engine, access, worker_credentials, login=login is not None, transports=set(places)
    )
    jobs = jobs_of(engine, jobs)
    keep_large_buffers()
    options = _options(platform, (sector_size, frame_size), level, jobs, access, not no_cache)
    options = dataclasses.replace(options, traces=read_traces(traces), static=not no_hot)
    if tasks:
        _show_tasks(source, destination, options, attach=attach)
        return
    with unwinding_on_signals():
        document, lines = _convert(
            source, destination, options, engine, attach=attach, quiet=as_json
        )
    if as_json:
        show(document)
    else:
        report(lines)


def _options(
    platform: Platform | None,
    sizes: tuple[int, int],
    level: int,
    jobs: int,
    access: AccessOptions,
    reuse: bool,
) -> ConvertOptions:
    from firstread.convert.conversion import ConvertOptions
    from firstread.convert.layercache import LayerCache, default_cache_dir
    from firstread.convert.record import Parameters
    from firstread.sectors.format import DEFAULT_SECTOR_SIZE

    sector_size, frame_size = sizes
    return ConvertOptions(
        platform=platform,
        parameters=Parameters(sector_size or DEFAULT_SECTOR_SIZE, frame_size, level),
        auto_sector_size=not sector_size,
        jobs=jobs,
        source_options=access,
        destination_options=access,
        cache=LayerCache(default_cache_dir()) if reuse else None,
        reuse=reuse,
    )


def _convert(
    source: Reference,
    destination: Reference | None,
    options: ConvertOptions,
    engine: str,
    *,
    attach: bool,
    quiet: bool,
) -> tuple[object, list[str]]:
    """Convert; return the result as JSON, and as lines for people."""
    from firstread.cli.progressdisplay import LayerProgress
    from firstread.convert.attach import attach as convert_attached
    from firstread.convert.conversion import convert
    from firstread.engines.naming import opened_engine

    with opened_engine(engine) as executor, LayerProgress(quiet=quiet) as progress:
        if attach or destination is None:
            attached = convert_attached(
                source, options, destination=destination, progress=progress, executor=executor
            )
            return attached, _attached_lines(attached)
        result = convert(source, destination, options, progress=progress, executor=executor)
        return result, _lines(result.destination, result)


def _show_tasks(
    source: Reference, destination: Reference | None, options: ConvertOptions, *, attach: bool
) -> None:
    """Print the tasks of an image as a JSON array, one a line."""
    from firstread.convert.conversion import layer_tasks

    if attach or destination is None:
        raise UsageError("--tasks needs a DEST, where the tasks put the layers", hint="see --help")
    lines = [task.encode() for task in layer_tasks(source, destination, options)]
    report(["[", *(f"{line}," for line in lines[:-1]), *lines[-1:], "]"])


def _attached_lines(attached: Attachments) -> list[str]:
    lines = []
    for image, chosen in zip(attached.images, attached.chosen, strict=True):
        title = f"{attached.source} for {image.platform or 'an unknown platform'}"
        lines += [*_lines(title, image), f"  attached  to {image.attached_to}"]
        if chosen != image.digest:
            lines.append(f"  note      {TAKE_ANOTHER}: {chosen}")
    return [
        *lines,
        *(f"{image.platform}: left alone, since {image.reason}" for image in attached.skipped),
    ]


def registry_logins(
    source: Reference, destination: Reference | None, login: tuple[str, str] | None
) -> Logins | None:
    """Return the password for the one registry that it belongs to."""
    from firstread.registry.logins import Credentials, Logins

    if login is None:
        return None
    place = destination if destination and destination.transport == "docker" else source
    if place.transport != "docker":
        raise UsageError("a password makes no sense here: there is no registry")
    logins = Logins()
    logins.put(place.host, Credentials.of(*login))
    return logins


def _lines(title: str, result: Conversion) -> list[str]:
    ratio = result.size / result.source_size if result.source_size else 0
    known = sum(layer.how == "known" for layer in result.layers)
    lines = [
        title,
        f"  digest    {result.digest}{'  (as before)' if result.unchanged else ''}",
        f"  layers    {len(result.layers)}, {known} of them packed before",
        f"  content   {format_size(result.content_size)}, {counted(result.inodes, 'inode')},"
        f" {counted(result.sectors, 'sector')} of {format_size(result.sector_size)}",
        f"  size      {format_size(result.size)}, {ratio:.2f} of the source's"
        f" {format_size(result.source_size)}",
        f"  metadata  {format_size(result.metadata_size)}, fetched before a mount",
        *hot_lines(result.hot),
    ]
    for layer in result.layers:
        if layer.dropped_xattrs:
            names = ", ".join(layer.dropped_xattrs)
            lines.append(f"  left out  extended attributes that Linux cannot hold: {names}")
    if others := result.other_platforms:
        more = f" and {len(others) - MAX_NAMES} more" if len(others) > MAX_NAMES else ""
        names = ", ".join(name[:MAX_NAME] for name in others[:MAX_NAMES])
        lines.append(f"  left out  {names}{more}, also in the index: --platform chooses one")
    packed = sum(layer.content_size for layer in result.layers if layer.how == "packed")
    rate = f", {format_size(packed / max(result.seconds, 1e-3))}/s of content" if packed else ""
    lines.append(f"  took      {result.seconds:.1f} s{rate}")
    return lines
