# SPDX-License-Identifier: Apache-2.0
"""Errors say what happened, to what, and what to do; and they survive a trip between processes."""

from __future__ import annotations

import errno
import pickle
import re
import threading

import pytest

from firstread import errors
from firstread.errors import (
    BusyError,
    DigestError,
    EngineError,
    FirstreadError,
    ImageError,
    NodeError,
    SectorCountError,
    TransportError,
    UsageError,
    from_os_error,
    from_shortage,
)
from firstread.testing.shortage import no_threads

TREE = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, FirstreadError)
]


def test_the_tree_is_the_one_drawn_in_the_module() -> None:
    drawn = dict(re.findall(r"[├└]── (\w+) +(\d?)", errors.__doc__ or ""))
    assert {kind.__name__ for kind in TREE} == drawn.keys() | {"FirstreadError"}
    codes = {kind.__name__: str(kind.exit_code) for kind in TREE}
    assert {name: codes[name] for name, code in drawn.items() if code} == {
        name: code for name, code in drawn.items() if code
    }


@pytest.mark.parametrize("kind", TREE)
def test_pickled_for_another_process(kind: type[FirstreadError]) -> None:
    error = kind("what happened", hint="do this", image="oci:a", layer="sha256:b")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert copy.to_dict() == error.to_dict()
    assert str(copy) == "oci:a: layer sha256:b: what happened"


def test_a_copy_shares_nothing() -> None:
    error = SectorCountError("too many", excess=3.0, hint="do this", layer="sha256:b")
    copy = error.copy()
    copy.about(image="oci:a")
    copy.message = "on a: too many"
    assert (type(copy), copy.excess, copy.args) == (SectorCountError, 3.0, error.args)
    assert str(error) == "layer sha256:b: too many"


def test_context_is_filled_in_once() -> None:
    error = ImageError("bad").about(layer="sha256:inner").about(image="oci:a", layer="sha256:outer")
    assert str(error) == "oci:a: layer sha256:inner: bad"
    assert str(ImageError("layer sha256:x is bad", layer="sha256:x")) == "layer sha256:x is bad"
    assert str(UsageError("bad")) == "bad"


def test_a_message_is_bounded_whatever_it_quotes() -> None:
    long = "x" * 100_000
    error = FirstreadError(long, hint=long).about(image="r.example/a:b")
    error.message = f"entry {long}: {error.message}"
    assert str(error).startswith("r.example/a:b: entry xxx")
    for text in (str(error), error.hint or "", str(error.to_dict()["message"]), *error.args):
        assert len(text) == errors.MAX_MESSAGE
        assert text.endswith("…")


def test_a_private_kind_is_called_by_the_name_that_is_documented() -> None:
    class _HungUpError(NodeError):
        pass

    assert _HungUpError("the daemon hung up").to_dict()["error"] == "NodeError"


def test_json() -> None:
    assert DigestError("bad", hint="again", layer="sha256:x").to_dict() == {
        "error": "DigestError",
        "message": "bad",
        "hint": "again",
        "image": None,
        "layer": "sha256:x",
        "exit_code": 3,
        "retryable": False,
    }


def test_only_what_may_work_later_is_retried() -> None:
    retryable = {kind for kind in TREE if kind.retryable}
    assert retryable == {TransportError, BusyError, EngineError}


@pytest.mark.parametrize(
    ("number", "hint"),
    [(errno.ENOSPC, "free some space"), (errno.EROFS, "read-only"), (errno.EIO, "")],
)
def test_system_calls(number: int, hint: str) -> None:
    error = from_os_error(OSError(number, "strerror", "/some/file"), "cannot write")
    assert isinstance(error, NodeError)
    assert str(error) == "cannot write '/some/file': strerror"
    assert hint in (error.hint or "")


def test_system_calls_without_a_file() -> None:
    assert str(from_os_error(OSError("odd"), "cannot read")) == "cannot read: odd"


def test_a_machine_that_is_short_of_something_is_no_defect() -> None:
    with no_threads(), pytest.raises(RuntimeError) as caught:
        threading.Thread(target=print).start()
    for exc, word in ((caught.value, "threads"), (MemoryError(), "memory")):
        error = from_shortage(exc)
        assert isinstance(error, BusyError)
        assert word in str(error)
    assert from_shortage(RuntimeError("cannot schedule new futures after shutdown")) is None
