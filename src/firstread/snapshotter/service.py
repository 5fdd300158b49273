# SPDX-License-Identifier: Apache-2.0
"""The snapshots API over gRPC: translates between messages and `Snapshotter`.

Owns the mapping of errors: containerd and its clients act on "not found" and "already exists", so
only refusals of the API use these codes, never a registry's answers.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from firstread.errors import FirstreadError, NodeError, from_os_error, from_shortage
from firstread.private import check_way
from firstread.snapshotter import containerd_pb2 as api
from firstread.snapshotter.caller import Caller, serving
from firstread.snapshotter.messages import SERVICE, Mount, encode
from firstread.snapshotter.records import Record
from firstread.snapshotter.refusal import RefusalError
from firstread.snapshotter.snapshotmetrics import CallCounts
from firstread.snapshotter.snapshots import Snapshotter
from firstread.threads import SteadyPool

log = logging.getLogger("snapshotter")

THREADS = 128  # calls at a time: more than may wait for registries, so others get an answer
PAGE = 100  # snapshots in one message of a list
MAX_DETAILS = 2000  # bytes of an error; beyond 8 KiB a client sees "resource exhausted"
_NS = 1_000_000_000


class Service:
    """The methods of the API, by message.

    Args:
        snapshotter: does the work.
        calls: counts what comes.
    """

    def __init__(self, snapshotter: Snapshotter, calls: CallCounts) -> None:
        self._snapshots, self._calls = snapshotter, calls

    def handlers(self) -> dict[str, Any]:
        """Return the handlers of all methods, for grpcio."""
        methods: dict[str, tuple[type[Message], Callable[[Any], Message]]] = {
            "Prepare": (api.PrepareRequest, self._prepare),
            "View": (api.PrepareRequest, self._view),
            "Mounts": (api.KeyRequest, self._mounts),
            "Commit": (api.CommitRequest, self._commit),
            "Remove": (api.KeyRequest, self._remove),
            "Stat": (api.KeyRequest, self._stat),
            "Update": (api.UpdateRequest, self._update),
            "Usage": (api.KeyRequest, self._usage),
            "Cleanup": (api.CleanupRequest, self._cleanup),
        }
        found = {
            name: grpc.unary_unary_rpc_method_handler(
                _guarded(method, partial(self._calls.add, name)), request.FromString, encode
            )
            for name, (request, method) in methods.items()
        }
        found["List"] = grpc.unary_stream_rpc_method_handler(
            _guarded_stream(self._list, partial(self._calls.add, "List")),
            api.ListRequest.FromString,
            encode,
        )
        return found

    def _prepare(self, request: api.PrepareRequest) -> api.MountsResponse:
        labels = dict(request.labels)
        return _response(self._snapshots.prepare(request.key, request.parent, labels))

    def _view(self, request: api.PrepareRequest) -> api.MountsResponse:
        labels = dict(request.labels)
        return _response(self._snapshots.view(request.key, request.parent, labels))

    def _mounts(self, request: api.KeyRequest) -> api.MountsResponse:
        return _response(self._snapshots.mounts(request.key))

    def _commit(self, request: api.CommitRequest) -> Empty:
        labels = dict(request.labels)
        self._snapshots.commit(request.name, request.key, request.parent, labels)
        return Empty()

    def _remove(self, request: api.KeyRequest) -> Empty:
        self._snapshots.remove(request.key)
        return Empty()

    def _stat(self, request: api.KeyRequest) -> api.InfoResponse:
        return api.InfoResponse(info=_info(self._snapshots.stat(request.key)))

    def _update(self, request: api.UpdateRequest) -> api.InfoResponse:
        info, paths = request.info, list(request.update_mask.paths)
        record = self._snapshots.update(info.name, dict(info.labels), paths)
        return api.InfoResponse(info=_info(record))

    def _usage(self, request: api.KeyRequest) -> api.UsageResponse:
        size, inodes = self._snapshots.usage(request.key)
        return api.UsageResponse(size=size, inodes=inodes)

    def _cleanup(self, request: api.CleanupRequest) -> Empty:
        self._snapshots.cleanup()
        return Empty()

    def _list(self, request: api.ListRequest) -> Iterator[api.ListResponse]:
        records = self._snapshots.walk(list(request.filters))
        for start in range(0, len(records), PAGE):
            page = records[start : start + PAGE]
            yield api.ListResponse(info=[_info(record) for record in page])


def _response(mounts: Sequence[Mount]) -> api.MountsResponse:
    return api.MountsResponse(mounts=[api.Mount(**vars(mount)) for mount in mounts])


def _info(record: Record) -> api.Info:
    return api.Info(
        name=record.name,
        parent=record.parent,
        kind=record.kind,
        created_at=_timestamp(record.created),
        updated_at=_timestamp(record.updated),
        labels=record.labels,
    )


def _timestamp(nanoseconds: int) -> Timestamp:
    seconds, nanos = divmod(nanoseconds, _NS)
    return Timestamp(seconds=seconds, nanos=nanos)


def _guarded(
    method: Callable[[Any], Any], count: Callable[[str], None]
) -> Callable[[Any, grpc.ServicerContext], Any]:
    """Return a method whose errors become statuses; `count` is told the code of each call."""

    def call(request: Any, context: grpc.ServicerContext) -> Any:
        try:
            with _caller(context):
                answer = method(request)
        except Exception as exc:  # noqa: BLE001 - nothing but a status leaves here
            return _abort(context, exc, count)
        count("OK")
        return answer

    return call


@contextlib.contextmanager
def _caller(context: grpc.ServicerContext) -> Iterator[None]:
    """Work for the client of a call while it waits. Raises RefusalError if it has gone."""
    caller = Caller(dict(context.invocation_metadata()).get("traceparent", ""))
    if not context.add_callback(caller.leave):
        caller.leave()  # it went while no thread was free
    caller.check()
    with serving(caller):
        yield


def _guarded_stream(
    method: Callable[[Any], Iterator[Any]], count: Callable[[str], None]
) -> Callable[[Any, grpc.ServicerContext], Iterator[Any]]:
    def call(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        try:
            yield from method(request)
        except Exception as exc:  # noqa: BLE001 - nothing but a status leaves here
            _abort(context, exc, count)
        count("OK")

    return call


def _abort(context: grpc.ServicerContext, exc: Exception, count: Callable[[str], None]) -> None:
    code, message = status_of(exc)
    count(code.name)
    context.abort(code, _fitting(message))  # raises


def _fitting(message: str) -> str:
    """Return the part of a message that fits into a trailer, where a byte can take three."""
    return message.encode(errors="replace")[:MAX_DETAILS].decode(errors="ignore")


def status_of(exc: Exception) -> tuple[grpc.StatusCode, str]:
    """Return code and message of an error."""
    exc = from_shortage(exc, "the snapshotter") or exc
    if isinstance(exc, RefusalError):
        return grpc.StatusCode[exc.kind.name], _message(exc)
    if isinstance(exc, FirstreadError):
        log.warning("%s", exc)
        later = exc.retryable or isinstance(exc, NodeError)
        code = grpc.StatusCode.UNAVAILABLE if later else grpc.StatusCode.FAILED_PRECONDITION
        return code, f"firstread: {_message(exc)}"
    log.error("a call failed", exc_info=exc)
    return grpc.StatusCode.INTERNAL, f"firstread: internal error: {exc}"


def _message(exc: FirstreadError) -> str:
    return f"{exc} ({exc.hint})" if exc.hint else str(exc)


def server_of(snapshotter: Snapshotter, calls: CallCounts) -> grpc.Server:
    """Return a server for the API, which does not listen yet.

    Args:
        snapshotter: does the work.
        calls: counts what comes.
    """
    server = grpc.server(SteadyPool(THREADS, "call"))
    handler = grpc.method_handlers_generic_handler(SERVICE, Service(snapshotter, calls).handlers())
    server.add_generic_rpc_handlers((handler,))
    return server


def start(server: grpc.Server, address: Path) -> None:
    """Serve on a Unix socket that only root can use.

    Raises:
        NodeError: listening fails, or something else than a socket is there.
    """
    try:
        check_way(address.absolute())
        if address.exists() and not address.is_socket():
            raise NodeError(f"{address} is there, and is no socket", hint="choose another path")
        address.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        address.unlink(missing_ok=True)  # of an earlier process, which is gone: we hold the lock
        mask = os.umask(0o177)
        try:
            server.add_insecure_port(f"unix://{address.absolute()}")
        except RuntimeError as exc:
            raise NodeError(f"cannot listen on {address}: {exc}") from exc
        finally:
            os.umask(mask)
    except OSError as exc:
        raise from_os_error(exc, "cannot listen on the socket") from exc
    server.start()
