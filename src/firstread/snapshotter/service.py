# SPDX-License-Identifier: Apache-2.0
"""The snapshots API over gRPC: only translates, between messages and `Snapshotter`.

Owns the mapping of errors: containerd and its clients act on "not found" and "already exists", so
these codes are for refusals of the API alone, never for what a registry answered.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc

from firstread.errors import FirstreadError, NodeError, from_os_error
from firstread.private import check_way
from firstread.snapshotter import messages as api
from firstread.snapshotter.caller import Caller, serving
from firstread.snapshotter.refusal import RefusalError
from firstread.snapshotter.snapshotter import Snapshotter
from firstread.snapshotter.store import Record
from firstread.snapshotter.wire import decode, encode

log = logging.getLogger("snapshotter")

THREADS = 128  # calls at a time; more than may wait for registries, so the others are answered
PAGE = 100  # snapshots in one message of a list
MAX_DETAILS = 2000  # bytes of an error; of more than 8 KiB a client sees "resource exhausted"
_NS = 1_000_000_000


class Service:
    """The methods of the API, by message.

    Args:
        snapshotter: that does it.
    """

    def __init__(self, snapshotter: Snapshotter) -> None:
        self._snapshots = snapshotter

    def handlers(self) -> dict[str, Any]:
        """Return what grpcio needs to know of each method."""
        one = grpc.unary_unary_rpc_method_handler
        methods: dict[str, tuple[type[Any], Callable[[Any], Any]]] = {
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
            name: one(_guarded(method), _decoder(request), encode)
            for name, (request, method) in methods.items()
        }
        found["List"] = grpc.unary_stream_rpc_method_handler(
            _guarded_stream(self._list), _decoder(api.ListRequest), encode
        )
        return found

    def _prepare(self, request: api.PrepareRequest) -> api.MountsResponse:
        return api.MountsResponse(
            self._snapshots.prepare(request.key, request.parent, request.labels)
        )

    def _view(self, request: api.PrepareRequest) -> api.MountsResponse:
        return api.MountsResponse(self._snapshots.view(request.key, request.parent, request.labels))

    def _mounts(self, request: api.KeyRequest) -> api.MountsResponse:
        return api.MountsResponse(self._snapshots.mounts(request.key))

    def _commit(self, request: api.CommitRequest) -> api.Empty:
        self._snapshots.commit(request.name, request.key, request.parent, request.labels)
        return api.Empty()

    def _remove(self, request: api.KeyRequest) -> api.Empty:
        self._snapshots.remove(request.key)
        return api.Empty()

    def _stat(self, request: api.KeyRequest) -> api.InfoResponse:
        return api.InfoResponse(_info(self._snapshots.stat(request.key)))

    def _update(self, request: api.UpdateRequest) -> api.InfoResponse:
        info = request.info or api.Info()
        paths = request.update_mask.paths if request.update_mask else []
        return api.InfoResponse(_info(self._snapshots.update(info.name, info.labels, paths)))

    def _usage(self, request: api.KeyRequest) -> api.UsageResponse:
        return api.UsageResponse(*self._snapshots.usage(request.key))

    def _cleanup(self, request: api.CleanupRequest) -> api.Empty:
        self._snapshots.cleanup()
        return api.Empty()

    def _list(self, request: api.ListRequest) -> Iterator[api.ListResponse]:
        records = self._snapshots.walk(request.filters)
        for start in range(0, len(records), PAGE):
            yield api.ListResponse([_info(record) for record in records[start : start + PAGE]])


def _info(record: Record) -> api.Info:
    return api.Info(
        name=record.name,
        parent=record.parent,
        kind=record.kind,
        created_at=api.Timestamp(*divmod(record.created, _NS)),
        updated_at=api.Timestamp(*divmod(record.updated, _NS)),
        labels=dict(record.labels),
    )


def _decoder(kind: type[Any]) -> Callable[[bytes], Any]:
    return lambda data: decode(kind, data)


def _guarded(method: Callable[[Any], Any]) -> Callable[[Any, grpc.ServicerContext], Any]:
    def call(request: Any, context: grpc.ServicerContext) -> Any:
        try:
            with _caller(context):
                return method(request)
        except Exception as exc:  # noqa: BLE001 - nothing but a status leaves here
            return _abort(context, exc)

    return call


@contextlib.contextmanager
def _caller(context: grpc.ServicerContext) -> Iterator[None]:
    """Work for the client of a call for as long as it waits. Raises RefusalError if it has gone."""
    caller = Caller()
    if not context.add_callback(caller.leave):
        caller.leave()  # while no thread was free for it
    caller.check()
    with serving(caller):
        yield


def _guarded_stream(
    method: Callable[[Any], Iterator[Any]],
) -> Callable[[Any, grpc.ServicerContext], Iterator[Any]]:
    def call(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        try:
            yield from method(request)
        except Exception as exc:  # noqa: BLE001 - nothing but a status leaves here
            _abort(context, exc)

    return call


def _abort(context: grpc.ServicerContext, exc: Exception) -> None:
    code, message = status_of(exc)
    context.abort(code, _fitting(message))


def _fitting(message: str) -> str:
    """Return what of a message fits into a trailer, where a byte may take three."""
    return message.encode(errors="replace")[:MAX_DETAILS].decode(errors="ignore")


def status_of(exc: Exception) -> tuple[grpc.StatusCode, str]:
    """Return code and message of an error."""
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


def start_server(snapshotter: Snapshotter, address: Path) -> grpc.Server:
    """Serve the API on a Unix socket that only root can use.

    Raises:
        NodeError: it cannot be listened on.
    """
    server = grpc.server(ThreadPoolExecutor(THREADS, thread_name_prefix="call"))
    handler = grpc.method_handlers_generic_handler(api.SERVICE, Service(snapshotter).handlers())
    server.add_generic_rpc_handlers((handler,))
    try:
        check_way(address.absolute())
        address.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        address.unlink(missing_ok=True)  # of one before; the lock says that it is gone
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
    return server
