# SPDX-License-Identifier: Apache-2.0
"""A real Prometheus scrapes a daemon and a snapshotter at work: each panel has an answer."""

from __future__ import annotations

import contextlib
import math
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import urllib3
from tools import dashboard

from firstread.testing.daemon import Daemon
from firstread.testing.lazymount import output
from firstread.testing.plainimage import put_plain_image
from firstread.testing.ports import free_port
from firstread.testing.scripted import ScriptedRegistry

pytestmark = [
    pytest.mark.privileged,
    pytest.mark.skipif(not shutil.which("prometheus"), reason="there is no prometheus"),
]

FILES = 61
STRIDE = 23  # nobody takes this for a sequential reader
VARIABLES = {"$instance": ".*", "$image": ".*", "$__rate_interval": "20s", "$__range": "5m"}
CONFIG = """\
global: {{scrape_interval: 500ms}}
rule_files: [{alerts}]
scrape_configs:
  - job_name: firstread
    static_configs: [{{targets: ["127.0.0.1:{daemon}", "127.0.0.1:{snapshotter}"]}}]
"""


def queries() -> list[str]:
    """Return the queries of all panels, for all nodes and images."""
    panels = dashboard.dashboard()["panels"]
    found = [target["expr"] for panel in panels for target in panel.get("targets", [])]
    for name, value in VARIABLES.items():
        found = [query.replace(name, value) for query in found]
    return found


class Prometheus:
    """A Prometheus that scrapes two ports."""

    def __init__(self, scratch: Path, daemon: int, snapshotter: int) -> None:
        self._port = free_port()
        alerts = dashboard.PATH.with_name("alerts.yaml")
        config = CONFIG.format(alerts=alerts, daemon=daemon, snapshotter=snapshotter)
        (scratch / "prometheus.yml").write_text(config)
        self._log = (scratch / "prometheus.log").open("wb")
        self._process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={scratch / 'prometheus.yml'}",
                f"--storage.tsdb.path={scratch / 'tsdb'}",
                f"--web.listen-address=127.0.0.1:{self._port}",
            ],
            stdout=self._log,
            stderr=self._log,
        )

    def ask(self, path: str, **fields: str) -> Any:
        """Return what the API answers."""
        url = f"http://127.0.0.1:{self._port}/api/v1/{path}"
        answer = urllib3.request("GET", url, fields=fields, retries=urllib3.Retry(20, 0, None, 10))
        document = answer.json()
        assert document["status"] == "success", document
        return document["data"]

    def values(self, query: str) -> list[float]:
        """Return the values of a query, now; none that is no number."""
        found = self.ask("query", query=query)["result"]
        numbers = [float(sample["value"][1]) for sample in found]
        return [number for number in numbers if not math.isnan(number)]

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()


@contextlib.contextmanager
def snapshotter(daemon: Daemon, port: int) -> Iterator[None]:
    """Run a snapshotter beside a daemon in the block."""
    places = (f"--root={daemon.root}", f"--run-dir={daemon.run_dir}")
    socket_ = daemon.scratch / "snapshotter.sock"
    command = [sys.executable, "-m", "firstread", "snapshotter", *places]
    process = subprocess.Popen([*command, f"--address={socket_}", f"--metrics=127.0.0.1:{port}"])
    try:
        daemon.wait(socket_.exists)
        yield
    finally:
        process.terminate()
        process.wait()


def test_every_query_of_the_dashboard_finds_numbers(tmp_path: Path) -> None:
    ports = free_port(), free_port()
    options = f"--metrics=127.0.0.1:{ports[0]}", "--cache-max=1GiB"
    with ScriptedRegistry() as registry, Daemon(tmp_path, *options) as node:
        busy, whole = f"{registry.host}/busy:1", f"{registry.host}/whole:1"
        put_plain_image(f"docker://{busy}", count=FILES)
        place = node.mount(busy, "busy")
        put_plain_image(f"docker://{whole}", count=2, first=FILES)  # now each name means this
        node.mount(whole, "whole")
        assert node.run("fetch", "--all", tmp_path / "whole").code == 0
        prometheus = Prometheus(tmp_path, *ports)
        try:
            with snapshotter(node, ports[1]):
                # A rate needs reads between two scrapes, and soon all is here unasked.
                node.wait(lambda: sum(prometheus.values("up")) == 2)
                missing, number = queries(), 0
                while missing:
                    assert number < FILES, missing
                    file = place / f"f{number * STRIDE % FILES}"
                    output(node.reading(file, how="random"))
                    node.run("umount", tmp_path / "whole")
                    node.mount(whole, "whole", "--pull=always")
                    missing = [query for query in missing if not prometheus.values(query)]
                    number += 1
            targets = prometheus.ask("targets")["activeTargets"]
            assert [target["scrapePool"] for target in targets] == ["firstread"] * 2
            (group,) = prometheus.ask("rules")["groups"]
            assert {rule["health"] for rule in group["rules"]} <= {"ok", "unknown"}
        finally:
            prometheus.end()
