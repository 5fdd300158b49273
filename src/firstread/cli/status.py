# SPDX-License-Identifier: Apache-2.0
"""``firstread status``: mounts, store, health."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click

from firstread.cli.options import json_option, node_options
from firstread.cli.output import writing
from firstread.errors import UsageError
from firstread.printable import printable
from firstread.units import counted, format_size


@click.command()
@click.option("--watch", is_flag=True, help="Show it again every second.")
@click.option("--metrics", is_flag=True, help="Print Prometheus metrics instead.")
@node_options
@json_option
def command(watch: bool, metrics: bool, root: Path, run_dir: Path, as_json: bool) -> None:
    """Show what is mounted, what was fetched for it, and whether the daemon is well."""
    from firstread.node.client import Client

    if metrics and (watch or as_json):
        raise UsageError("--metrics goes with neither --watch nor --json")
    client = Client(run_dir)
    with writing():
        if metrics:
            click.echo(client.text("/metrics"), nl=False)
            return
        while True:
            status = client.get("/status")
            if watch and not as_json:
                click.clear()
            lines = [json.dumps(status)] if as_json else map(printable, _report(status))
            click.echo("\n".join(lines))
            if not watch:
                return
            time.sleep(1)


def _report(status: dict[str, Any]) -> list[str]:
    fetcher, store = status["fetcher"], status["store"]
    lines = [
        f"daemon   {_process(status['supervisor'])}, fetcher {_process(fetcher)},"
        f" upgraded {counted(status['supervisor'].get('upgrades', 0), 'time')},"
        f" restarted {counted(fetcher['restarts'], 'time')},"
        f" waiting: {counted(fetcher['waiting_reads'], 'read')}",
        f"store    {counted(store['sectors'], 'sector')},"
        f" {format_size(store['bytes'])}{_bounds(store)}",
    ]
    for mount in status["mounts"]:
        lines += ["", f"{mount['mountpoint']}  {mount['image']}"]
        if "sectors" not in mount:
            continue
        state = "self-sufficient" if mount["self_sufficient"] else "lazy"
        causes = ", ".join(f"{n} {cause}" for cause, n in mount["requests_by_cause"].items())
        lines += [
            f"  sectors  {mount['present']} of {mount['sectors']} present, {state}"
            f"{', pinned' if mount['pinned'] else ''}",
            f"  fetched  {format_size(mount['bytes_fetched'])} in"
            f" {counted(mount['requests'], 'request')}"
            f"{f' ({causes})' if causes else ''} from {mount['source']}",
            f"  reads    of {counted(mount['events'], 'absent sector')}{_latency(mount)},"
            f" {mount['failed_reads']} failed",
        ]
        if policies := _policies(mount.get("policies", {})):
            lines.append(f"  policy   {policies}")
        if mount["last_error"]:
            lines.append(f"  error    {mount['last_error']}")
    endpoints = [_endpoint(each) for each in status.get("endpoints", [])]
    return [*lines, *(["", *endpoints] if endpoints else [])]


def _endpoint(endpoint: dict[str, Any]) -> str:
    """Return how an endpoint of a registry fares."""
    name, registry, p95_s = (endpoint[n] for n in ("endpoint", "registry", "first_byte_p95_s"))
    parts = [
        endpoint["state"],
        counted(endpoint["requests"], "request"),
        f"{endpoint['failures']} failed",
        *([f"{endpoint['hedges']} for late ones"] if endpoint["hedges"] else []),
        *([f"first byte p95 {p95_s * 1000:.0f} ms"] if p95_s is not None else []),
    ]
    if endpoint["state"] != "healthy" and endpoint["last_error"]:
        parts.append(endpoint["last_error"])
    return f"endpoint {name}{f' of {registry}' if registry != name else ''}: {', '.join(parts)}"


def _bounds(store: dict[str, Any]) -> str:
    """Return the limit of the store, and what became of sectors, if there is something to say."""
    limit = store.get("limit_bytes")
    parts = [f" of {format_size(limit)}" if limit else ""]
    words = {"evictions": "evicted", "removals": "removed", "damaged": "were damaged"}
    parts += [f"{store[name]} {word}" for name, word in words.items() if store.get(name)]
    return ", ".join(parts)


def _process(process: dict[str, Any]) -> str:
    return f"{process['pid']} ({process.get('version', 'an older version')})"


def _policies(policies: dict[str, Any]) -> str:
    """Return what is not as it is by default."""
    parts = []
    if policies.get("stall_s", 300.0) != 300.0:
        parts.append(f"reads wait {policies['stall_s']:g} s at most")
    if policies.get("on_corruption", "refetch") != "refetch":
        words = {"fail": "fail the read", "quarantine": "are kept aside and fetched again"}
        parts.append(f"wrong bytes {words[policies['on_corruption']]}")
    if policies.get("require"):
        parts.append(f"must be {policies['require']}")
    return ", ".join(parts)


def _latency(mount: dict[str, Any]) -> str:
    if mount["first_read_p50_s"] is None:
        return ""
    median, late = mount["first_read_p50_s"] * 1000, mount["first_read_p99_s"] * 1000
    return f", waited {median:.1f} ms (p50), {late:.1f} ms (p99)"
