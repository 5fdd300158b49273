# SPDX-License-Identifier: Apache-2.0
"""Where ``sync`` and ``sync serve`` put conversions: their common options."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

from firstread.cli.options import PLATFORM, ParsedType, access_options
from firstread.cli.packing import packing_options
from firstread.errors import UsageError

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from firstread.cli.packing import Packing
    from firstread.convert.conversion import ConvertOptions
    from firstread.registry.options import AccessOptions
    from firstread.sync.conversiontarget import Target
    from firstread.sync.pattern import Pattern
    from firstread.sync.syncing import Sync

F = TypeVar("F", bound=Callable[..., Any])

IMAGES = 4  # converted at a time


def _pattern(text: str) -> Pattern:
    from firstread.sync.pattern import parse_pattern

    return parse_pattern(text)


PATTERN = ParsedType("pattern", _pattern)


class Chosen(NamedTuple):
    """What a command line says of the target.

    Args:
        sync: converts.
        sources: the words that are sources.
        access: to registries.
        at_once: images converted at a time.
    """

    sync: Sync
    sources: tuple[str, ...]
    access: AccessOptions
    at_once: int


_OPTIONS = (
    click.option("--attach", is_flag=True, help="Attach conversions to their originals."),
    click.option(
        "--exclude",
        "excluded",
        type=PATTERN,
        multiple=True,
        help="No images that fit this pattern; repeatable.",
    ),
    click.option(
        "--platform",
        type=PLATFORM,
        help="Only the image for this platform.  [default: all of an index]",
    ),
    click.option(
        "--images",
        type=click.IntRange(1, 64),
        default=IMAGES,
        show_default=True,
        help="Images converted at a time; each takes 100 MiB and more.",
    ),
    packing_options,
    access_options,
)


def target_options(command: F) -> F:
    """Add the options for where conversions go, and how they are made.

    `command` gets them as one argument: ``target``, which gives `Chosen` for a block, from the
    words of the user. The engine is open as long.
    """

    @functools.wraps(command)
    def with_target(
        *,
        attach: bool,
        platform: Any,
        images: int,
        packing: Packing,
        access: Any,
        **arguments: Any,
    ) -> Any:
        from firstread.convert.layercache import LayerCache, default_cache_dir
        from firstread.engines.naming import opened_engine
        from firstread.memory import keep_large_buffers
        from firstread.sync.syncing import Sync

        @contextlib.contextmanager
        def opened(words: tuple[str, ...]) -> Iterator[Chosen]:
            # Only the registry itself: a mirror's copy is no base for a conversion.
            direct = replace(access, mirrors=False)
            options = replace(
                packing.options(direct), platform=platform, cache=LayerCache(default_cache_dir())
            )
            keep_large_buffers()
            make, sources = _target(words, attach=attach)
            with opened_engine(packing.engine) as executor:
                yield Chosen(Sync(make(options, executor), images), sources, direct, images)

        return command(target=opened, **arguments)

    result: Any = with_target
    for option in reversed(_OPTIONS):
        result = option(result)
    return result  # type: ignore[no-any-return]


def _target(
    words: tuple[str, ...], *, attach: bool
) -> tuple[Callable[[ConvertOptions, Executor | None], Target], tuple[str, ...]]:
    """Return what makes the target, and the words that are sources."""
    from firstread.sync.beside import Beside
    from firstread.sync.elsewhere import Elsewhere
    from firstread.sync.mapping import parse_mapping

    if attach:
        return Beside, words
    if not words:
        raise UsageError(
            "there is no DEST for the results",
            hint="firstread sync SOURCE... DEST, or firstread sync --attach SOURCE...",
        )
    *sources, destination = words
    return functools.partial(Elsewhere, parse_mapping(destination)), tuple(sources)
