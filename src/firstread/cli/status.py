# SPDX-License-Identifier: Apache-2.0
"""``firstread status``: mounts, store, health."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from firstread.cli import statuswatch
from firstread.cli.options import json_option, node_options
from firstread.cli.output import writing
from firstread.errors import UsageError
from firstread.printable import printable
from firstread.units import counted, format_size

if TYPE_CHECKING:
    from firstread.cache.report import OnlineFigures
    from firstread.control.daemonstatus import FetcherStatus, Status, SupervisorStatus
    from firstread.control.devicestatus import DeviceStatus
    from firstread.mounts.nodestatus import EndpointStatus, MountStatus, Policies


@click.command()
@click.option("--watch", is_flag=True, help="Show mounts and what they fetch, live.")
@click.option("--metrics", is_flag=True, help="Print Prometheus metrics instead.")
@node_options
@json_option
def command(watch: bool, metrics: bool, root: Path, run_dir: Path, as_json: bool) -> None:
    """Show mounts, their fetched data, and the daemon's health."""
    from firstread.control.client import Client
    from firstread.control.daemonstatus import Status
    from firstread.documents import decode, encode

    if metrics and (watch or as_json):
        raise UsageError("--metrics goes with neither --watch nor --json")
    client = Client(run_dir)
    with writing():
        if metrics:
            click.echo(client.text("/metrics"), nl=False)
            return
        if watch and not as_json:
            statuswatch.watch(client)
            return
        while True:
            status = client.get("/status")
            lines = [encode(status)] if as_json else map(printable, _report(decode(status, Status)))
            click.echo("\n".join(lines))
            if not watch:
                return
            time.sleep(statuswatch.INTERVAL_S)


def _report(status: Status) -> list[str]:
    supervisor, fetcher, store = status.supervisor, status.fetcher, status.store
    lines = [
        f"daemon   {_process(supervisor)}, fetcher {_process(fetcher)},"
        f" upgraded {counted(supervisor.upgrades or 0, 'time')},"
        f" restarted {counted(fetcher.restarts, 'time')},"
        f" waiting: {counted(fetcher.waiting_reads, 'read')}",
        *(_device(status.device) if status.device else ()),
        f"store    {counted(store.sectors, 'sector')}, {format_size(store.bytes)}{_bounds(store)}",
    ]
    for mount in status.mounts:
        lines += ["", *_mount(mount)]
    endpoints = [_endpoint(each) for each in status.endpoints]
    return [*lines, *(["", *endpoints] if endpoints else [])]


def _device(device: DeviceStatus) -> list[str]:
    lines = [f"device   {device.name}"]
    if device.wanted not in ("auto", device.name):
        lines[0] += f", until the daemon is stopped: the configuration asks for {device.wanted}"
    return lines + [f"  not {each.device}: {each.reason}" for each in device.passed_over]


def _mount(mount: MountStatus) -> list[str]:
    state = "self-sufficient" if mount.self_sufficient else "lazy"
    causes = ", ".join(f"{n} {cause}" for cause, n in mount.requests_by_cause.items())
    lines = [
        f"{mount.mountpoint}  {mount.image}",
        f"  sectors  {mount.present} of {mount.sectors} present, {state}"
        f"{', pinned' if mount.pinned else ''}{_read_ahead(mount)}",
        f"  fetched  {format_size(mount.bytes_fetched)} in {counted(mount.requests, 'request')}"
        f"{f' ({causes})' if causes else ''} from {mount.source}",
        f"  reads    of {counted(mount.events, 'absent sector')}{_latency(mount)},"
        f" {mount.failed_reads} failed",
    ]
    if policies := _policies(mount.policies):
        lines.append(f"  policy   {policies}")
    if mount.last_error:
        lines.append(f"  error    {mount.last_error}")
    return lines


def _read_ahead(mount: MountStatus) -> str:
    kib = mount.read_ahead_kib
    return "" if kib is None else f", read-ahead {kib} KiB"


def _endpoint(endpoint: EndpointStatus) -> str:
    """Return the health of an endpoint."""
    name, registry, p95_s = endpoint.endpoint, endpoint.registry, endpoint.first_byte_p95_s
    parts = [
        endpoint.state,
        counted(endpoint.requests, "request"),
        f"{endpoint.failures} failed",
        *([f"{endpoint.hedges} for late ones"] if endpoint.hedges else []),
        *([f"first byte p95 {p95_s * 1000:.0f} ms"] if p95_s is not None else []),
    ]
    if endpoint.state != "healthy" and endpoint.last_error:
        parts.append(endpoint.last_error)
    return f"endpoint {name}{f' of {registry}' if registry != name else ''}: {', '.join(parts)}"


def _bounds(store: OnlineFigures) -> str:
    """Return the limit of the store, and its evictions, if there were any."""
    parts = [f" of {format_size(store.limit_bytes)}" if store.limit_bytes else ""]
    became = {
        "evicted": store.evictions,
        "removed": store.removals,
        "were damaged": store.damaged,
    }
    parts += [f"{count} {word}" for word, count in became.items() if count]
    return ", ".join(parts)


def _process(process: SupervisorStatus | FetcherStatus) -> str:
    return f"{process.pid} ({process.version or 'an older version'})"


def _policies(policies: Policies) -> str:
    """Return the policies that differ from the default."""
    parts = []
    if policies.stall_s != 300.0:
        parts.append(f"reads wait {policies.stall_s:g} s at most")
    if policies.on_corruption != "refetch":
        words = {"fail": "fail the read", "quarantine": "are kept aside and fetched again"}
        parts.append(f"wrong bytes {words[policies.on_corruption]}")
    if policies.require:
        parts.append(f"must be {policies.require}")
    return ", ".join(parts)


def _latency(mount: MountStatus) -> str:
    median_s, late_s = mount.first_read_p50_s, mount.first_read_p99_s
    if median_s is None or late_s is None:
        return ""
    return f", waited {median_s * 1000:.1f} ms (p50), {late_s * 1000:.1f} ms (p99)"
