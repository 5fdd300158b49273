# SPDX-License-Identifier: Apache-2.0
"""What ``firstread status`` says of a node's device (docs/json.md).

A daemon chooses its device before it loads anything that serves: this needs no more than documents.
"""

from __future__ import annotations

from firstread.documents import Document


class PassedOver(Document):
    """A device that the daemon did not choose, though it comes before the one that it has.

    device: its name
    reason: what does not work, or who did not want it
    fix: what may help; null: nothing
    """

    device: str
    reason: str
    fix: str | None


class DeviceStatus(Document):
    """How the kernel asks this node for bytes ([node.md](node.md#devices)).

    name: such as `fanotify`
    passed_over: better devices, and why it is none of them
    wanted: what the configuration says now; it counts when a daemon starts that replaces none
    """

    name: str
    passed_over: list[PassedOver]
    wanted: str = "auto"
