# SPDX-License-Identifier: Apache-2.0
"""Traces leave a daemon by OTLP, or are lost without harm."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from collections.abc import Callable

import pytest
from tests.unit.mounts.test_mounts_startspans import POD, start

from firstread.daemon.spanexporter import MOST_STARTS, SpanExporter, is_installed, wants_traces
from firstread.fetch.imagehistory import ReadWaited
from firstread.mounts.startspans import PullFacts, StartFacts

READS = [ReadWaited(1.0, 0.25, 0, 0, 4096)]


def facts() -> StartFacts:
    return start(READS, PullFacts(97.0, 98.0, 99.0), POD)


@pytest.mark.parametrize(
    ("environment", "wants"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/v1/traces"}, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c"}, False),
        ({"OTEL_SDK_DISABLED": "True", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c"}, False),
    ],
)
def test_the_standard_variables_decide(environment: dict[str, str], wants: bool) -> None:
    assert wants_traces(environment) == wants


def test_nothing_of_opentelemetry_is_imported_by_a_daemon() -> None:
    code = (
        "import sys, firstread.daemon.serve as s; s.is_installed();"
        "sys.exit(any(m.startswith('opentelemetry.') for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_a_collector_gets_the_spans_of_a_start(
    protocol: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("opentelemetry.proto")
    from firstread.testing.otlpreceiver import OtlpReceiver

    with OtlpReceiver() as receiver:
        port = receiver.grpc_port if protocol == "grpc" else receiver.http_port
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
        monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "k8s.node.name=n1")
        exporter = SpanExporter()
        exporter.put(facts)
        exporter.send()
    assert caplog.messages == []
    names = [span.name for span in receiver.spans]
    assert names.count("firstread.start") == 1
    assert {"pull", "resolve", "metadata", "mount", "first reads", "ready"} < set(names)
    by_name = {span.name: span for span in receiver.spans}
    root, pull = by_name["firstread.start"], by_name["pull"]
    assert (root.trace_id.hex(), root.parent_span_id.hex()) == ("a" * 32, "b" * 16)
    assert {span.trace_id for span in receiver.spans} == {root.trace_id}
    assert pull.parent_span_id == root.span_id
    assert by_name["resolve"].parent_span_id == pull.span_id
    assert pull.end_time_unix_nano - pull.start_time_unix_nano == 2_000_000_000
    (resource,) = receiver.resources
    assert (resource["service.name"], resource["k8s.node.name"]) == ("firstread", "n1")


def test_a_trace_that_is_not_sampled_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("opentelemetry.proto")
    from firstread.testing.otlpreceiver import OtlpReceiver

    with OtlpReceiver() as receiver:
        endpoint = f"http://127.0.0.1:{receiver.http_port}"
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        exporter = SpanExporter()
        exporter.put(lambda: start(READS, None, f"{POD[:-2]}00"))
        exporter.send()
    assert receiver.spans == []


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("sleep", "60"), "it has not answered for 0.2 s"),
        (("sh", "-c", "echo refused >&2; exit 1"), "refused"),
        (("/nowhere",), "No such file or directory"),
    ],
)
def test_a_collector_that_is_away_is_told_of_once(
    command: tuple[str, ...], message: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "otel")
    exporter = SpanExporter(command, 0.2)
    for _ in range(2):
        exporter.put(facts)
        exporter.send()
    (line,) = caplog.messages
    assert message in line
    exporter._command = ("true",)
    exporter.put(facts)
    exporter.send()
    assert caplog.messages[1:] == ["the collector takes traces of starts again"]


def test_starts_that_wait_are_bounded_and_hold_up_nobody() -> None:
    exporter = SpanExporter(("sleep", "60"), 30.0)
    taken: list[int] = []

    def numbered(number: int) -> Callable[[], StartFacts]:
        return lambda: taken.append(number) or facts()  # type: ignore[func-returns-value]

    began = time.monotonic()
    for number in range(MOST_STARTS + 9):
        exporter.put(numbered(number))
    assert time.monotonic() - began < 5
    exporter._command = ("true",)
    exporter.send()
    assert taken == list(range(9, MOST_STARTS + 9))


def test_a_collector_that_nobody_listens_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if not is_installed():
        pytest.skip("the extra otel is not installed")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    exporter = SpanExporter()
    exporter.put(facts)
    exporter.send()
    (line,) = caplog.messages
    assert "traces of starts are lost" in line
    assert "Traceback" not in line
