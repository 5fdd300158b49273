# SPDX-License-Identifier: Apache-2.0
"""The copying of a container's output and input: nothing is lost, and nothing waits for ever."""

from __future__ import annotations

import errno
import os
import select
import termios
import threading
from collections.abc import Iterator

import pytest

from firstread.errors import NodeError
from firstread.run import streams as module
from firstread.run.streams import PipeStreams, Sink, to_descriptor
from firstread.testing.patience import PATIENCE_S


@pytest.fixture(autouse=True)
def short_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_DRAIN_SECONDS", 0.05)


@pytest.fixture
def taken() -> list[bytes]:
    return []


@pytest.fixture
def reader_waits() -> Iterator[threading.Event]:
    """A reader that takes nothing until this is set."""
    event = threading.Event()
    yield event
    event.set()


def begin(streams: PipeStreams) -> int:
    """Start to copy; return the container's standard output."""
    (_, output, _), _ = streams.for_runtime()
    output = os.dup(output)
    streams.start()
    return output


def finish(streams: PipeStreams) -> threading.Thread:
    thread = threading.Thread(target=streams.finish, daemon=True)
    thread.start()
    return thread


def test_a_slow_reader_gets_all(taken: list[bytes], reader_waits: threading.Event) -> None:
    def sink(content: bytes) -> None:
        reader_waits.wait(PATIENCE_S)
        taken.append(content)

    streams = PipeStreams(None, sink, taken.append)
    output = begin(streams)
    os.write(output, b"1" * 65536)
    os.write(output, b"2")  # there is room only when the first piece was read
    os.close(output)
    finishing = finish(streams)
    finishing.join(0.5)  # ten times what a read may take
    assert finishing.is_alive()
    reader_waits.set()
    finishing.join(PATIENCE_S)
    assert b"".join(taken) == b"1" * 65536 + b"2"
    streams.close()


def test_a_pipe_that_stays_open_is_not_waited_for(taken: list[bytes]) -> None:
    streams = PipeStreams(None, taken.append, taken.append)
    output = begin(streams)
    os.write(output, b"all")
    finishing = finish(streams)
    finishing.join(PATIENCE_S)
    assert not finishing.is_alive()
    assert taken == [b"all"]
    os.close(output)
    streams.close()


def test_a_reader_that_is_stuck_can_be_given_up(reader_waits: threading.Event) -> None:
    began = threading.Event()

    def sink(_: bytes) -> None:
        began.set()
        reader_waits.wait(PATIENCE_S)

    streams = PipeStreams(None, sink, sink)
    output = begin(streams)
    os.write(output, b"x")
    os.close(output)
    assert began.wait(PATIENCE_S)
    finishing = finish(streams)
    finishing.join(0.2)
    assert finishing.is_alive()
    streams.give_up()
    finishing.join(PATIENCE_S)
    assert not finishing.is_alive()
    streams.close()


def test_output_that_cannot_be_written_is_lost() -> None:
    with open("/dev/full", "wb") as full:
        lost = _lost(to_descriptor(full.fileno()))
    assert lost is not None
    assert lost.errno == errno.ENOSPC


def test_output_that_nobody_wants_is_not_lost() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    assert _lost(to_descriptor(write_end)) is None
    os.close(write_end)


def test_output_for_a_terminal_that_has_hung_up_is_not_lost() -> None:
    master, terminal = os.openpty()
    sink = to_descriptor(terminal)
    os.close(master)
    assert _lost(sink) is None
    os.close(terminal)


def _lost(sink: Sink) -> OSError | None:
    """Return why the output of a container that ended is lost."""
    streams = PipeStreams(None, sink, sink)
    output = begin(streams)
    os.write(output, b"all that it has to say")
    os.close(output)
    lost = streams.finish()
    streams.close()
    return lost


def test_an_output_that_does_not_block() -> None:
    content = os.urandom(300_000)  # more than a pipe holds
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)

    def write() -> None:
        to_descriptor(write_end)(content)
        os.close(write_end)

    threading.Thread(target=write, daemon=True).start()
    with open(read_end, "rb") as file:
        assert file.read() == content


def test_an_input_that_does_not_block(taken: list[bytes]) -> None:
    """And that has nothing yet when it is asked first."""
    read_end, write_end = os.pipe()
    os.set_blocking(read_end, False)
    streams = PipeStreams(read_end, taken.append, taken.append)
    (stdin, _, _), _ = streams.for_runtime()
    stdin = os.dup(stdin)
    streams.start()
    assert select.select([stdin], [], [], 0.2)[0] == []  # not even its end
    os.write(write_end, b"late")
    os.close(write_end)
    with open(stdin, "rb") as file:
        assert file.read() == b"late"
    os.close(read_end)
    streams.close()


def test_a_terminal_that_has_hung_up_is_left_as_it_is() -> None:
    """The container goes on, and what it has written must not go with an error here."""
    master, terminal = os.openpty()
    with module._raw_mode(terminal):
        os.close(master)
        with pytest.raises(termios.error):
            termios.tcgetattr(terminal)
    with pytest.raises(NodeError, match="terminal"), module._raw_mode(terminal):
        pytest.fail("it has hung up")
    os.close(terminal)
