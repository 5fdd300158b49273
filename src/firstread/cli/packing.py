# SPDX-License-Identifier: Apache-2.0
"""How a verb converts: the options of ``convert`` and ``sync``, and what they mean."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from firstread.cli.options import SIZE, SizeType

if TYPE_CHECKING:
    from firstread.convert.conversion import ConvertOptions
    from firstread.registry.options import AccessOptions

F = TypeVar("F", bound=Callable[..., Any])


class SectorSizeType(SizeType):
    """A number of bytes, or ``auto``, which is 0."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        return 0 if value == "auto" else super().convert(value, param, ctx)


_PACKING = (
    click.option(
        "--sector-size",
        type=SectorSizeType(),
        default="auto",
        show_default=True,
        help="Unit of fetching, such as 4MiB; auto takes a larger one for very large images.",
    ),
    click.option(
        "--frame-size", type=SIZE, default="256KiB", show_default=True, help="Unit of compression."
    ),
    click.option(
        "--level",
        type=click.IntRange(1, 19),
        default=3,
        show_default=True,
        help="Level of zstd.",
    ),
    click.option(
        "--jobs",
        type=click.IntRange(1),
        help="Sectors packed at a time.  [default: one for each CPU]",
    ),
    click.option(
        "--no-hot",
        is_flag=True,
        help="Make no hot sectors. Without --trace they hold what the image's own command reads"
        " first.",
    ),
)


def packing_options(command: F) -> F:
    """Add the options for how layers are packed.

    `command` gets them as one argument: ``packing``, which makes `ConvertOptions`, without a cache,
    of `AccessOptions`.

    Raises:
        UsageError: sizes that do not fit together.
    """

    @functools.wraps(command)
    def with_packing(
        *,
        sector_size: int,
        frame_size: int,
        level: int,
        jobs: int | None,
        no_hot: bool,
        **arguments: Any,
    ) -> Any:
        from firstread.sectors.format import DEFAULT_SECTOR_SIZE, Geometry

        Geometry(sector_size or max(DEFAULT_SECTOR_SIZE, frame_size), frame_size)
        sizes = sector_size, frame_size
        packing = functools.partial(_options, sizes, level, jobs, not no_hot)
        return command(packing=packing, **arguments)

    result: Any = with_packing
    for option in reversed(_PACKING):
        result = option(result)
    return result  # type: ignore[no-any-return]


def _options(
    sizes: tuple[int, int],
    level: int,
    jobs: int | None,
    static: bool,
    access: AccessOptions,
) -> ConvertOptions:
    from firstread.convert.conversion import ConvertOptions
    from firstread.convert.record import Parameters
    from firstread.sectors.format import DEFAULT_SECTOR_SIZE

    sector_size, frame_size = sizes
    return ConvertOptions(
        parameters=Parameters(sector_size or DEFAULT_SECTOR_SIZE, frame_size, level),
        auto_sector_size=not sector_size,
        jobs=jobs or len(os.sched_getaffinity(0)),
        source_options=access,
        destination_options=access,
        static=static,
    )
