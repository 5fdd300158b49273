# SPDX-License-Identifier: Apache-2.0
"""``python -m benchmarks.pictures``: makes the pictures of docs/report.md.

Starts one image over a link three times: lazily, with hot sectors, and with all data on the node.
Draws the page about the start with hot sectors, and the one that compares all three. Invariant:
each start is on a new node.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.host import Host
from benchmarks.images.ready import Prints
from benchmarks.scratch import scratch_directory
from benchmarks.suite.links import open_link
from benchmarks.suite.modes import OWN
from benchmarks.suite.publish import make, publish_originals
from benchmarks.suite.workloads import LARGE, Workload
from firstread.testing.command import program

_PROGRAM = "import os, numpy, scipy.linalg, pandas; print('ready', flush=True); os._exit(0)"
START = Workload("pictures", LARGE, Prints("ready"), ("python3", "-c", _PROGRAM))
MODES = {"lazy": "run-lazy", "with hot sectors": "run-hot", "all data local": "run-local"}
IMAGES = Path(__file__).parents[1] / "docs" / "images"
PICTURES = {  # name -> records, height, scheme of colours
    "report-one": (("with hot sectors",), 1500, "light"),
    "report-compared": (tuple(MODES), 1240, "dark"),
}
WIDTH = 860


def record(link: str, records: Path, scratch: Path) -> None:
    """Start the workload in each mode, and keep the records of the starts."""
    modes = {mode.name: mode for mode in OWN}
    publish_originals([START])
    made = {title: make(modes[name], START, scratch) for title, name in MODES.items()}
    with open_link(link) as (site, measured):
        print(f"{link}: {measured}", flush=True)
        for number, title in enumerate(MODES):
            site.forget(START.image)
            image = site.image(START.image, made[title].tag)
            with Host(scratch / f"node{number}") as host:
                if modes[MODES[title]].present:
                    mounted = host.attach(image)
                    host.complete(mounted)
                    host.detach(mounted)
                kept = ("--record", str(records / f"{title}.json"))
                command = host.command("run", "--plain-http", "--rm", *kept, image, *START.command)
                subprocess.run(command, check=True)


def draw(name: str, records: Path, scratch: Path) -> Path:
    """Make one picture of records; return its path."""
    titles, height, scheme = PICTURES[name]
    page, picture = scratch / f"{name}.html", IMAGES / f"{name}.png"
    files = [str(records / f"{title}.json") for title in titles]
    subprocess.run(program("report", *files, "-o", str(page)), check=True)
    browser = ("chromium", "--headless", "--no-sandbox", "--hide-scrollbars", "--disable-gpu")
    options = (
        f"--user-data-dir={scratch}/profile",
        f"--window-size={WIDTH},{height}",
        f"--screenshot={picture}",
        *(["--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []),
    )
    subprocess.run((*browser, *options, page.as_uri()), check=True, capture_output=True)
    return picture


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the pictures; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--link", default="100Mbit/20ms")
    parser.add_argument(
        "--records", type=Path, metavar="DIR", help="keep them here, or draw those that are there"
    )
    options = parser.parse_args(arguments)
    with scratch_directory() as scratch:
        records = options.records or scratch
        if not all((records / f"{title}.json").exists() for title in MODES):
            record(options.link, records, scratch)
        for name in PICTURES:
            print(draw(name, records, scratch))
    return 0


if __name__ == "__main__":
    sys.exit(main())
