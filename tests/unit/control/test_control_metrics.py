# SPDX-License-Identifier: Apache-2.0
"""Counters, the feed, logs, and metrics made of them."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

import pytest
from msgspec import structs
from prometheus_client.parser import text_string_to_metric_families

from firstread.cache.report import OnlineFigures
from firstread.config import PolicyTable
from firstread.control.daemonstatus import (
    ConfigurationStatus,
    FetcherStatus,
    Status,
    SupervisorStatus,
)
from firstread.control.metricaddress import check_address
from firstread.control.metricfamily import PREFIX
from firstread.control.metrics import FAMILIES, NodeMetrics
from firstread.daemon.logs import JsonFormatter
from firstread.documents import encode
from firstread.errors import NodeError, NotFoundError, TransportError, UsageError
from firstread.fetch.stats import FEED, LATENCIES, Feed, ImageStats
from firstread.mounts.counts import NodeCounts
from firstread.mounts.nodestatus import EndpointStatus, MountStatus, Policies
from firstread.mounts.pulls import GoneError
from firstread.registry.health import EndpointHealth
from firstread.registry.hosts import Endpoint


def test_percentiles_are_of_the_last_reads() -> None:
    stats = ImageStats()
    assert stats.percentile(0.5) is None
    for _ in range(LATENCIES):
        stats.answered(99.0)
    for number in range(LATENCIES):
        stats.answered(number / LATENCIES)
    assert stats.percentile(0.5) == pytest.approx(0.5)
    assert stats.percentile(0.99) == pytest.approx(0.99, abs=0.001)
    assert stats.percentile(1.0) == (LATENCIES - 1) / LATENCIES


def test_counters_add_up() -> None:
    stats = ImageStats()
    stats.add(events=1, waits=2, request="demand")
    stats.add_bytes(3, "demand")
    stats.add(request="completion")
    stats.add_bytes(4, "completion")
    stats.error("broken", failed_reads=2)
    figures = stats.figures()
    assert figures.requests == 2
    assert figures.requests_by_cause == {"demand": 1, "completion": 1}
    assert (figures.events, figures.waited_reads, figures.bytes_fetched) == (1, 2, 7)
    assert (figures.failed_reads, figures.last_error) == (2, "broken")
    encode(figures)


def test_a_listener_that_lags_loses_events_and_holds_up_nobody() -> None:
    feed = Feed()
    feed.tell("nobody listens")
    slow, quick = feed.listen(), feed.listen()
    for number in range(FEED + 10):
        feed.tell("error", sector="", error=str(number))
        assert getattr(quick.get_nowait(), "error", "") == str(number)
    assert slow.qsize() == FEED
    feed.leave(quick)
    feed.tell("error", sector="", error="")
    assert quick.empty()


def test_a_log_record_is_one_line_of_json() -> None:
    try:
        int("two\nlines")
    except ValueError:
        record = logging.LogRecord("lane", 40, "", 1, "a %s fails", ("read",), sys.exc_info())
    record.fields = {"offset": 7, "image": "é\n"}
    line = JsonFormatter().format(record)
    assert "\n" not in line
    document = json.loads(line)
    assert document["level"] == "error"
    assert document["part"] == "lane"
    assert document["message"] == "a read fails"
    assert (document["offset"], document["image"]) == (7, "é\n")
    assert "ValueError" in document["exception"]


health = EndpointHealth(Endpoint("https", "m.io", namespace="r.io"))
health.ask()
health.failed(TransportError("it hung up"))


def status(**mount: Any) -> Status:
    store = OnlineFigures(
        bytes=5,
        sectors=1,
        metadata_bytes=3,
        files=8,
        min_free_bytes=7,
        free_bytes=9,
        free_files=None,
        evictions=2,
        evicted_bytes=3,
        removals=4,
        removed_bytes=5,
        checked=6,
        damaged=1,
    )
    mounted = MountStatus(
        mountpoint='/with "quotes"\n',
        image="i",
        digest="sha256:0",
        device="fanotify",
        repository="r",
        source="s",
        sectors=4,
        present=1,
        self_sufficient=False,
        pinned=False,
        holders=[],
        policies=Policies.of(PolicyTable()),
        prefetch="hot",
        hot=2,
        hot_present=1,
        wanted=0,
        read_ahead_kib=16,
        came_by_cause={},
        last_waits_s=[],
        **(structs.asdict(ImageStats().figures()) | mount),
    )
    return Status(
        store=store,
        mounts=[mounted],
        totals=NodeCounts().document(ImageStats()),
        endpoints=[EndpointStatus(**health.document())],
        supervisor=SupervisorStatus(1),
        fetcher=FetcherStatus(pid=2, restarts=3, healthy=True, waiting_reads=2),
        namespace="",
        configuration=ConfigurationStatus(None, {}),
    )


def test_metrics_can_be_parsed_and_leave_out_what_is_not_known() -> None:
    text = NodeMetrics(lambda: status(requests_by_cause={"demand": 9})).text().decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    (present,) = families["firstread_mount_present_sectors"].samples
    assert present.labels["mountpoint"] == '/with "quotes"\n'
    assert families["firstread_mount_requests"].samples[0].value == 9
    assert families["firstread_waiting_reads"].samples[0].value == 2
    assert families["firstread_mount_first_read_p99_seconds"].samples == []
    (requests,) = families["firstread_endpoint_requests"].samples
    assert (requests.labels, requests.value) == ({"endpoint": "m.io", "registry": "r.io"}, 1)
    assert families["firstread_endpoint_failures"].samples[0].value == 1
    assert families["firstread_endpoint_healthy"].samples[0].value == 0
    assert families["firstread_store_evictions"].samples[0].value == 2
    assert families["firstread_store_limit_bytes"].samples == []
    assert set(families) == {PREFIX + family.name for family in FAMILIES}


def test_counters_of_all_images_outlive_each_of_them() -> None:
    totals = ImageStats()
    for waited_s in (0.0009, 0.0011, 400.0):
        stats = ImageStats(totals)
        stats.add(waits=1, request="demand")
        stats.add_bytes(5, "demand")
        stats.answered(waited_s)
        stats.error("broken", failed_reads=1)
    ImageStats(totals).error("broken", failed_reads=1, is_known=True)
    document = NodeCounts().document(totals)
    assert (document.waited_reads, document.bytes_fetched, document.failed_reads) == (3, 15, 3)
    assert document.first_reads.counts == [1, 1, *[0] * 14, 1]
    node = status()
    node.totals = document
    text = NodeMetrics(lambda: node).text().decode()
    assert 'firstread_first_read_seconds_bucket{le="0.0025"} 2.0' in text
    assert 'firstread_first_read_seconds_bucket{le="+Inf"} 3.0' in text
    assert 'firstread_fetched_bytes_total{cause="demand"} 15.0' in text
    assert 'firstread_requests_total{cause="background"} 0.0' in text


def test_failures_are_counted_by_whose_fault_they_are() -> None:
    counts = NodeCounts()
    for error in (NodeError("full"), TransportError("away"), RuntimeError("a bug")):
        with pytest.raises(type(error)), counts.failures("missing"):
            raise error
    with pytest.raises(GoneError), counts.failures("missing"):
        raise GoneError("nobody waits")
    with pytest.raises(NotFoundError), counts.failures("never"):  # as the snapshotter asks first
        raise NotFoundError("the image is not on this node")
    failed = counts.document(ImageStats()).failed_requests
    assert failed == {"usage": 0, "image": 0, "source": 1, "node": 1, "firstread": 1}


@pytest.mark.parametrize(
    "address",
    ["", "9100", "host", "host:", "host:http", "127.0.0.1:70000", f"{'ü' * 64}.test:9100"],
)
def test_an_address_that_is_none(address: str) -> None:
    with pytest.raises(UsageError, match="is not HOST:PORT"):
        check_address(address)


def test_an_address_of_another_machine() -> None:
    with pytest.raises(NodeError, match=r"192\.0\.2\.1:9100"):
        check_address("192.0.2.1:9100")
    check_address("127.0.0.1:0")
