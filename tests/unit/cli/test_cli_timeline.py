# SPDX-License-Identifier: Apache-2.0
"""What ``run --stats`` says when the mount is gone before it was asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from firstread.cli.timeline import Timeline
from firstread.node.client import Client


class Answers(Client):
    """A daemon that answers what it was told."""

    def __init__(self, *answers: list[dict[str, Any]]) -> None:
        super().__init__(Path("/nonexistent"))
        self._answers = list(answers)

    def get(self, *_arguments: Any, **_options: Any) -> Any:
        return {"mounts": self._answers.pop(0)}


def test_a_container_that_is_done_before_anyone_asks() -> None:
    mount = {"mountpoint": "/m", "timeline": {}, "bytes_fetched": 0, "requests": 0}
    timeline = Timeline()
    timeline.mounted(mount, Answers([mount], []))
    timeline.fetched()
    assert timeline.report()[-1] == "  fetched      unknown: the image is not mounted any more"
