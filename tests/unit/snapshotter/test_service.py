# SPDX-License-Identifier: Apache-2.0
"""What a client of the snapshots API is told when something fails."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from firstread.errors import FirstreadError, ImageError
from firstread.snapshotter.caller import current
from firstread.snapshotter.service import MAX_DETAILS, _guarded, _guarded_stream


class _Failing(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Answers every call with an error."""

    def __init__(self, error: Exception) -> None:
        self._error = error
        self.codes: list[str] = []

    def service(self, details: Any) -> Any:
        def one(request: Any) -> Any:
            raise self._error

        def several(request: Any) -> Iterator[Any]:
            raise self._error
            yield

        if details.method.endswith("List"):
            return grpc.unary_stream_rpc_method_handler(_guarded_stream(several, self.codes.append))
        return grpc.unary_unary_rpc_method_handler(_guarded(one, self.codes.append))


@pytest.mark.parametrize("letter", ["x", "%", "\u00e9", "\U0001f600", "\udc80", "\n"])
@pytest.mark.parametrize("kind", [ImageError, ValueError])
def test_a_long_error_reaches_the_client(
    tmp_path: Path, letter: str, kind: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "snapshotter")  # xdist cannot send a report with U+DC80
    error = kind(letter * 100_000)
    if isinstance(error, FirstreadError):
        error.about(image="r.example/a:b")
    server = grpc.server(ThreadPoolExecutor(1))
    failing = _Failing(error)
    server.add_generic_rpc_handlers((failing,))
    server.add_insecure_port(f"unix://{tmp_path}/s")
    server.start()
    try:
        with grpc.insecure_channel(f"unix://{tmp_path}/s") as channel:
            with pytest.raises(grpc.RpcError) as one:
                channel.unary_unary("/a/Stat")(b"", timeout=20)
            with pytest.raises(grpc.RpcError) as several:
                list(channel.unary_stream("/a/List")(b"", timeout=20))
    finally:
        server.stop(None)
    for caught in (one.value, several.value):
        assert caught.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED
        assert caught.details().startswith("firstread: ")
        assert len(caught.details()) <= MAX_DETAILS
    assert failing.codes == [one.value.code().name, several.value.code().name]


class _Asking(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Answers with the trace context that the work for a call is done in."""

    def service(self, details: Any) -> Any:
        del details
        return grpc.unary_unary_rpc_method_handler(
            _guarded(lambda _: current().context.encode(), lambda _: None)
        )


@pytest.mark.parametrize("sent", ["", f"00-{'a' * 32}-{'b' * 16}-01"])
def test_work_for_a_call_knows_its_trace(tmp_path: Path, sent: str) -> None:
    server = grpc.server(ThreadPoolExecutor(1))
    server.add_generic_rpc_handlers((_Asking(),))
    server.add_insecure_port(f"unix://{tmp_path}/s")
    server.start()
    try:
        with grpc.insecure_channel(f"unix://{tmp_path}/s") as channel:
            metadata = (("traceparent", sent),) if sent else ()
            assert channel.unary_unary("/a/Prepare")(b"", metadata=metadata).decode() == sent
    finally:
        server.stop(None)
