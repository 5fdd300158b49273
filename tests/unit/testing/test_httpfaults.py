# SPDX-License-Identifier: Apache-2.0
"""The language of faults of HTTP servers."""

from __future__ import annotations

import pytest

from firstread.testing.httpfaults import Script, parse_script


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("GET", "not a line"),
        ("GET /blobs/ explode", "no fault 'explode'"),
        ("GET /blobs/ hangup", "another number of arguments"),
        ("GET /blobs/ lost 3", "another number of arguments"),
    ],
)
def test_a_line_that_says_nothing_is_refused(line: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_script(f"* / lost\n{line}\n")


def test_lines_are_taken_in_order_and_used_up() -> None:
    script = Script(
        """
        GET /blobs/ hangup 10 x2   # twice
        *   /blobs/ slow 0
        GET /x      lost x*
        """
    )
    assert script.unused() == ["GET /blobs/ hangup", "* /blobs/ slow"]
    picked = [script.pick("GET", "/v2/a/blobs/b") for _ in range(4)]
    assert [fault and fault.action for fault in picked] == ["hangup", "hangup", "slow", None]
    assert script.pick("PUT", "/x") is None
    assert all(script.pick("GET", "/x") for _ in range(9))
    assert script.injected == {"hangup": 2, "slow": 1, "lost": 9}
    assert script.unused() == []


def test_what_happens_by_chance_follows_the_seed() -> None:
    seen = []
    for seed in (1, 1, 2):
        script = Script("GET / flip p0.25", seed=seed)
        seen.append([script.pick("GET", "/") is not None for _ in range(200)])
        assert 20 < script.injected["flip"] < 80
    assert seen[0] == seen[1] != seen[2]
