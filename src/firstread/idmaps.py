# SPDX-License-Identifier: Apache-2.0
"""The user and group ids of this process's user namespace, and the user whose node it works on.

Owns the reading of the kernel's maps; makes no namespace. Invariant: in the first user namespace,
and in one with ids of its own (a container of a whole system), root is nobody else.

Facts about user namespaces (user_namespaces(7)):

* A map has lines ``INSIDE OUTSIDE COUNT``; OUTSIDE counts in the parent's ids.
* An id that no line maps shows as the overflow id, 65534. In the first namespace this is the user
  nobody.
"""

from __future__ import annotations

import os
from pathlib import Path

MORE_IDS = (
    "give the user ids of its own: usermod --add-subuids 100000-165535 --add-subgids 100000-165535"
    " USER, with newuidmap installed (package uidmap); namespaces that are made later have them"
)
OVERFLOW = 65534  # default of /proc/sys/kernel/overflowuid and overflowgid

Map = list[tuple[int, int, int]]
"""Lines of a map: first id inside, first id outside, count."""


def read_map(kind: str) -> Map:
    """Return a map of this process.

    Args:
        kind: ``uid`` or ``gid``.
    """
    return parse_map(Path(f"/proc/self/{kind}_map").read_text())


def parse_map(text: str) -> Map:
    """Return the lines of a map as the kernel writes it."""
    return [(int(i), int(o), int(n)) for i, o, n in map(str.split, text.splitlines())]


def is_mapped(ids: Map, number: int) -> bool:
    """Return whether a map has an id inside."""
    return any(inside <= number < inside + count for inside, _, count in ids)


def count_of(ids: Map) -> int:
    """Return how many ids a map has."""
    return sum(count for _, _, count in ids)


def owner() -> int:
    """Return the user whose node this process works on; 0 for the machine's."""
    return os.geteuid() or root_of(read_map("uid"))


def root_of(users: Map) -> int:
    """Return who root of a namespace is outside, if root is mapped alone, as one user; else 0."""
    return next((outside for inside, outside, n in users if inside == 0 and n == 1), 0)
