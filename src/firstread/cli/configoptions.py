# SPDX-License-Identifier: Apache-2.0
"""The options that name files of configuration: the node's own, and containerd's of its hosts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


def config_option(default: str) -> Callable[[F], F]:
    """Return the option for the configuration of a node; `default` says which counts without it."""
    return click.option(
        "--config",
        "config_path",
        envvar="FIRSTREAD_CONFIG",
        show_envvar=True,
        type=click.Path(path_type=Path, dir_okay=False),
        help=f"Configuration (docs/node.md); {default}.",
    )


def hosts_option(default: str) -> Callable[[F], F]:
    """Return the option for containerd's directories of hosts."""
    return click.option(
        "--hosts-dir",
        "hosts_dirs",
        multiple=True,
        type=click.Path(path_type=Path),
        envvar="FIRSTREAD_HOSTS_DIR",
        show_envvar=True,
        help="Directory of HOST/hosts.toml, in containerd's format; repeatable."
        f"  [default: {default}]",
    )
