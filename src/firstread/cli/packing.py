# SPDX-License-Identifier: Apache-2.0
"""How and where a verb packs layers: the options of ``convert`` and ``sync``, and their meaning."""

from __future__ import annotations

import functools
from collections.abc import Callable, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from firstread.cli.engineoptions import access_of_workers, engine_options, jobs_of
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
        help="Sectors packed at a time.  [default: one for each CPU; 1 for each task of an engine]",
    ),
    engine_options,
    click.option(
        "--no-hot",
        is_flag=True,
        help="Make no hot sectors. Without --trace they hold what the image's own command reads"
        " first.",
    ),
)


@dataclass(frozen=True)
class Packing:
    """What the options say.

    Args:
        sizes: of a sector, 0 for ``auto``, and of a frame, in bytes.
        level: of zstd.
        jobs: sectors packed at a time; None for as many as fit.
        static: without a trace, hold what the image's own command reads first.
        engine: where layers are packed.
        worker_credentials: reference to those of its workers.
    """

    sizes: tuple[int, int]
    level: int
    jobs: int | None
    static: bool
    engine: str
    worker_credentials: str | None

    def options(
        self, access: AccessOptions, *, login: bool = False, transports: Set[str] = frozenset()
    ) -> ConvertOptions:
        """Return the options of a conversion, without a cache.

        Args:
            access: to source and destination, of this process.
            login: a password came from stdin.
            transports: of source and destination, if they may be others than registries.

        Raises:
            UsageError: the workers of the engine cannot have what the command line gives.
        """
        from firstread.convert.conversion import ConvertOptions
        from firstread.convert.record import Parameters
        from firstread.sectors.format import DEFAULT_SECTOR_SIZE

        access = access_of_workers(
            self.engine, access, self.worker_credentials, login=login, transports=transports
        )
        sector_size, frame_size = self.sizes
        return ConvertOptions(
            parameters=Parameters(sector_size or DEFAULT_SECTOR_SIZE, frame_size, self.level),
            auto_sector_size=not sector_size,
            jobs=jobs_of(self.engine, self.jobs),
            source_options=access,
            destination_options=access,
            static=self.static,
        )


def packing_options(command: F) -> F:
    """Add the options for how and where layers are packed.

    `command` gets them as one argument, ``packing``: a `Packing`.

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
        engine: str,
        worker_credentials: str | None,
        **arguments: Any,
    ) -> Any:
        from firstread.sectors.format import DEFAULT_SECTOR_SIZE, Geometry

        Geometry(sector_size or max(DEFAULT_SECTOR_SIZE, frame_size), frame_size)
        sizes = sector_size, frame_size
        packing = Packing(sizes, level, jobs, not no_hot, engine, worker_credentials)
        return command(packing=packing, **arguments)

    result: Any = with_packing
    for option in reversed(_PACKING):
        result = option(result)
    return result  # type: ignore[no-any-return]
