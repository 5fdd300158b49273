# SPDX-License-Identifier: Apache-2.0
"""``python -m benchmarks.soak``: read real images for minutes while everything around them fails.

Three images on one node: a real one (two mounts) and the one with every feature come through a
fault proxy; a third, from an undisturbed registry, shows the effect on others. The soak starts
without faults; then each fault of the proxy has its turn, then each attack through an image that
nobody reads; finally it kills processes at random. Readers compare every byte. Ends with one line,
and exits with 1 if a byte was wrong, or if a read failed or hung that the policy should have saved.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from collections.abc import Collection, Sequence
from pathlib import Path

from benchmarks import reliability
from benchmarks.scratch import scratch_directory
from benchmarks.setting import describe
from benchmarks.soak.attacks import ATTACKS, FILES, Attack, Ground, disk
from benchmarks.soak.images import (
    publish_attacked,
    publish_features,
    publish_plain,
    publish_real,
)
from benchmarks.soak.judge import Row, Span, exit_code, judge, last_line, table
from benchmarks.soak.machine import Node, Proxy
from benchmarks.soak.mounts import Group
from benchmarks.soak.plan import AFTER_S, BACKGROUND, KILLS, PARTS, REPLACE, TROUBLES, times
from firstread.config import DEVICES
from firstread.errors import FirstreadError
from firstread.testing.registry import DockerRegistry

REAL = "debian"
BYSTANDER = "bystander"
UNDISTURBED = "nothing"
FINAL_S = 10.0  # at the end there are no faults any more: all mounts serve


class Soak:
    """One soak.

    Args:
        scratch: an empty directory on ext4, xfs or btrfs.
        total_s: duration in seconds.
        seed: of all random choices.
        only: names of `PARTS` and of attacks to run; all, if empty.
        device: of the node.
    """

    def __init__(
        self,
        scratch: Path,
        total_s: float,
        seed: int,
        only: Collection[str] = (),
        device: str = "fanotify",
    ) -> None:
        self._scratch, self._device = scratch, device
        named = [attack for attack in ATTACKS if attack.name in only]
        self._parts = {part for part in PARTS if part in only or not only}
        self._attacks: Sequence[Attack] = ATTACKS if "attacks" in self._parts else named
        if self._attacks:
            self._parts.add("attacks")
        self._times = times(total_s, len(self._attacks), self._parts)
        self._numbers = random.Random(seed)
        self._seed = seed
        self._spans: list[Span] = []
        self.setting = describe(scratch)

    def run(self) -> list[Row]:
        """Return the fate of all reads."""
        with DockerRegistry() as registry, DockerRegistry() as other:
            real = publish_real(registry, REAL, self._scratch)
            features = publish_features(registry, self._scratch)
            plain = publish_plain(other, self._scratch)
            attacked = publish_attacked(registry, FILES)
            self.setting["images"] = "; ".join(
                f"{i.name}: {i.files:,} files, {i.size / 1e6:.0f} MB"
                for i in (real, features, plain)
            )
            with (
                Proxy(registry, self._seed) as proxy,
                Proxy(registry, self._seed) as bad,
                disk(self._scratch) as place,
                Node(place, (real.size + features.size) // 4, self._device) as node,
            ):
                self.setting["store"] = (
                    "a quarter of the images that go through the proxy"
                    if node.bounded
                    else "without a bound: an image that was read is unmounted and made cold again"
                )
                groups = [
                    Group(node, "real", proxy.host, real, 2, 0.001),
                    Group(node, "features", proxy.host, features, 1, 0.01),
                    Group(node, BYSTANDER, other.host, plain, 1, 0.005),
                ]
                places = [place for group in groups for place in group.places]
                ground = Ground(node, bad, attacked, places, self._scratch, [])
                for group in groups:
                    group.start()
                try:
                    self._calm(UNDISTURBED, self._times.undisturbed)
                    if "faults" in self._parts:
                        self._disturb(proxy)
                    self._attack(ground)
                    if "kills" in self._parts:
                        self._kill(node, proxy, registry)
                    proxy.script("")
                    self._calm("nothing any more", FINAL_S)
                finally:
                    for group in groups:
                        group.stop()
                self.setting["passes"] = ", ".join(f"{g.name} {g.passes}" for g in groups)
                logs = [(group.name, records) for group in groups for records in group.records()]
                logs.append(("status", ground.unanswered))
                return judge(logs, self._spans, node.gone, BYSTANDER)

    def _disturb(self, proxy: Proxy) -> None:
        through_proxy = frozenset({"real", "features"})
        for trouble in TROUBLES:
            start, before = time.monotonic(), proxy.injected().total()
            proxy.script(trouble.script)
            time.sleep(self._times.each_trouble)
            proxy.script("")
            time.sleep(AFTER_S)
            self._note(
                trouble.name,
                start,
                proxy.injected().total() - before,
                may_fail=frozenset() if trouble.saved else through_proxy,
                must_fail=not trouble.saved,
            )

    def _attack(self, ground: Ground) -> None:
        for attack in self._attacks:
            start = time.monotonic()
            count = attack.run(ground, self._times.each_attack)
            time.sleep(AFTER_S)
            self._note(attack.row, start, count, others=attack.others, goes_on=True)

    def _calm(self, name: str, seconds: float) -> None:
        start = time.monotonic()
        time.sleep(seconds)
        self._note(name, start, 0)

    def _kill(self, node: Node, proxy: Proxy, registry: DockerRegistry) -> None:
        """Kill one process after the other, with faults on the way to the registry, too."""
        proxy.script(BACKGROUND)
        kills = KILLS | ({REPLACE: 2} if node.replaceable else {})
        if self._device == "fuse":
            del kills["both"]  # with the anchor: its mounts end
        until = time.monotonic() + self._times.kills
        before, first = proxy.injected().total(), time.monotonic()
        while time.monotonic() < until:
            start = time.monotonic()
            (what,) = self._numbers.choices(list(kills), list(kills.values()))
            if what in ("registry", "proxy"):
                (registry.stop if what == "registry" else proxy.kill)()
                time.sleep(self._numbers.uniform(0.1, 2.0))
                (registry.restart if what == "registry" else proxy.start)()
            else:
                node.kill(what, self._numbers)
            time.sleep(self._numbers.expovariate(2.0))
            name = what if what == REPLACE else f"SIGKILL of {what}"
            self._note(name, start, 1, others=what in ("registry", "proxy"))
        spent = time.monotonic() - first
        self.setting["while killing"] = (
            f"{spent:.0f} s, with {proxy.injected().total() - before} faults of the proxy besides"
        )

    def _note(self, name: str, start: float, count: int, **options: object) -> None:
        self._spans.append(Span(name, start, time.monotonic(), count, **options))  # type: ignore[arg-type]
        if len({span.name for span in self._spans}) > len({s.name for s in self._spans[:-1]}):
            print(f"  {name}: {self._spans[-1].end - start:.1f} s", flush=True)


def main() -> int:
    """Run one soak; see the module."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument(
        "--seconds", type=float, metavar="S", default=float(os.environ.get("SOAK_S") or 600)
    )
    parser.add_argument("--seed", type=int, default=int(time.time()), help="[the time]")
    names = [*PARTS, *(attack.name for attack in ATTACKS)]
    parser.add_argument(
        "--only", action="append", choices=names, default=[], help="do this; may be repeated"
    )
    parser.add_argument("--device", default="fanotify", choices=DEVICES, help="[%(default)s]")
    parser.add_argument("--docs", action="store_true", help="write docs/reliability.md")
    options = parser.parse_args()
    if os.geteuid():
        parser.error("a soak mounts: run it as root")
    if not options.seconds > 0:
        parser.error("--seconds must be more than 0")
    print(f"soak of {options.seconds:.0f} s, seed {options.seed}", flush=True)
    try:
        with scratch_directory() as scratch:
            soak = Soak(scratch, options.seconds, options.seed, options.only, options.device)
            rows = soak.run()
    except KeyboardInterrupt:
        return 130
    except FirstreadError as exc:
        print(f"error: {exc}" + (f" ({exc.hint})" if exc.hint else ""), file=sys.stderr)
        return exc.exit_code
    soak.setting["soak"] = f"{options.seconds:.0f} s, seed {options.seed}"
    cells = table(rows)
    print("\n" + reliability.columns(cells))
    if options.docs:
        name = reliability.name_of("soak", options.device)
        command = f"python -m benchmarks.soak --device {options.device} --docs"
        reliability.write(reliability.Chapter(name, command, soak.setting, cells, last_line(rows)))
    print(last_line(rows))
    return exit_code(rows)


if __name__ == "__main__":
    sys.exit(main())
