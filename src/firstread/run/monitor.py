# SPDX-License-Identifier: Apache-2.0
"""The monitor: the process that attends a detached container after the command has returned.

Owns the detachment: double fork, own session, no terminal, and the report to the command whether
the container started. Invariant: the command returns with this report, and the monitor then holds
nothing of the command's: no terminal, lock, pipe or connection.

A fork rather than a new program allows any function at the container's end. The caller must have
no other threads at that moment.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from typing import Any, NoReturn

import msgspec

from firstread import errors
from firstread.errors import FirstreadError, NodeError
from firstread.run.runtime import CommandError

Report = Callable[[bytes], None]
"""Tells the command that the container runs; called once."""


class _Failure(msgspec.Struct):
    error: str
    message: str
    hint: str | None
    exit_code: int


class _Success(msgspec.Struct):
    payload: bytes


class _Answer(msgspec.Struct):
    success: _Success | None = None
    failure: _Failure | None = None


def run_detached(body: Callable[[Report], None]) -> bytes:
    """Run `body` in a process that outlives this one; return its report.

    Args:
        body: calls its argument to let the caller return, and continues. It runs with standard
            streams from and to /dev/null, and the root as its working directory.

    Raises:
        FirstreadError: the one that `body` raised before it reported.
    """
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setsid()
            if os.fork() == 0:
                _become_monitor(body, read_end, write_end)
        finally:
            os._exit(0)  # never into what the caller was doing
    os.close(write_end)
    os.waitpid(child, 0)
    with open(read_end, "rb") as pipe:
        content = pipe.read()
    try:
        answer = msgspec.msgpack.decode(content, type=_Answer)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise NodeError("the monitor of the container died before it started") from exc
    if answer.failure:
        raise _to_error(answer.failure)
    return answer.success.payload if answer.success else b""


def _become_monitor(body: Callable[[Report], None], read_end: int, write_end: int) -> NoReturn:
    """Run `body` and exit; never return into the frames of the command."""
    code = 1
    try:
        os.close(read_end)
        _let_go(keep=write_end)
        pipe = open(write_end, "wb")  # noqa: SIM115 - closed by the first answer

        def answer(**parts: Any) -> None:
            if pipe.closed:
                return  # nobody reads a second answer, and its number may be another file's
            with pipe:
                pipe.write(msgspec.msgpack.encode(_Answer(**parts)))

        try:
            body(lambda payload: answer(success=_Success(payload)))
        except FirstreadError as exc:
            code = exc.exit_code
            answer(failure=_to_failure(exc))
        else:
            code = 0
    finally:
        os._exit(code)


def _let_go(keep: int) -> None:
    """Drop all descriptors of the command.

    The monitor replaces rather than closes them: the command's objects still know the numbers, and
    would close, or worse use, the monitor's own files under them.
    """
    gc.freeze()
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    for name in os.listdir("/proc/self/fd"):
        number = int(name)
        if number in {keep, null}:
            continue
        try:
            os.fstat(number)  # the listed directory itself is closed by now
        except OSError:
            continue
        os.dup2(null, number, inheritable=number < 3)
    if null > 2:
        os.close(null)


def _to_failure(exc: FirstreadError) -> _Failure:
    return _Failure(type(exc).__name__, str(exc), exc.hint, exc.exit_code)


def _to_error(failure: _Failure) -> FirstreadError:
    if failure.error == CommandError.__name__:
        return CommandError(failure.message, hint=failure.hint, exit_code=failure.exit_code)
    kind: type[FirstreadError] = getattr(errors, failure.error, NodeError)
    return kind(failure.message, hint=failure.hint)
