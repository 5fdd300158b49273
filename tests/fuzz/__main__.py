# SPDX-License-Identifier: Apache-2.0
"""Feeds the parsers of untrusted bytes for a while: ``make fuzz FUZZ_S=600``.

Each target gets its own process and an equal share of the time. With ``atheris`` (``pip install
atheris``) coverage guides the damage; without it the damage is blind. An input that breaks a
target goes to ``tests/fuzz/corpus/TARGET/``, and the tests feed it from then on.

    python -m tests.fuzz [SECONDS [TARGET ...]]
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import logging
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from types import FrameType

from tests.fuzz.targets import CORPUS, MEMORY_BYTES, SECONDS, TARGETS, corpus, damage

SHARE_S = 60.0  # for one target at a time


def main(arguments: list[str]) -> int:
    """Feed the targets in turns; return 1 if one broke."""
    seconds = float(arguments[0]) if arguments else 60.0
    names = arguments[1:] or list(TARGETS)
    if unknown := set(names) - set(TARGETS):
        print(f"no such target: {', '.join(unknown)}; there are {', '.join(TARGETS)}")
        return 2
    guided = importlib.util.find_spec("atheris") is not None
    print(f"{len(names)} targets, {seconds:.0f} s, {'guided by atheris' if guided else 'blind'}")
    share = max(1.0, min(SHARE_S, seconds / len(names)))
    until, broken, turn = time.monotonic() + seconds, set[str](), 0
    while turn < len(names) or time.monotonic() + share / 2 < until:
        name = names[turn % len(names)]
        turn += 1
        if name in broken:
            if len(broken) == len(names):
                break
            continue
        command = [sys.executable, "-m", "tests.fuzz", "--one", name, str(share)]
        done = subprocess.run(command, timeout=share + 120, check=False)
        if done.returncode:
            broken.add(name)
    print(f"{len(broken)} targets broke{': ' if broken else ''}{', '.join(sorted(broken))}")
    return int(bool(broken))


def one(name: str, seconds: float) -> int:
    """Feed one target; return 1 if it broke."""
    logging.disable()
    target = TARGETS[name]
    seeds = [*target.seeds(), *corpus(name)]
    for seed in seeds:
        target(seed)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY_BYTES, size + MEMORY_BYTES))
    signal.signal(signal.SIGALRM, _too_long)
    if importlib.util.find_spec("atheris") is not None:
        pool = _guided(name, seconds / 2, seeds)
    else:
        pool = list(seeds)
    rng = random.Random()
    rounds = accepted = 0
    slowest = 0.0
    until = time.monotonic() + seconds / (2 if len(pool) > len(seeds) else 1)
    while time.monotonic() < until:
        data = damage(rng.choice(pool), pool, target.tokens, rng)
        started = time.monotonic()
        try:
            signal.setitimer(signal.ITIMER_REAL, SECONDS)
            accepted += target(data)
        except Exception:  # noqa: BLE001 - whatever it is
            return _broke(name, data)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        slowest = max(slowest, time.monotonic() - started)
        rounds += 1
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(
        f"{name:15} {rounds:8} inputs, {accepted:8} accepted, {len(pool) - len(seeds):5} found,"
        f" slowest {slowest * 1000:6.0f} ms, {rss:4} MiB",
        flush=True,
    )
    return 0


def _too_long(_number: int, _frame: FrameType | None) -> None:
    raise TimeoutError(f"it takes more than {SECONDS:.0f} s")


def _broke(name: str, data: bytes) -> int:
    place = CORPUS / name / hashlib.sha256(data).hexdigest()[:16]
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(data)
    print(f"{name} broke on {place}:\n{traceback.format_exc()}", flush=True)
    return 1


def _guided(name: str, seconds: float, seeds: list[bytes]) -> list[bytes]:
    """Let atheris find inputs that reach new code; return them and the seeds."""
    with tempfile.TemporaryDirectory() as place:
        for number, seed in enumerate(seeds):
            with open(f"{place}/{number}", "wb") as file:
                file.write(seed)
        command = [sys.executable, "-m", "tests.fuzz.guided", name, place]
        options = [f"-max_total_time={int(seconds) or 1}", f"-timeout={SECONDS:.0f}"]
        with contextlib.suppress(subprocess.TimeoutExpired):
            done = subprocess.run(
                [*command, *options, f"-artifact_prefix={place}/broke-"],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=seconds + 60,
                check=False,
            )
            if done.returncode not in (0, 1, 70, 77):  # broken, slow or large: judged below
                print(f"{name}: atheris ended with {done.returncode}", flush=True)
        found = []
        for entry in sorted(os.scandir(place), key=lambda entry: entry.name):
            with open(entry.path, "rb") as file:
                found.append(file.read())
        signal.signal(signal.SIGALRM, _too_long)
        for data in found:
            try:
                signal.setitimer(signal.ITIMER_REAL, SECONDS)
                TARGETS[name](data)
            except Exception:  # noqa: BLE001 - likewise
                sys.exit(_broke(name, data))
        signal.setitimer(signal.ITIMER_REAL, 0)
        return [*seeds, *found[len(seeds) :]]


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        sys.exit(one(sys.argv[2], float(sys.argv[3])))
    sys.exit(main(sys.argv[1:]))
