# SPDX-License-Identifier: Apache-2.0
"""A collector for tests: takes traces by OTLP over HTTP and gRPC, and keeps their spans.

It decodes the messages of opentelemetry-proto, which come with the extra ``otel``.
"""

from __future__ import annotations

import contextlib
import gzip
import http.server
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from firstread.testing.serving import QuietHandler, serving

_EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"


class OtlpReceiver(contextlib.ExitStack, grpc.GenericRpcHandler):  # type: ignore[misc]
    """Listens on two ports of the loopback address; a context manager.

    Attributes:
        spans: that came, in order.
        resources: attributes of their resources.
        http_port: for OTLP over HTTP.
        grpc_port: for OTLP over gRPC.
    """

    def __init__(self) -> None:
        super().__init__()
        self.spans: list[Span] = []
        self.resources: list[dict[str, str]] = []
        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.http_port: int = self._http.server_address[1]
        self._grpc = grpc.server(ThreadPoolExecutor(1))
        self._grpc.add_generic_rpc_handlers((self,))
        self.grpc_port: int = self._grpc.add_insecure_port("127.0.0.1:0")

    def __enter__(self) -> Self:
        self.enter_context(serving(self._http))
        self._grpc.start()
        self.callback(lambda: self._grpc.stop(None).wait())
        return self

    def service(self, details: Any) -> Any:
        """Return the method of a call of gRPC."""
        if details.method != _EXPORT:
            return None
        return grpc.unary_unary_rpc_method_handler(
            lambda request, _: self._take(request),
            ExportTraceServiceRequest.FromString,
            ExportTraceServiceResponse.SerializeToString,
        )

    def _take(self, request: ExportTraceServiceRequest) -> ExportTraceServiceResponse:
        for resource in request.resource_spans:
            attributes = resource.resource.attributes
            self.resources.append({each.key: each.value.string_value for each in attributes})
            for scope in resource.scope_spans:
                self.spans += scope.spans
        return ExportTraceServiceResponse()

    def _handler(self) -> type[http.server.BaseHTTPRequestHandler]:
        receiver = self

        class Handler(QuietHandler):
            def do_POST(self) -> None:  # noqa: N802
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                answer = receiver._take(ExportTraceServiceRequest.FromString(body))
                self.send_response(200 if self.path == "/v1/traces" else 404)
                self.send_header("Content-Type", "application/x-protobuf")
                self.end_headers()
                self.wfile.write(answer.SerializeToString())

        return Handler
