# SPDX-License-Identifier: Apache-2.0
"""``firstread tune``: which setting would start an image soonest, from its traces."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import click

from firstread.cli.hotlines import TRACES
from firstread.cli.options import REFERENCE, SIZE, SecondsType, access_options, json_option
from firstread.cli.output import check_output, report, show
from firstread.errors import UsageError

if TYPE_CHECKING:
    from firstread.oci.reference import Reference
    from firstread.registry.options import AccessOptions
    from firstread.tune.link import LinkSpeed

T = TypeVar("T")

MAX_ITEMS = 16  # of an option with several values
MAX_TRACES = 64
LINKS = "25Mbit/80ms,100Mbit/20ms,1Gbit/1ms"


class ListType(click.ParamType[tuple[Any, ...]], Generic[T]):
    """Several values with commas between them.

    Args:
        item: converts one of them.
    """

    name = "list"

    def __init__(self, item: Callable[[str], T]) -> None:
        self._item = item

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[T, ...]:
        if isinstance(value, tuple):
            return value
        words = [word for word in value.split(",", MAX_ITEMS) if word]
        if not 0 < len(words) <= MAX_ITEMS:
            self.fail(f"give 1 to {MAX_ITEMS} values, with commas between them", param, ctx)
        return tuple(dict.fromkeys(map(self._item, words)))


def _link(text: str) -> LinkSpeed:
    from firstread.tune.link import parse_link

    return parse_link(text)


def _one_of(*names: str) -> Callable[[str], str]:
    def check(text: str) -> str:
        if text not in names:
            raise UsageError(f"{text!r} is not one of {', '.join(names)}")
        return text

    return check


_SIZES = ListType(lambda text: SIZE.convert(text, None, None))


@click.command()
@click.argument("reference", metavar="REF", type=REFERENCE)
@click.option(
    "--trace",
    "traces",
    type=TRACES,
    multiple=True,
    required=True,
    help="A trace of a start whose data was local, or a directory of them; repeatable.",
)
@click.option(
    "--local",
    "local_s",
    type=SecondsType(0),
    help="From the mount to ready with all data local.  [default: as in the trace]",
)
@click.option(
    "--link",
    "links",
    type=ListType(_link),
    default=LINKS,
    show_default=True,
    help="Rate and round trip time to the registry, or loopback.",
)
@click.option(
    "--layout",
    "kinds",
    type=ListType(_one_of("plain", "hot", "files", "chunks")),
    default="plain,hot,files,chunks",
    show_default=True,
    help="What is fetched: sectors, sectors with hot ones, whole files, chunks of files.",
)
@click.option(
    "--sector-size",
    "sector_sizes",
    type=_SIZES,
    default="256KiB,512KiB,1MiB,2MiB,4MiB",
    show_default=True,
    help="Sizes of sectors, and of chunks of files.",
)
@click.option(
    "--frame-size", "frame_sizes", type=_SIZES, help="Sizes of frames.  [default: the image's]"
)
@click.option(
    "--granule",
    "granules",
    type=_SIZES,
    default="4KiB",
    show_default=True,
    help="Sizes to which hot ranges are padded.",
)
@click.option(
    "--prefetch",
    type=ListType(_one_of("none", "hot", "all")),
    default="hot",
    show_default=True,
    help="What the node fetches though nobody reads it.",
)
@click.option("--cache", "limits", type=_SIZES, help="Sizes of the store, for its hit ratio.")
@click.option(
    "--repeat",
    type=click.IntRange(1, 1000),
    default=3,
    show_default=True,
    help="Starts of each trace, in turn, for --cache.",
)
@click.option(
    "--workers", type=click.IntRange(1, 64), default=4, show_default=True, help="As the node's."
)
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    help="Draw the table into a .svg or .png; needs matplotlib.",
)
@access_options
@json_option
def command(
    reference: Reference,
    traces: tuple[Path, ...],
    local_s: float | None,
    links: tuple[LinkSpeed, ...],
    kinds: tuple[str, ...],
    sector_sizes: tuple[int, ...],
    frame_sizes: tuple[int, ...] | None,
    granules: tuple[int, ...],
    prefetch: tuple[Any, ...],
    limits: tuple[int, ...] | None,
    repeat: int,
    workers: int,
    plot: Path | None,
    access: AccessOptions,
    as_json: bool,
) -> None:
    """Simulate starts of the converted image REF with other settings, and choose one.

    Each trace is replayed for each combination of layout, sizes and link. Options with several
    values take them with commas between them. Nothing is converted: only the image's records and
    some frame tables are read. docs/tune.md says what is modelled.
    """
    from firstread.cli.opening import opened_image
    from firstread.traces.tracedirs import read_traces
    from firstread.tune.comparison import Question, tune
    from firstread.tune.plot import check_plot, draw
    from firstread.tune.settings import settings
    from firstread.tune.simulatedlane import Costs
    from firstread.tune.tuned import lines

    if plot is not None:
        check_output(plot)
        check_plot(plot)
    recorded = read_traces(traces)
    if len(recorded) > MAX_TRACES:
        raise UsageError(f"these are {len(recorded)} traces, {MAX_TRACES} at most can be compared")
    costs = Costs(workers=workers, trips=1 if access.plain_http else 2)
    with opened_image(reference, access) as (repository, resolved, image):
        frame_sizes = frame_sizes or (image.index.geometry.frame_size,)
        compared = settings(kinds, sector_sizes, frame_sizes, granules, prefetch)
        question = Question(compared, links, costs, limits or (), repeat, local_s)
        tuned = tune(repository, resolved, image, recorded, question)
    if plot is not None:
        draw(tuned, plot)
    if as_json:
        show(tuned)
    else:
        report(lines(tuned))
