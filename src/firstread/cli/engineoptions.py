# SPDX-License-Identifier: Apache-2.0
"""The options that say where layers are packed."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Set
from typing import TYPE_CHECKING, Any, TypeVar

import click

from firstread.cli.options import ParsedType
from firstread.errors import UsageError

if TYPE_CHECKING:
    from firstread.registry.options import AccessOptions

LOCAL = "local"
COMMANDS = "commands"  # --tasks: somebody else runs 'firstread convert-layer'

F = TypeVar("F", bound=Callable[..., Any])


def _engine(text: str) -> str:
    from firstread.engines.naming import check_engine

    return check_engine(text)


def _credentials(text: str) -> str:
    from firstread.convert.layertask import check_credentials

    check_credentials(text)
    return text


def engine_options(command: F) -> F:
    """Add the options that say where layers are packed: ``engine`` and ``worker_credentials``."""
    result: Any = command
    for option in (
        click.option(
            "--worker-credentials",
            type=ParsedType("credentials", _credentials),
            metavar="REFERENCE",
            help="What the workers log in with: secret:NAME, or the absolute path of a docker"
            " config file there.  [default: each worker's own configuration]",
        ),
        click.option(
            "--engine",
            type=ParsedType("engine", _engine),
            default=LOCAL,
            show_default=True,
            metavar="ENGINE",
            help="Where layers are packed: in this process, or on the workers of"
            " dask://HOST:PORT (docs/cluster.md).",
        ),
    ):
        result = option(result)
    return result  # type: ignore[no-any-return]


def jobs_of(engine: str, jobs: int | None) -> int:
    """Return how many sectors are packed at a time, by each task of an engine."""
    return jobs or (len(os.sched_getaffinity(0)) if engine == LOCAL else 1)


def access_of_workers(
    engine: str,
    access: AccessOptions,
    worker_credentials: str | None,
    *,
    login: bool,
    transports: Set[str],
) -> AccessOptions:
    """Return the access of a conversion whose layers an engine packs.

    Args:
        engine: where; `COMMANDS` for who knows where.
        access: of this process.
        worker_credentials: reference to those of the workers.
        login: a password came from stdin.
        transports: of source and destination.

    Raises:
        UsageError: workers cannot have what the command line gives, or there are none.
    """
    if engine == LOCAL:
        if worker_credentials:
            raise UsageError(
                "--worker-credentials is for the workers of an --engine",
                hint="here, --authfile names a file with credentials",
            )
        return access
    if login:
        raise UsageError(
            "a password on stdin does not reach the workers of an engine",
            hint="give each worker its own docker configuration, or use --worker-credentials",
        )
    others = transports - {"docker"}
    if others and engine != COMMANDS:
        raise UsageError(
            f"the workers of an engine do not see {min(others)}: on this machine",
            hint="name images in a registry: docker://HOST/REPOSITORY:TAG",
        )
    return dataclasses.replace(access, worker_credentials=worker_credentials)
