# SPDX-License-Identifier: Apache-2.0
"""An Executor on a Dask cluster: each layer is one task, whoever needs it.

Owns the connection to the scheduler, and what becomes of tasks when it breaks. Invariants: of one
key there is one task at a time; a task that a lost scheduler forgot is sent again, which is safe
because a layer that is packed already is found by its tag; a future always ends.

Facts about Dask (2024.8 to 2026.8):

* When a worker dies, the scheduler runs its tasks on another one, four times by default
  (``distributed.scheduler.allowed-failures``).
* A client that loses the scheduler cancels all futures at once and connects again by itself, for as
  long as `Client(timeout=…)` says. What it submits meanwhile is sent then.
* Workers that lose the scheduler end; their nannies, or Kubernetes, start them again.
* A worker that cannot import what a message names does not fail the task: it ends. So a task names
  nothing but `eval`; its text imports the function, and where that fails, the task does.
* The scheduler keeps a result for as long as a client has its future.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final
from urllib.parse import urlsplit

import distributed
from distributed.comm.core import connect
from distributed.scheduler import KilledWorker
from distributed.security import Security

from firstread.convert.layertask import LayerTask
from firstread.convert.worker import shared
from firstread.errors import EngineError, ImageError, NodeError, UsageError

log = logging.getLogger("engine")

CONNECT_S: Final = 10.0  # until a scheduler answers for the first time
RECONNECT_S: Final = 120.0  # a scheduler's pod that Kubernetes moves is back within a minute or two
RESULT_S: Final = 60.0  # until a worker hands over a descriptor
WARN_S: Final = 10.0  # without workers, until we say so
WORKERS_S: Final = 600.0  # without workers; a cloud takes minutes to add a machine
WATCH_S: Final = 2.0
MAX_KEPT: Final = 10_000  # results; a layer beyond them is found in its repository
TRANSPORTS: Final = {"dask": "tcp", "dask+tls": "tls"}


def open_cluster(text: str) -> DaskExecutor:
    """Connect to a cluster: the entry point of ``--engine dask://HOST:PORT``.

    Raises:
        UsageError: this is no address.
        EngineError: no scheduler answers there.
    """
    parts = urlsplit(text)
    try:
        port = parts.port
    except ValueError:
        port = None
    if not parts.hostname or not port or parts.path.strip("/") or parts.query or parts.username:
        raise UsageError(
            f"{text!r} is no address of a Dask scheduler", hint="write it like dask://HOST:8786"
        )
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return DaskExecutor(f"{TRANSPORTS[parts.scheme]}://{host}:{port}")


@dataclass
class _Task:
    """A layer on its way.

    Args:
        key: of the layer.
        waiting: those who asked, and the expression that a worker evaluates for each. The first
            one's is under way.
        future: Dask's.
        sent: how often; a part of Dask's key, so that no attempt is taken for another.
        result: once there is one.
    """

    key: str
    waiting: list[tuple[Future[str], str]] = field(default_factory=list)
    future: Any = None
    sent: int = 0
    result: str | None = None


class DaskExecutor(Executor):
    """Runs tasks of layers on a cluster.

    Args:
        address: of the scheduler, as Dask writes it.
        reconnect_s: seconds to look for a scheduler that was lost.
        workers_s: seconds to wait for a worker.

    Raises:
        EngineError: no scheduler answers.
    """

    def __init__(
        self, address: str, *, reconnect_s: float = RECONNECT_S, workers_s: float = WORKERS_S
    ) -> None:
        self._address = address
        self._workers_s = workers_s
        self._tasks: dict[str, _Task] = {}
        self._lock = threading.RLock()
        self._warned = -WARN_S
        self._closed = threading.Event()
        logging.getLogger("distributed").setLevel(logging.CRITICAL)  # we say what happens
        try:
            place = urlsplit(address)
            socket.create_connection((place.hostname, place.port), CONNECT_S).close()
            asyncio.run(_greet(address))
            self._client = distributed.Client(
                address, timeout=reconnect_s, set_as_default=False, name="firstread"
            )
        except (OSError, ValueError, RuntimeError) as exc:
            raise EngineError(
                f"no Dask scheduler answers at {address}: {exc}",
                hint="check the address; 'dask scheduler' prints it when it starts",
            ) from exc
        self._watch = threading.Thread(target=self._watching, name="dask-watch", daemon=True)
        self._watch.start()

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run a task; those who ask for the same layer share one.

        Args:
            function: importable on the workers; takes one string.
            args: the document of a `LayerTask`.
            kwargs: none.

        Raises:
            EngineError: the cluster is gone.
        """
        (text,) = args
        key = f"firstread-layer-{LayerTask.decode(text).key}"
        outcome: Future[str] = Future()
        with self._lock:
            task = self._tasks.get(key)
            if task is not None and task.result is not None:
                outcome.set_result(task.result)
                return outcome
            name = f"{function.__module__}:{function.__qualname__}"
            call = f"__import__('pkgutil').resolve_name({name!r})({text!r})"
            if task is not None:
                task.waiting.append((outcome, call))
            else:
                task = self._tasks[key] = _Task(key, [(outcome, call)])
                self._send(task)
        outcome.add_done_callback(partial(self._left, task))
        return outcome

    @property
    def waiting(self) -> int:
        """How many layers somebody waits for."""
        with self._lock:
            return sum(task.result is None for task in self._tasks.values())

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Leave the cluster; it forgets tasks that nobody else waits for."""
        if self._closed.is_set():
            return
        self._closed.set()
        with self._lock:
            left = [outcome for task in self._tasks.values() for outcome, _ in task.waiting]
        for outcome in left:
            outcome.cancel()
        self._client.close(timeout=CONNECT_S)

    def _send(self, task: _Task) -> None:
        """Give a task to the scheduler, at once or when the client has found it again."""
        # A closed client would answer with the future that failed before, for ever.
        if self._client.status not in ("running", "connecting"):
            self._forget(task)
            raise EngineError(
                f"the Dask scheduler at {self._address} is lost",
                hint="what it had packed stays: start it, and run the command again",
            )
        task.sent += 1
        (_, call), *_ = task.waiting
        task.future = self._client.submit(eval, call, key=f"{task.key}-{task.sent}")
        task.future.add_done_callback(partial(self._landed, task))

    def _landed(self, task: _Task, future: Any) -> None:
        """Deal with a task that Dask is done with; called in a thread of Dask."""
        try:
            answer = future.result(timeout=RESULT_S) if future.status == "finished" else None
            error = future.exception() if future.status == "error" else None
        except (Exception, asyncio.CancelledError) as exc:  # noqa: BLE001 - lost in this moment
            log.debug("%s: %s", task.key, exc)
            answer = error = None
        with self._lock:
            if not task.waiting or self._closed.is_set():
                self._forget(task)
            elif answer is not None:
                self._keep(task, answer)
            elif isinstance(error, ImageError | KilledWorker):
                self._end(task, _explained(error))
            elif error is not None:
                # Of the first one's source or credentials, maybe: the next one tries its own.
                self._tell(task.waiting.pop(0)[0], _explained(error))
                self._again(task)
            else:
                self._warn()
                self._again(task)

    def _again(self, task: _Task) -> None:
        """Send a task once more, if somebody waits for it."""
        task.future = None
        try:
            if task.waiting:
                self._send(task)
            else:
                self._forget(task)
        except Exception as exc:  # noqa: BLE001 - in a thread that nobody watches
            self._end(task, exc)

    def _warn(self) -> None:
        """Say once that the scheduler is away: all tasks are lost in the same moment."""
        if time.monotonic() - self._warned > WARN_S:
            self._warned = time.monotonic()
            log.warning("the Dask scheduler at %s is lost: waiting for it", self._address)

    def _keep(self, task: _Task, answer: str) -> None:
        """Tell an answer to all; to those who did not start the task, that somebody else did."""
        task.result, waiting = shared(answer), task.waiting
        task.future, task.waiting = None, []
        while len(self._tasks) > MAX_KEPT:
            key = next((key for key, each in self._tasks.items() if each.result is not None), None)
            if key is None:
                break
            del self._tasks[key]
        for outcome, _ in waiting:
            if outcome.set_running_or_notify_cancel():
                outcome.set_result(answer)
            answer = task.result

    def _end(self, task: _Task, error: BaseException) -> None:
        self._forget(task)
        waiting, task.waiting = task.waiting, []
        for outcome, _ in waiting:
            self._tell(outcome, error)

    def _tell(self, outcome: Future[str], error: BaseException) -> None:
        if outcome.set_running_or_notify_cancel():
            outcome.set_exception(error)

    def _left(self, task: _Task, outcome: Future[str]) -> None:
        """Stop a task that nobody waits for any more."""
        if not outcome.cancelled():
            return
        with self._lock:
            before = len(task.waiting)
            task.waiting = [each for each in task.waiting if each[0] is not outcome]
            if len(task.waiting) < before:
                outcome.set_running_or_notify_cancel()  # or nobody who waits for it wakes up
            if not task.waiting and task.result is None:
                self._forget(task)

    def _forget(self, task: _Task) -> None:
        """Take a task from the list, and from the scheduler if it still has it."""
        if self._tasks.get(task.key) is task:
            del self._tasks[task.key]
        future, task.future = task.future, None
        if future is not None and not future.done() and not self._closed.is_set():
            future.cancel()

    # -- workers -------------------------------------------------------------------------------

    def _watching(self) -> None:
        """End all tasks if no worker comes."""
        since = time.monotonic()
        warned = False
        while not self._closed.wait(WATCH_S):
            if not self._is_stranded():
                since, warned = time.monotonic(), False
                continue
            waited = time.monotonic() - since
            if waited >= WARN_S and not warned:
                log.warning("the Dask scheduler at %s has no workers: waiting", self._address)
                warned = True
            if waited >= self._workers_s:
                error = EngineError(
                    f"the Dask scheduler at {self._address} has had no worker for {waited:.0f} s",
                    hint="start workers: dask worker HOST:PORT, with firstread installed",
                )
                with self._lock:
                    for task in [each for each in self._tasks.values() if each.result is None]:
                        self._end(task, error)

    def _is_stranded(self) -> bool:
        if not self.waiting:
            return False
        try:
            return self._client.status == "running" and not self._client.nthreads()
        except Exception:  # noqa: BLE001 - it does not answer: its futures say what follows
            return False


async def _greet(address: str) -> None:
    """See whether a scheduler of Dask listens; one that nobody refuses may be anything.

    Raises:
        OSError: it does not.
    """
    arguments = Security().get_connection_args("client")
    # Its own timeout leaves a server out that takes the connection and says nothing.
    greeting = connect(address, timeout=CONNECT_S, **arguments)
    try:
        comm = await asyncio.wait_for(greeting, CONNECT_S)
    except TimeoutError:
        raise OSError("it does not speak as a scheduler does") from None
    comm.abort()


def _explained(error: BaseException) -> BaseException:
    """Return the error of a task in our words, if it is Dask's."""
    if isinstance(error, KilledWorker):
        return NodeError(
            f"the worker died each time that it packed the layer, {error.allowed_failures + 1}"
            " times",
            hint="there may be too little memory: use fewer threads for each worker, a smaller"
            " --sector-size, or a larger limit",
        )
    return error
