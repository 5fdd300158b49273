# SPDX-License-Identifier: Apache-2.0
"""The process that sends traces to a collector: ``python -m firstread.daemon.sendspans``.

Reads a list of traces on stdin, lists of `Span` each, and exits with 1 if the collector has not
taken them. The only module that imports OpenTelemetry, whose SDK reads the ``OTEL_`` variables:
endpoint, protocol, headers, certificates, time limit, sampler, service name, resource.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import platform
import sys
from collections.abc import Sequence
from typing import Any

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from firstread import __version__
from firstread.documents import decode
from firstread.mounts.startspans import Span

_LOWEST = 19  # nice(2)
_NS = 1_000_000_000
_PACKAGES = {"http/protobuf": "http", "grpc": "grpc"}  # by OTEL_EXPORTER_OTLP_PROTOCOL


class _Ended(SpanProcessor):
    """Keeps the spans that are to be sent."""

    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []

    def on_end(self, span: ReadableSpan) -> None:
        if span.context is not None and span.context.trace_flags.sampled:
            self.spans.append(span)


def ended_spans(traces: Sequence[Sequence[Span]]) -> list[ReadableSpan]:
    """Return traces as spans of OpenTelemetry, without those that a sampler leaves out."""
    name = {} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": "firstread"}
    attributes = {"host.name": platform.node(), "service.version": __version__, **name}
    provider, ended = TracerProvider(resource=Resource.create(attributes)), _Ended()
    provider.add_span_processor(ended)
    tracer = provider.get_tracer("firstread", __version__)
    for trace in traces:
        made: list[Any] = []
        for span in trace:
            if span.parent is None:
                above = TraceContextTextMapPropagator().extract({"traceparent": span.context})
            else:
                above = set_span_in_context(made[span.parent])
            began = round(span.began * _NS)
            one = tracer.start_span(span.name, above, attributes=span.attributes, start_time=began)
            one.end(began + round(span.seconds * _NS))
            made.append(one)
    return ended.spans


def _exporter() -> SpanExporter:
    asked = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")
    protocol = asked or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL") or "http/protobuf"
    if protocol not in _PACKAGES:
        raise ValueError(f"the protocol {protocol!r} is none of {', '.join(_PACKAGES)}")
    package = f"opentelemetry.exporter.otlp.proto.{_PACKAGES[protocol]}.trace_exporter"
    exporter: SpanExporter = importlib.import_module(package).OTLPSpanExporter()
    return exporter


def main() -> int:
    """Send what stdin has; return the exit code."""
    os.nice(_LOWEST)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        spans = ended_spans(decode(json.load(sys.stdin), list[list[Span]]))
        result = _exporter().export(spans) if spans else SpanExportResult.SUCCESS
    except Exception as exc:  # noqa: BLE001 - libraries raise what they like: one line is enough
        sys.stderr.write(f"{exc}\n")
        return 1
    return 0 if result is SpanExportResult.SUCCESS else 1


if __name__ == "__main__":
    sys.exit(main())
