# SPDX-License-Identifier: Apache-2.0
"""The plan of a soak: faults, their times, and the node's policy (docs/node.md) for each. Pure."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

UNDISTURBED_SHARE = 0.05
FAULTS_SHARE = 0.36
ATTACKS_SHARE = 0.18
LEAST_FAULT_S = 4.0  # three more attempts, after which a read of wrong bytes fails, take about two
LEAST_ATTACK_S = 5.0
AFTER_S = 1.0  # a fault may still have effects


@dataclass(frozen=True)
class Trouble:
    """A fault on the way to the registry.

    Args:
        name: for people.
        script: of the proxy.
        saved: no read may fail; otherwise those that need the proxy get EIO.
    """

    name: str
    script: str
    saved: bool = True


TROUBLES = (
    Trouble("503, one request in three", "GET /blobs/ status 503 p0.33"),
    Trouble("503, all requests", "GET /blobs/ status 503 x*"),
    Trouble("429 with Retry-After", "GET /blobs/ status 429 Retry-After=1 p0.33"),
    Trouble("hang-up after 30,000 bytes", "GET /blobs/ hangup 30000 p0.5"),
    Trouble("the last byte is missing", "GET /blobs/ cut 1 p0.5"),
    Trouble("206 with a wrong length", "GET /blobs/ short 100 p0.5"),
    Trouble("the answer is lost", "GET /blobs/ lost p0.5"),
    Trouble("slow trickle, 200 kB/s", "GET /blobs/ trickle 200000 p0.5"),
    Trouble("two seconds without an answer", "GET /blobs/ blackhole 2 p0.33"),
    Trouble("connection refused", "GET /blobs/ refuse 0.5 p0.05"),
    Trouble("expired token", "GET /blobs/ expired p0.2"),
    Trouble("wrong range", "GET /blobs/ wrong-range p0.33"),
    Trouble("wrong Content-Range", "GET /blobs/ wrong-content-range p0.33"),
    Trouble("one bit flipped, sometimes", "GET /blobs/ flip x3\nGET /blobs/ flip p0.03"),
    Trouble(
        "bytes twice, sometimes", "GET /blobs/ duplicate 100 x3\nGET /blobs/ duplicate 9 p0.03"
    ),
    Trouble("one bit flipped, always", "GET /blobs/ flip x*", saved=False),
    Trouble("404, always", "GET /blobs/ status 404 x*", saved=False),
    Trouble("ranges ignored, always", "GET /blobs/ ignore-range x*", saved=False),
    Trouble("redirect loop, always", "GET /blobs/ redirect x*", saved=False),
)

BACKGROUND = """
GET /blobs/ hangup 30000 p0.02
GET /blobs/ status 503 p0.02
GET /blobs/ flip p0.01
"""
"""Of the proxy while processes are killed."""

KILLS = {"supervisor": 4, "fetcher": 4, "both": 2, "registry": 1, "proxy": 1}
"""What is killed, and how often of all."""

REPLACE = "upgrade"
"""A kill that is none: a daemon that takes the place of the one that runs."""


PARTS = ("faults", "attacks", "kills")
"""Of a soak, besides those in which nothing is wrong."""


@dataclass(frozen=True)
class Times:
    """The durations of a soak's parts, in seconds; 0 if left out."""

    undisturbed: float
    each_trouble: float
    each_attack: float
    kills: float


def times(total_s: float, attacks: int, parts: Collection[str] = PARTS) -> Times:
    """Divide the time; a short soak lasts somewhat longer than requested.

    Args:
        total_s: seconds.
        attacks: number of attacks to run.
        parts: of `PARTS`; those left out give their time to the others.
    """
    undisturbed = max(5.0, UNDISTURBED_SHARE * total_s)
    shares = {"faults": FAULTS_SHARE, "attacks": ATTACKS_SHARE, "kills": 0.0}
    shares["kills"] = 1 - sum(shares.values()) - UNDISTURBED_SHARE
    scale = (1 - UNDISTURBED_SHARE) / sum(shares[part] for part in parts)

    def each(part: str, number: int, least_s: float) -> float:
        if part not in parts:
            return 0.0
        return max(least_s, scale * shares[part] * total_s / number - AFTER_S)

    trouble = each("faults", len(TROUBLES), LEAST_FAULT_S)
    attack = each("attacks", attacks, LEAST_ATTACK_S)
    spent = undisturbed
    spent += (trouble + AFTER_S) * len(TROUBLES) if "faults" in parts else 0.0
    spent += (attack + AFTER_S) * attacks if "attacks" in parts else 0.0
    return Times(
        undisturbed, trouble, attack, max(15.0, total_s - spent) if "kills" in parts else 0.0
    )
