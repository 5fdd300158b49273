# SPDX-License-Identifier: Apache-2.0
"""The links of the suite: their names on the command line, and a registry behind each."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.link import Link, Measured
from benchmarks.near import near
from benchmarks.places import storage
from benchmarks.suite.nodes import Site
from firstread.testing.registry import DockerRegistry

LINKS = ("none", "1Gbit/1ms", "100Mbit/20ms", "25Mbit/80ms")
_FORM = re.compile(r"([0-9.]{1,9})(M|G)bit/([0-9.]{1,9})ms")


@dataclass(frozen=True)
class Speed:
    """A requested link: 10^6 bits per second in each direction, and seconds of a round trip."""

    mbit_s: float
    rtt_s: float


def parse_link(name: str) -> Speed | None:
    """Return what a name such as ``100Mbit/20ms`` stands for; None for loopback.

    Raises:
        ValueError: it is not of that form.
    """
    if name == "none":
        return None
    match = _FORM.fullmatch(name)
    if match is None:
        raise ValueError(f"{name!r} is not a link such as {', '.join(LINKS)}")
    return Speed(float(match[1]) * (1000 if match[2] == "G" else 1), float(match[3]) / 1000)


@contextlib.contextmanager
def open_link(name: str) -> Iterator[tuple[Site, Measured | None]]:
    """Yield a registry behind a link, and the measured speed of that."""
    speed = parse_link(name)
    with contextlib.ExitStack() as stack:
        if speed is None:
            registry = stack.enter_context(DockerRegistry(storage=storage()))
            yield Site(registry, registry.host), None
            return
        link = stack.enter_context(Link(speed.mbit_s, speed.rtt_s))
        with link.far():
            registry = stack.enter_context(DockerRegistry(storage=storage(), address=link.address))
        host = stack.enter_context(near(registry.host))
        yield Site(registry, host, link), link.measure()
