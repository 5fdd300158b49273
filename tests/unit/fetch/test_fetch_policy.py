# SPDX-License-Identifier: Apache-2.0
"""Which policy holds where."""

from __future__ import annotations

from itertools import permutations

import msgspec
import pytest

from firstread.config import PolicyTable
from firstread.fetch.policy import AS_CONFIGURED, Asked, most_patient

CONFIGURED = PolicyTable(stall_s=20, on_corruption="fail", require="lazy")


def test_unset_policies_hold_as_configured() -> None:
    assert AS_CONFIGURED.over(CONFIGURED) == CONFIGURED
    assert AS_CONFIGURED.over(PolicyTable()) == PolicyTable()
    asked = Asked(stall_s=0, on_corruption="refetch")
    assert asked.over(CONFIGURED) == PolicyTable(0, "refetch", "lazy")


def test_where_mounts_differ_the_most_patient_one_decides() -> None:
    policies = [
        PolicyTable(5, "fail", "lazy"),
        PolicyTable(7, "quarantine", ""),
        PolicyTable(6, "refetch", ""),
    ]
    for some in permutations(policies):
        assert most_patient(some, CONFIGURED) == PolicyTable(7, "quarantine", "lazy")
    assert most_patient(policies[:1], PolicyTable()) == policies[0]
    assert most_patient([], CONFIGURED) == CONFIGURED


@pytest.mark.parametrize(
    "document",
    [
        {"stall_s": -1},
        {"stall_s": "nan"},
        {"stall_s": 1e9},
        {"on_corruption": "ignore"},
        {"require": ""},
    ],
)
def test_invalid_policies(document: dict[str, object]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(document, Asked)
