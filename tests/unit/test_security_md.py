# SPDX-License-Identifier: Apache-2.0
"""SECURITY.md: each test that it names exists, and each threat has one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "SECURITY.md").read_text()
THREATS = (
    "A malicious registry, or whoever sits between",
    "A mirror, or a list of referrers, that lies",
    "A malicious image",
    "A malicious container",
    "Other users of the machine",
    "A client of an NBD export",
    "A client of the webhook",
    "A cluster that packs layers",
    "A tampered store",
    "If the daemon itself is taken over",
)


def section(title: str) -> str:
    _, heading, rest = TEXT.partition(f"## {title}\n")
    assert heading, title
    return rest.partition("\n## ")[0]


@pytest.fixture(scope="module")
def tests() -> str:
    return "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))


@pytest.mark.parametrize("title", THREATS)
def test_each_threat_names_tests_that_exist(title: str, tests: str) -> None:
    named = re.findall(r"`(test_\w+)`", section(title))
    assert len(named) >= 3
    assert [name for name in named if f"def {name}(" not in tests] == []


@pytest.mark.parametrize("title", THREATS)
def test_each_line_of_a_table_is_shown_by_something(title: str) -> None:
    lines = [line for line in section(title).splitlines() if line.startswith("| ")]
    for line in lines[1:]:
        assert "`test_" in line.rsplit("|", 2)[1], line


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)", TEXT):
        assert (ROOT / target).exists(), target
