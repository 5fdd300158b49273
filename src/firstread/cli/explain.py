# SPDX-License-Identifier: Apache-2.0
"""What ``--explain`` prints: what the node fetches of an image beside what is read, and why."""

from __future__ import annotations

from typing import Any

import click

from firstread.units import format_size

explain_option = click.option(
    "--explain",
    is_flag=True,
    help="Say what is fetched though nobody reads it, and the numbers behind that.",
)

_REST = {
    "never": "the others when they are read",
    "at once": "the others right behind them: the link is so near that all of it comes as soon"
    " as a few cold reads",
    "when quiet": "the others in the background, once no absent sector has been read for a while",
}


def explained(mount: dict[str, Any]) -> list[str]:
    """Return lines that say what is fetched for a mount.

    Args:
        mount: the daemon's answer; an older daemon's has no plan.
    """
    plan = mount.get("prefetch")
    if not plan:
        return ["prefetch     unknown: the daemon is of an older version, or the mount is gone"]
    if plan["mode"] == "none":
        order = "nothing; all sectors when they are read"
    else:
        first = "around a read of them" if plan.get("is_guess") else "first"
        order = f"hot sectors {first}, {_REST.get(plan['rest'], plan['rest'])}"
    return [
        f"prefetch     {plan['mode']}: {order}",
        f"hot sectors  {_amount(plan['hot_bytes'], plan['hot_s'])}",
        f"all sectors  {_amount(plan['all_bytes'], plan['all_s'])}"
        + ("; no pull is ready before" if plan["all_s"] is not None else ""),
        f"link         {_link(plan['bytes_per_s'], plan['latency_s'])}",
    ]


def _amount(count: int, seconds: float | None) -> str:
    return f"{format_size(count)} to come" + (
        f", in {seconds:.2f} s" if seconds is not None else ""
    )


def _link(bytes_per_s: float | None, latency_s: float | None) -> str:
    if bytes_per_s is None or latency_s is None:
        return "not measured yet"
    return f"{bytes_per_s * 8 / 1e6:.0f} Mbit/s, an answer begins after {latency_s * 1000:.1f} ms"
