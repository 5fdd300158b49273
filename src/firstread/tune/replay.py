# SPDX-License-Identifier: Apache-2.0
"""Replays a start: the reads of a trace on a layout, over a link. Pure.

Owns the workload: it asks for its reads one after the other, and works between them as long as the
trace says. `firstread.tune.simulatedlane` owns everything between a miss and its bytes, and
docs/tune.md says what is not modelled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from firstread.fetch.startplan import Mode
from firstread.tune.layout import Layout, Need
from firstread.tune.link import LinkSpeed
from firstread.tune.simulatedlane import Costs, SimulatedLane
from firstread.units import KiB

MANIFEST_BYTES = 4 * KiB  # of a manifest, and of a config


class Step(NamedTuple):
    """A read of a workload.

    Args:
        think_s: from the answer of the read before to this one, in seconds.
        needs: units that it waits for.
    """

    think_s: float
    needs: Sequence[Need]


class Replayed(NamedTuple):
    """A replayed start.

    Args:
        ready_s: from the beginning of the pull, in seconds.
        waits: seconds that each read waited.
        bytes: that arrived until then, metadata included.
        requests: made until then.
    """

    ready_s: float
    waits: Sequence[float]
    bytes: float
    requests: int


def replay(
    layout: Layout,
    link: LinkSpeed,
    costs: Costs,
    steps: Sequence[Step],
    end_s: float = 0.0,
    *,
    prefetch: Mode = "none",
    is_traced: bool = True,
) -> Replayed:
    """Return how a start goes.

    Args:
        layout: of the image.
        link: to its registry.
        costs: of the node.
        steps: the reads of the workload, in order.
        end_s: from the last read to the moment at which the workload is ready.
        prefetch: what the node fetches though nobody reads it.
        is_traced: what is hot comes from a trace, not from a start set.
    """
    lane = SimulatedLane(layout, link, costs)
    lane.fetch(MANIFEST_BYTES)
    lane.fetch(MANIFEST_BYTES)
    if is_traced:  # what is hot is asked for beside the metadata: docs/adr/0113
        lane.fetch(layout.metadata, lambda: lane.prefetch(prefetch))
    else:
        lane.fetch(layout.metadata)
    lane.work(costs.metadata_s + layout.metadata / costs.metadata_bytes_per_s)
    if not is_traced:
        lane.prefetch(prefetch, is_traced=False)
    lane.work(costs.mount_s + layout.devices * costs.device_s)
    lane.is_mounted = True
    waits = []
    for step in steps:
        lane.work(max(0.0, step.think_s - costs.traced_s))
        asked = lane.now
        for need in step.needs:  # the kernel asks for one chunk after the other
            if not lane.is_whole(need.unit):
                lane.read(need)
                lane.pass_time(lane.now + costs.event_s)
        waits.append(lane.now - asked)
    lane.work(end_s)
    return Replayed(lane.now, waits, lane.bytes, lane.requests)
