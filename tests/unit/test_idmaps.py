# SPDX-License-Identifier: Apache-2.0
"""Maps of ids: whose node a process works on."""

from __future__ import annotations

import pytest

from firstread.idmaps import count_of, is_mapped, parse_map, root_of

FIRST = "         0          0 4294967295\n"
ALONE = "         0       1000          1\n"
WITH_MORE = "         0       1000          1\n         1     100000      65536\n"
SYSTEM = "         0     100000      65536\n"
ROOTS_OWN = "         0          0          1\n"


@pytest.mark.parametrize(
    ("text", "user"),
    [(FIRST, 0), (ALONE, 1000), (WITH_MORE, 1000), (SYSTEM, 0), (ROOTS_OWN, 0), ("", 0)],
)
def test_root_is_somebody_else_only_where_it_is_mapped_alone(text: str, user: int) -> None:
    assert root_of(parse_map(text)) == user


def test_ids_inside_of_a_map() -> None:
    ids = parse_map(WITH_MORE)
    assert count_of(ids) == 65537
    assert [is_mapped(ids, number) for number in (0, 1, 65536, 65537)] == [True, True, True, False]
    assert not is_mapped(parse_map(ALONE), 1)
