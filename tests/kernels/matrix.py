# SPDX-License-Identifier: Apache-2.0
"""What each device does on each kernel, as a table of docs/devices.md.

Owns the results and their text; tries nothing. Invariant: a table names the setting of its results,
and each device that a kernel does not have comes with the daemon's reason.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from firstread.config import DEVICES

PAGE: Final = Path(__file__).parents[2] / "docs/devices.md"
GOOD: Final = re.compile(
    r"\d+ (?:right|passed(?:, \d+ skipped)?)(?: at the second try, after [\w, ]{1,1000})?"
)
"""The outcome of a check that found no fault."""

MOST_WORDS: Final = 300  # characters of a reason


class Tried(msgspec.Struct):
    """A device on a kernel.

    Args:
        works: an image that it mounted was read without a difference.
        said: the daemon's reason, or the first difference.
        checks: name to outcome of what was tried beyond that.
    """

    works: bool
    said: str = ""
    checks: dict[str, str] = msgspec.field(default_factory=dict)


class Result(msgspec.Struct):
    """A kernel.

    Args:
        release: as ``uname -r`` says.
        devices: by name, in order of preference.
        auto: the device that a daemon chooses; empty if the guest did not come to its end.
        doctor: lines of ``firstread doctor`` about what fails.
        package: Debian's suite, and the version of the package.
        seconds: from qemu's start to its end.
    """

    release: str
    devices: dict[str, Tried] = msgspec.field(default_factory=dict)
    auto: str = ""
    doctor: list[str] = msgspec.field(default_factory=list)
    package: str = ""
    seconds: float = 0.0


def chapter(results: Sequence[Result], setting: Iterable[str]) -> str:
    """Return the table of results, and below it why devices do not work, as Markdown."""
    names = [name for name in DEVICES if any(name in result.devices for result in results)]
    head = ["kernel", "package", *(f"`{name}`" for name in names), "`auto` takes", "seconds"]
    rows = [head, ["---"] * (len(head) - 1) + ["--:"]]
    reasons: dict[tuple[str, str], list[str]] = {}
    for result in results:
        cells = [result.release, result.package]
        cells += [_cell(result.devices.get(name)) for name in names]
        rows.append([*cells, f"`{result.auto or '?'}`", f"{result.seconds:.0f}"])
        for name in names:
            if name in result.devices and not result.devices[name].works:
                said = _escaped(result.devices[name].said)
                reasons.setdefault((name, said), []).append(result.release)
    lines = [*(f"- {line}" for line in setting), ""]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    lines += ["", *(f"- `{n}` on {', '.join(at)}: {said}" for (n, said), at in reasons.items())]
    return "\n".join(lines).rstrip() + "\n"


def _cell(tried: Tried | None) -> str:
    if tried is None:
        return "not tried"
    if not tried.works:
        return "no"
    return "; ".join(["yes", *(f"{name}: {said}" for name, said in tried.checks.items())])


def _escaped(text: str) -> str:
    flat = " ".join(text.split())[:MOST_WORDS]
    return flat.replace("|", r"\|").replace("<", "&lt;")


def is_good(result: Result) -> bool:
    """Tell whether some device works, each that does has passed its checks, and all were tried."""
    works = [tried for tried in result.devices.values() if tried.works]
    said = [outcome for tried in works for outcome in tried.checks.values()]
    return bool(works) and bool(result.auto) and all(map(GOOD.fullmatch, said))


def put(name: str, text: str, page: Path = PAGE) -> None:
    """Replace the chapter between ``<!-- NAME -->`` and ``<!-- end -->`` of a page.

    Raises:
        ValueError: the page has no such chapter.
    """
    old = page.read_text()
    pattern = rf"(<!-- {re.escape(name)} -->\n).*?(<!-- end -->\n)"
    new, count = re.subn(
        pattern, lambda found: found[1] + text + found[2], old, count=1, flags=re.DOTALL
    )
    if not count:
        raise ValueError(f"{page} has no chapter {name}")
    page.write_text(new)


def merged(old: Result | None, new: Result) -> Result:
    """Return a result with the devices of an older one that were not tried again.

    Args:
        old: of the same suite; of another kernel, it counts no more.
        new: what was tried now.
    """
    if old is None or (old.release, old.package) != (new.release, new.package):
        return new
    return msgspec.structs.replace(new, devices={**old.devices, **new.devices})


def load(path: Path) -> dict[str, Result]:
    """Return the kept results by suite; none if the file is not there."""
    if not path.exists():
        return {}
    return msgspec.json.decode(path.read_bytes(), type=dict[str, Result])


def save(results: Mapping[str, Result], path: Path) -> None:
    """Keep results, so that one kernel can be tried again while the page shows all."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(results)))
