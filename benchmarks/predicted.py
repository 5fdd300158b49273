# SPDX-License-Identifier: Apache-2.0
"""Predicts one start by ``firstread run``, from a trace and a local start.

Owns what `firstread.tune` does not know: the time of the command itself, and how fast the workload
is on this machine, which a start with local data tells.
"""

from __future__ import annotations

from typing import NamedTuple

from firstread.tune.layout import Layout
from firstread.tune.link import LinkSpeed
from firstread.tune.replay import Replayed, replay
from firstread.tune.settings import Setting
from firstread.tune.simulatedlane import Costs
from firstread.tune.workload import Workload, steps

COMMAND_S = 0.10  # from the command to its request to the daemon: `python -m benchmarks.costs`
COSTS = Costs(trips=1)  # plain HTTP


class Predicted(NamedTuple):
    """A start, from the command on, in seconds, and its parts."""

    ready_s: float
    start: Replayed


def predict(
    layout: Layout,
    link: LinkSpeed,
    workload: Workload,
    setting: Setting,
    local_s: float,
) -> Predicted:
    """Predict a cold start.

    Args:
        layout: of the image.
        link: to its registry.
        workload: of the trace.
        setting: that the layout was made for.
        local_s: of a start of the same, from the command on, with all data local.
    """
    work_s = local_s - COMMAND_S - COSTS.mount_s - layout.devices * COSTS.device_s
    paced = workload.paced(max(0.0, work_s))
    costs = COSTS._replace(traced_s=0.0)
    reads = steps(paced, layout)
    start = replay(layout, link, costs, reads, paced.end_s, prefetch=setting.prefetch)
    return Predicted(COMMAND_S + start.ready_s, start)
