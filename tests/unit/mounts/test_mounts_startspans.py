# SPDX-License-Identifier: Apache-2.0
"""The spans of a start."""

from __future__ import annotations

import pytest

from firstread.fetch.imagehistory import ImageHistory, ReadWaited, Step
from firstread.fetch.stats import ImageStats
from firstread.mounts.startspans import (
    MOST_READS,
    RECENT_S,
    PullFacts,
    StartFacts,
    checked_context,
    spans_of,
)

POD = f"00-{'a' * 32}-{'b' * 16}-01"
PULL = f"00-{'c' * 32}-{'d' * 16}-01"
OFFSET_S = 1_700_000_000.0


def start(reads: list[ReadWaited], pull: PullFacts | None = None, context: str = "") -> StartFacts:
    steps = [Step("resolve", 0, 0), Step("metadata", 0, 0), Step("mount", 0.5, 0.25)]
    history = ImageHistory(OFFSET_S + 100, 9.0, steps, reads, [], [], 0)
    stats = ImageStats()
    stats.add_bytes(7, "hot")
    figures = stats.figures()
    return StartFacts("r/a:1", "sha256:0", "fuse", context, pull, history, OFFSET_S, figures)


def test_a_start_has_all_its_parts_in_order() -> None:
    reads = [ReadWaited(2.0, 0.5, 1, 0, 4096), ReadWaited(1.0, 0.25, 0, 8192, 512)]
    spans = spans_of(start(reads, PullFacts(97.0, 98.0, 99.5)))
    assert [(span.name, span.began - OFFSET_S, span.seconds, span.parent) for span in spans] == [
        ("firstread.start", 97.0, 5.5, None),
        ("pull", 97.0, 2.5, 0),
        ("resolve", 97.0, 1.0, 1),
        ("metadata", 98.0, 1.5, 1),
        ("mount", 100.5, 0.25, 0),
        ("first reads", 101.0, 1.5, 0),
        ("first read", 101.0, 0.25, 5),
        ("first read", 102.0, 0.5, 5),
        ("ready", 102.5, 0.0, 0),
    ]
    assert spans[0].attributes["container.image.name"] == "r/a:1"
    assert spans[0].attributes["firstread.fetched_bytes.hot"] == 7
    assert spans[5].attributes["firstread.reads"] == 2
    assert spans[6].attributes["firstread.offset"] == 8192


def test_a_warm_start_has_no_pull_and_no_reads() -> None:
    assert [span.name for span in spans_of(start([]))] == ["firstread.start", "mount", "ready"]


def test_a_pull_of_long_ago_is_not_part_of_a_start() -> None:
    late = PullFacts(0.0, 1.0, 99.0 - RECENT_S)
    assert [span.name for span in spans_of(start([], late))][1] == "mount"


def test_the_longest_reads_have_spans() -> None:
    reads = [ReadWaited(float(n), n / 1000, n, 0, 1) for n in range(3 * MOST_READS)]
    found = [span for span in spans_of(start(reads)) if span.name == "first read"]
    assert [span.attributes["firstread.sector"] for span in found] == list(
        range(2 * MOST_READS, 3 * MOST_READS)
    )


@pytest.mark.parametrize(
    ("pod", "pull", "contexts"),
    [
        ("", "", [("", None), ("", 0)]),
        (POD, "", [(POD, None), ("", 0)]),
        ("", PULL, [(PULL, None), ("", 0)]),
        (POD, PULL, [(POD, None), (PULL, None)]),
    ],
)
def test_spans_hang_below_the_traces_of_those_who_asked(
    pod: str, pull: str, contexts: list[tuple[str, int | None]]
) -> None:
    spans = spans_of(start([], PullFacts(97.0, 98.0, 99.0, pull), pod))
    assert [(span.context, span.parent) for span in spans[:2]] == contexts


@pytest.mark.parametrize(
    ("text", "is_one"), [(POD, True), ("", False), (POD.upper(), False), (f"{POD}\n", False)]
)
def test_a_context_that_is_none_is_dropped(text: str, is_one: bool) -> None:
    assert checked_context(text) == (text if is_one else "")
