# SPDX-License-Identifier: Apache-2.0
"""``run --stats`` if the mount is gone before anybody asks for its counters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from firstread.cli.timeline import Timeline
from firstread.control.client import Client


class Answers(Client):
    """A daemon that gives prepared answers."""

    def __init__(self, *answers: list[dict[str, Any]]) -> None:
        super().__init__(Path("/nonexistent"))
        self._answers = list(answers)

    def get(self, *_arguments: Any, **_options: Any) -> Any:
        return {"mounts": self._answers.pop(0)}


def test_a_container_that_exits_before_anybody_asks() -> None:
    mount = {"mountpoint": "/m", "timeline": {}, "bytes_fetched": 0, "requests": 0}
    timeline = Timeline()
    timeline.mounted(mount, Answers([mount], []))
    timeline.fetched()
    assert timeline.report()[-1] == "  fetched      unknown: the image is no longer mounted"
