# SPDX-License-Identifier: Apache-2.0
"""Judges the figures of the suite by its goals, and names the winner of each cell.

Owns the goals. Pure: cells in, figures out; a goal whose cells are missing yields none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from benchmarks.link import Measured
from benchmarks.report import Figure, Goal
from benchmarks.suite.modes import BY
from benchmarks.suite.peers import PEERS
from benchmarks.suite.runs import MB, Cell, Cells

DISTANT, SLOW, SECOND = "100Mbit/20ms", "25Mbit/80ms", "1Gbit/1ms"
READY_S = {"python": 3.3, "python-server": 1.3}  # hot, at DISTANT
OVERLAYFS, BEST_PEER, CLASSIC = 22, 1.5, {"model": 3.3}
SLACK, ROUND_TRIPS = 1.15, 5  # of the floor
TRACED, START_SET = 1.2, 1.1  # bytes to ready
HOT_OVER_LAZY = 3
EQUAL = 0.95  # medians of a few runs differ so much
ALL_SENT = 0.9  # of the bytes on the wire: the registry's log has every answer
OVER_FANOTIFY = 1.15
CONTAINERD = ("lazy", "static", "hot")
RUN = ("run-lazy", "run-static", "run-hot")


def judge(found: Cells, speeds: Mapping[str, Measured | None]) -> Iterator[Figure]:
    """Yield a figure for everything that can be said of these cells.

    Args:
        found: the cells.
        speeds: link to its measured speed, None for loopback.
    """
    for link, workload in dict.fromkeys(key[:2] for key in found):
        here = {mode: cell for (*at, mode), cell in found.items() if at == [link, workload]}
        name = f"{workload} at {link}"
        for device in _devices(here):
            ours = _of_device(here, device)
            yield from _judge(f"{name}, {device}" if device else name, link, workload, ours, speeds)
        yield from _against_fanotify(name, here)


def _devices(here: Mapping[str, Cell]) -> list[str]:
    """Return the devices that modes name; an empty name if none does."""
    named = (mode.partition(BY)[2] for mode in here)
    return list(dict.fromkeys(filter(None, named))) or [""]


def _of_device(here: Mapping[str, Cell], device: str) -> dict[str, Cell]:
    """Return the cells of one device, and those without one, by the plain names of modes."""
    split = [(*mode.partition(BY), cell) for mode, cell in here.items()]
    return {plain: cell for plain, _, by, cell in split if by in ("", device)}


def _judge(
    name: str,
    link: str,
    workload: str,
    here: Mapping[str, Cell],
    speeds: Mapping[str, Measured | None],
) -> Iterator[Figure]:
    """Yield the figures of a workload at a link."""
    yield from _against_overlayfs(name, here, strict=link == DISTANT and workload in READY_S)
    yield from _against_peers(name, here, strict=link == DISTANT and workload in READY_S)
    yield from _against_classic(name, here, CLASSIC.get(workload, 1) if link == SECOND else 1)
    yield from _at_the_floor(name, here, speeds[link])
    strict = link in (DISTANT, SLOW) and workload in READY_S
    yield from _bytes(name, here, strict=strict)
    if link == DISTANT and workload in READY_S and "hot" in here:
        goal = Goal("<=", READY_S[workload])
        yield Figure(f"{name}: hot is ready", here["hot"].ready_s, "s", goal)
    if "run-hot-all" in here and "run-hot" in here:
        what = f"{name}: run-hot takes longer than run-hot-all"
        yield _ratio(what, here, "run-hot", "run-hot-all", EQUAL)
    if link == SLOW and "hot" in here and "lazy" in here:
        yield _ratio(f"{name}: lazy takes longer than hot", here, "lazy", "hot", HOT_OVER_LAZY)


def _against_fanotify(name: str, here: Mapping[str, Cell]) -> Iterator[Figure]:
    """Compare every other device with fanotify."""
    for mode, cell in here.items():
        plain, _, device = mode.partition(BY)
        other = here.get(f"{plain}{BY}fanotify")
        if device not in ("", "fanotify") and other:
            yield Figure(
                f"{name}: {plain} by {device}, of fanotify",
                cell.ready_s / other.ready_s,
                "x",
                Goal("<=", OVER_FANOTIFY) if plain.startswith("run-") else None,
                f"{device} {cell}; fanotify {other}",
            )


def _best(here: Mapping[str, Cell], modes: tuple[str, ...]) -> str | None:
    return min(
        (mode for mode in modes if mode in here), key=lambda m: here[m].ready_s, default=None
    )


def _ratio(
    name: str, here: Mapping[str, Cell], slow: str, fast: str, at_least: float | None
) -> Figure:
    value = here[slow].ready_s / here[fast].ready_s
    goal = None if at_least is None else Goal(">=", at_least)
    return Figure(name, value, "x", goal, f"{slow} {here[slow]}; {fast} {here[fast]}")


def _against_overlayfs(name: str, here: Mapping[str, Cell], *, strict: bool) -> Iterator[Figure]:
    for mode in CONTAINERD:
        if mode in here and "overlayfs" in here:
            goal = OVERLAYFS if strict and mode == "hot" else None
            yield _ratio(
                f"{name}: overlayfs takes longer than {mode}", here, "overlayfs", mode, goal
            )


def _against_peers(name: str, here: Mapping[str, Cell], *, strict: bool) -> Iterator[Figure]:
    """Compare our best mode with the best setting of the best peer, and say so where that wins."""
    ours, theirs = _best(here, CONTAINERD), _best(here, tuple(peer.name for peer in PEERS))
    if ours and theirs:
        wins = here[theirs].ready_s < here[ours].ready_s
        verdict = f"{theirs} wins over {ours}" if wins else f"{theirs} takes longer than {ours}"
        goal = BEST_PEER if strict else None
        yield _ratio(f"{name}: best peer, {verdict}", here, theirs, ours, goal)


def _against_classic(name: str, here: Mapping[str, Cell], at_least: float) -> Iterator[Figure]:
    for mode in RUN:
        if mode in here and "classic" in here:
            goal = at_least if mode == "run-hot" else 1
            yield _ratio(f"{name}: classic takes longer than {mode}", here, "classic", mode, goal)


def _at_the_floor(name: str, here: Mapping[str, Cell], speed: Measured | None) -> Iterator[Figure]:
    """Compare with the time that the local start and the bytes of the trace take at least."""
    for hot, local in (("hot", "local"), ("run-hot", "run-local")):
        if speed and hot in here and local in here:
            wire_s = SLACK * here[hot].middle.hot_bytes / speed.bytes_per_s
            floor = here[local].ready_s + wire_s + ROUND_TRIPS * speed.rtt_s
            yield Figure(
                f"{name}: {hot}, of the physical limit",
                here[hot].ready_s / floor,
                "x",
                Goal("<=", 1),
                f"{here[hot].ready_s:.2f} s; limit {floor:.2f} s:"
                f" {local} {here[local].ready_s:.2f}, {SLACK} times the trace {wire_s:.2f},"
                f" {ROUND_TRIPS} round trips {ROUND_TRIPS * speed.rtt_s:.2f}",
            )


def _bytes(name: str, here: Mapping[str, Cell], *, strict: bool) -> Iterator[Figure]:
    """Compare bodies at the registry with the trace.

    Its log lacks what is still on its way, and has what came after the start was ready; the wire
    has headers, too. So the lower of the two counts, if the log has nearly all.
    """
    for hot in ("hot", "run-hot"):
        if hot in here and here[hot].middle.hot_bytes:
            run = here[hot].middle
            is_complete = run.sent_bytes >= ALL_SENT * run.wire_bytes
            most = run.wire_bytes or run.sent_bytes
            count = min(run.sent_bytes, most) if is_complete else most
            wire = f", {run.wire_bytes / MB:.2f} with headers" if run.wire_bytes else ""
            yield Figure(
                f"{name}: {hot}, bytes to ready, of its trace",
                count / run.hot_bytes,
                "x",
                Goal("<=", TRACED) if strict else None,
                f"{count / MB:.2f} of {run.hot_bytes / MB:.2f} MB{wire}",
            )
    for static, lazy in (("static", "lazy"), ("run-static", "run-lazy")):
        if static in here and lazy in here:
            ours, plain = (here[mode].middle.bytes_to_ready for mode in (static, lazy))
            yield Figure(
                f"{name}: {static}, bytes to ready, of {lazy}",
                ours / plain,
                "x",
                Goal("<=", START_SET),
                f"{ours / MB:.1f} and {plain / MB:.1f} MB",
            )
