# SPDX-License-Identifier: Apache-2.0
"""The container's standard streams, and their connections.

Owns the pipes or the terminal, and the threads that copy. Invariant: no descriptor of the caller
reaches the container, which could otherwise read the caller's terminal or reopen its files; all
data passes through the container's own pipes or terminal.

One thread copies one direction, so a slow reader holds up only its own stream.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import termios
import threading
import tty
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from firstread.errors import NodeError, UsageError
from firstread.run.runtime import ConsoleSocket

Sink = Callable[[bytes], None]
"""Takes a piece of output. Raises ConnectionError (a broken pipe is one) when nobody wants more,
and another OSError when writing fails."""

Look = Callable[[int, bytes], None]
"""Sees a piece of output before anybody else, with the descriptor: 1 or 2. Raises nothing."""

_CHUNK_BYTES = 64 * 1024
_DRAIN_SECONDS = 2.0
"""Time without output after the container's end. Its processes are dead by then; only an outside
process that inherited a pipe could keep it open. A slow reader of our output is not limited."""


class Streams(Protocol):
    """The container's side, for the runtime, and our side while the container runs."""

    def for_runtime(self) -> tuple[Sequence[int], Path | None]:
        """Return the descriptors and the console socket for `Runtime.create`."""

    def start(self) -> None:
        """Start to copy, after the container's creation."""

    def resize(self) -> None:
        """Pass the size of the caller's terminal on."""

    def finish(self) -> OSError | None:
        """Copy the rest, after the container's end; return the error that lost output, if any."""

    def give_up(self) -> None:
        """Let `finish` return soon, whatever is left; safe in a signal handler."""

    def close(self) -> None:
        """Close the descriptors, started or not."""


def to_descriptor(descriptor: int) -> Sink:
    """Return a sink that writes to `descriptor`, which may be non-blocking."""
    is_terminal = os.isatty(descriptor)

    def write(content: bytes) -> None:
        view = memoryview(content)
        while view:
            try:
                view = view[os.write(descriptor, view) :]
            except BlockingIOError:
                _wait_until(descriptor, select.POLLOUT)
            except OSError as exc:
                if is_terminal and exc.errno == errno.EIO:
                    raise BrokenPipeError("the terminal has hung up") from exc
                raise

    return write


def first_of(sinks: Sequence[Sink], announce: Callable[[], None]) -> list[Sink]:
    """Wrap the sinks, to call `announce` once, before the first output of any."""
    lock = threading.Lock()
    pending = [announce]

    def wrap(sink: Sink) -> Sink:
        def write(content: bytes) -> None:
            with lock:
                waiting = pending.pop() if pending else None
            if waiting:
                waiting()
            sink(content)

        return write

    return [wrap(sink) for sink in sinks]


def watched(number: int, look: Look) -> Sink:
    """Return a sink that writes to descriptor `number`, and shows each piece to `look` first."""
    sink = to_descriptor(number)

    def write(content: bytes) -> None:
        look(number, content)
        sink(content)

    return write


class PipeStreams:
    """Three pipes.

    Args:
        stdin: descriptor to copy from; None for an empty input, or an endless one with `keep_open`.
        stdout: gets the container's output.
        stderr: gets its errors.
    """

    def __init__(
        self, stdin: int | None, stdout: Sink, stderr: Sink, *, keep_open: bool = False
    ) -> None:
        self._stdin = stdin
        self._sinks = (stdout, stderr)
        self._ours: list[int] = []
        self._drains: list[_Drain] = []
        self._theirs: list[int] = []
        read_end, write_end = os.pipe()
        self._theirs.append(read_end)
        self._input: int | None = write_end
        if stdin is None and not keep_open:
            os.close(write_end)
            self._input = None
        for _ in self._sinks:
            read_end, write_end = os.pipe()
            self._ours.append(read_end)
            self._theirs.append(write_end)

    def for_runtime(self) -> tuple[Sequence[int], Path | None]:
        return self._theirs, None

    def start(self) -> None:
        self._close_theirs()
        outputs, self._ours = self._ours, []
        for source, sink in zip(outputs, self._sinks, strict=True):
            self._drains.append(_Drain(source, sink))
        if self._stdin is not None and self._input is not None:
            _thread(_feed, self._stdin, self._input)
            self._input = None

    def resize(self) -> None:
        pass

    def finish(self) -> OSError | None:
        for drain in self._drains:
            drain.finish()
        return next((drain.lost for drain in self._drains if drain.lost), None)

    def give_up(self) -> None:
        for drain in self._drains:
            drain.give_up()

    def close(self) -> None:
        self._close_theirs()
        for descriptor in self._ours:
            os.close(descriptor)
        self._ours = []
        if self._input is not None:
            os.close(self._input)
            self._input = None

    def _close_theirs(self) -> None:
        for descriptor in self._theirs:
            os.close(descriptor)
        self._theirs = []


