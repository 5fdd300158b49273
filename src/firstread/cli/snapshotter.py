# SPDX-License-Identifier: Apache-2.0
"""``firstread snapshotter``: containerd's view of this node."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from firstread.cli.configoptions import config_option
from firstread.cli.options import access_options, access_request, node_options
from firstread.snapshotter.sockets import ADDRESS, CONTAINERD

if TYPE_CHECKING:
    from firstread.registry.options import AccessOptions


@click.command()
@node_options
@access_options
@click.option(
    "--address",
    type=click.Path(path_type=Path, dir_okay=False),
    default=ADDRESS,
    show_default=True,
    help="Socket that containerd's proxy plugin names.",
)
@click.option(
    "--containerd",
    type=click.Path(path_type=Path, dir_okay=False),
    default=CONTAINERD,
    show_default=True,
    help="Socket of containerd, for the image of a layer that a client does not name.",
)
@click.option(
    "--image-service",
    metavar="PATH",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Socket for the kubelet (imageServiceEndpoint): passes its image calls on to containerd, "
    "and lets the daemon use the credentials of its pulls (docs/kubernetes.md).",
)
@config_option("by default /etc/firstread/config.toml, if it exists")
@click.option(
    "--require-lazy",
    is_flag=True,
    help='Refuse images that are not lazy; like require = "lazy" in the configuration.',
)
@click.option(
    "--except",
    "excepted",
    metavar="PATTERN",
    multiple=True,
    help="Names of images that may be ordinary anyway, such as '*/pause:*'.",
)
@click.option(
    "--remap-ids",
    is_flag=True,
    help="Let the kernel map owners in user namespaces; containerd 2 only (docs/containerd.md).",
)
@click.option("--metrics", metavar="HOST:PORT", default="", help="Serve Prometheus metrics there.")
@click.option(
    "--log-level",
    type=click.Choice(["DEBUG", "INFO", "WARNING", "ERROR"], case_sensitive=False),
    default="INFO",
    show_default=True,
)
def command(
    root: Path,
    run_dir: Path,
    access: AccessOptions,
    address: Path,
    containerd: Path,
    image_service: Path | None,
    config_path: Path | None,
    require_lazy: bool,
    excepted: tuple[str, ...],
    remap_ids: bool,
    metrics: str,
    log_level: str,
) -> None:
    """Serve containerd's snapshots API until SIGTERM.

    Converted images start without their data, ordinary ones as with overlayfs. The snapshotter
    starts the daemon of lazy mounts on demand.
    """
    from firstread.config import load_config
    from firstread.daemon.logs import configure_logging
    from firstread.errors import UsageError
    from firstread.snapshotter.nodepolicy import Policy
    from firstread.snapshotter.startup import Settings, overlay_options, serve

    sockets = [path.resolve() for path in (address, containerd, image_service) if path]
    if len(set(sockets)) < len(sockets):
        raise UsageError("--address, --containerd and --image-service have to be different sockets")
    require_lazy = require_lazy or load_config(config_path).policy.require == "lazy"
    configure_logging(log_level.upper())
    policy = Policy(require_lazy, excepted, remap_ids, overlay_options())
    request = access_request(access)
    settings = Settings(
        root, run_dir, address, policy, containerd.absolute(), metrics, request, image_service
    )
    serve(settings)
