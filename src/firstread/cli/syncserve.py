# SPDX-License-Identifier: Apache-2.0
"""``firstread sync serve``: converts images as registries tell of their pushes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from firstread.cli.options import SecondsType
from firstread.cli.synctarget import target_options
from firstread.errors import UsageError

if TYPE_CHECKING:
    from firstread.cli.synctarget import Chosen
    from firstread.sync.pattern import Pattern
    from firstread.sync.sources import Wanted

ADDRESS = "127.0.0.1:9467"
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.argument("places", nargs=-1, metavar="SOURCE... [DEST]")
@target_options
@click.option(
    "--listen",
    metavar="HOST:PORT",
    default=ADDRESS,
    show_default=True,
    help="Address to listen on; 0.0.0.0 for all of this machine.",
)
@click.option(
    "--secret-file",
    type=_FILE,
    required=True,
    help="Registries show the first line of this file in their Authorization header.",
)
@click.option("--tls-cert", type=_FILE, help="Certificate to serve HTTPS with.")
@click.option("--tls-key", type=_FILE, help="Its key, if that is in a file of its own.")
@click.option(
    "--watch",
    "watch_s",
    type=SecondsType(1),
    metavar="SECONDS",
    help="Also look at the whole registry, now and with such a pause, for pushes that nobody told"
    " of.",
)
@click.option(
    "--log-level",
    type=click.Choice(["DEBUG", "INFO", "WARNING", "ERROR"], case_sensitive=False),
    default="INFO",
    show_default=True,
)
def serve(
    places: tuple[str, ...],
    target: Callable[[tuple[str, ...]], AbstractContextManager[Chosen]],
    excluded: tuple[Pattern, ...],
    listen: str,
    secret_file: Path,
    tls_cert: Path | None,
    tls_key: Path | None,
    watch_s: float | None,
    log_level: str,
) -> None:
    """Convert images that fit a SOURCE as soon as their registry tells of a push, until SIGTERM.

    Registries send notifications of the CNCF distribution or of Harbor to /notifications. SOURCE
    and DEST are those of 'firstread sync'; all SOURCEs are of the registry that notifies. Images in
    other places are ignored, and so are pushes of conversions.
    """
    import logging
    import threading

    from firstread.control.metricaddress import split_address
    from firstread.daemon.logs import configure_logging
    from firstread.signals import ending_on_signals, unwinding_on_signals
    from firstread.sync.pushservice import PushService
    from firstread.sync.webhook import Secret, WebhookServer, tls_context

    if tls_key is not None and tls_cert is None:
        raise UsageError("--tls-key belongs to a --tls-cert")
    host, port = split_address(listen)
    address = host.removeprefix("[").removesuffix("]"), port
    tls = tls_context(tls_cert, tls_key) if tls_cert is not None else None
    with unwinding_on_signals(), target(places) as chosen:
        service = PushService(chosen.sync, _wanted(chosen, excluded), chosen.access, chosen.at_once)
        configure_logging(log_level.upper())
        secret = Secret(secret_file)
        with (
            WebhookServer(address, secret, service.take, service.metrics, tls) as server,
            ending_on_signals() as await_end,
        ):
            bound, number = server.server_address[:2]
            logging.getLogger("sync").info("listening at %s:%d", bound, number)
            service.start(watch_s)
            threading.Thread(target=server.serve_forever, name="webhook", daemon=True).start()
            await_end()
            server.shutdown()
            service.stop()


def _wanted(chosen: Chosen, excluded: tuple[Pattern, ...]) -> Wanted:
    from firstread.sync.pattern import parse_pattern
    from firstread.sync.sources import Wanted

    if not chosen.sources:
        raise UsageError(
            "there is no SOURCE",
            hint="firstread sync serve SOURCE... DEST, or firstread sync serve --attach SOURCE...",
        )
    patterns = [parse_pattern(word) for word in chosen.sources]
    return Wanted(patterns, only=patterns, excluded=excluded)