class TerminalStreams:
    """A terminal.

    Args:
        stdin: the caller's terminal, in raw mode while the container runs; None for no input.
        output: gets the container's output.
        size_of: the terminal whose size the container's follows, or None.
        directory: gets a socket.
    """

    def __init__(
        self, stdin: int | None, output: Sink, size_of: int | None, directory: Path
    ) -> None:
        self._stdin = stdin
        self._output = output
        self._size_of = size_of
        self._console = ConsoleSocket(directory)
        self._null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        self._master = -1
        self._drain: _Drain | None = None
        self._raw = contextlib.ExitStack()

    def for_runtime(self) -> tuple[Sequence[int], Path | None]:
        return (self._null,) * 3, self._console.path

    def start(self) -> None:
        self._master = self._console.receive()
        self.resize()
        # The threads have their own descriptors, so `close` never closes one during a read.
        self._drain = _Drain(os.dup(self._master), self._output)
        if self._stdin is not None:
            self._raw.enter_context(_raw_mode(self._stdin))
            _thread(_feed, self._stdin, os.dup(self._master))

    def resize(self) -> None:
        if self._size_of is not None and self._master >= 0:
            with contextlib.suppress(OSError):
                size = fcntl.ioctl(self._size_of, termios.TIOCGWINSZ, bytes(8))
                fcntl.ioctl(self._master, termios.TIOCSWINSZ, size)

    def finish(self) -> OSError | None:
        if self._drain:
            self._drain.finish()
        return self._drain.lost if self._drain else None

    def give_up(self) -> None:
        if self._drain:
            self._drain.give_up()

    def close(self) -> None:
        self._raw.close()
        self._console.close()
        for descriptor in (self._null, self._master):
            if descriptor >= 0:
                os.close(descriptor)
        self._null = self._master = -1


def check_terminal(*, interactive: bool, tty: bool) -> None:
    """Check that standard input is a terminal, if the user asks for its keys.

    Raises:
        UsageError: it is not.
    """
    if interactive and tty and not os.isatty(0):
        raise UsageError("the input device is not a TTY", hint="leave -t out, or -i")


def caller_streams(
    directory: Path,
    *,
    interactive: bool,
    tty: bool,
    on_first_output: Callable[[], None] = lambda: None,
    on_output: Look = lambda *_: None,
) -> Streams:
    """Connect a process of a container to the streams of this process.

    Args:
        directory: gets a socket, for a terminal.
        interactive: the process gets our input.
        tty: the process has a terminal.
        on_first_output: called before the first byte of output, in another thread.
        on_output: sees all output, in other threads.
    """
    stdin = 0 if interactive else None
    output, error = first_of([watched(1, on_output), watched(2, on_output)], on_first_output)
    if not tty:
        return PipeStreams(stdin, output, error)
    size_of = next((number for number in (0, 1, 2) if os.isatty(number)), None)
    return TerminalStreams(stdin, output, size_of, directory)


class _Drain:
    """A thread that copies output until its end. When the sink refuses, the container gets SIGPIPE.

    Args:
        source: closed at the end.
        sink: may take its time.

    Attributes:
        lost: the error that lost output which somebody wanted.
    """

    lost: OSError | None = None

    def __init__(self, source: int, sink: Sink) -> None:
        self._sink = sink
        self._reading = True
        self._pieces = 0
        self._given_up = False
        self._thread = _thread(self._copy, source)

    def finish(self) -> None:
        """Wait until all output has passed, or nothing has come for some time."""
        while self._thread.is_alive() and not self._given_up:
            pieces = self._pieces
            self._thread.join(_DRAIN_SECONDS)
            if self._reading and self._pieces == pieces:
                return

    def give_up(self) -> None:
        """Let `finish` return, soon."""
        self._given_up = True

    def _copy(self, source: int) -> None:
        try:
            while content := _read(source):
                self._reading = False
                self._sink(content)
                self._pieces += 1  # before `_reading`: `finish` could take two reads for one
                self._reading = True
        except ConnectionError:
            pass  # the caller's end is closed
        except OSError as exc:
            self.lost = exc
        finally:
            os.close(source)


def _thread(function: Callable[..., None], *arguments: object) -> threading.Thread:
    # A daemon: waiting for the caller's input must not keep the process from ending.
    thread = threading.Thread(target=function, args=arguments, daemon=True)
    thread.start()
    return thread


def _feed(source: int, target: int) -> None:
    """Copy the caller's input, and its end, to the container."""
    sink = to_descriptor(target)
    try:
        while content := _read(source):
            sink(content)
    except OSError:
        pass  # the container's end is closed
    finally:
        os.close(target)


def _read(source: int) -> bytes:
    while True:
        try:
            return os.read(source, _CHUNK_BYTES)
        except BlockingIOError:
            _wait_until(source, select.POLLIN)
        except OSError:
            return b""  # EIO: a terminal that no process has open


def _wait_until(descriptor: int, event: int) -> None:
    """Wait for a descriptor that is non-blocking: the caller shares it, and decides that."""
    poller = select.poll()
    poller.register(descriptor, event)
    poller.poll()


@contextlib.contextmanager
def _raw_mode(terminal: int) -> Iterator[None]:
    try:
        saved = termios.tcgetattr(terminal)
        tty.setraw(terminal, termios.TCSANOW)
    except termios.error as exc:  # no OSError
        raise NodeError(f"cannot set up the terminal: {exc.args[-1]}") from exc
    try:
        yield
    finally:
        with contextlib.suppress(termios.error):  # it has hung up
            termios.tcsetattr(terminal, termios.TCSADRAIN, saved)
