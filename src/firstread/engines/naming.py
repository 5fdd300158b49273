# SPDX-License-Identifier: Apache-2.0
"""From the text of ``--engine`` to an engine: any `concurrent.futures.Executor`, by an entry point.

Owns the choice; knows no engine. A package offers one below the group `GROUP`: its name is the
scheme of the text, its value a function that takes the text and returns the Executor. What such an
Executor must do is to call `firstread.convert.worker.run_task` with one string and to give back the
string, or the exception.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from importlib.metadata import entry_points
from typing import Any, Final

from firstread.errors import EngineError, FirstreadError, UsageError, cut
from firstread.redact import redact

GROUP: Final = "firstread.engines"
MAX_SHOWN: Final = 200  # characters of a text in a message
LOCAL: Final = "local"  # threads of this process: no engine

_TEXT: Final = re.compile(r"([a-z][a-z0-9+.-]{0,63})://\S{0,1000}")


@contextmanager
def opened_engine(text: str) -> Iterator[Executor | None]:
    """Open the engine that `text` names; close it with the block, whatever happens there.

    Args:
        text: such as ``dask://scheduler:8786``; `LOCAL` for none.

    Raises:
        UsageError: there is no such engine, or its package is not installed.
        EngineError: it does not answer.
    """
    if text == LOCAL:
        yield None
        return
    executor = _open(text)
    try:
        yield executor
    finally:
        executor.shutdown(wait=False, cancel_futures=True)


def check_engine(text: str) -> str:
    """Return `text` if it names an engine that somebody offers, without loading it.

    Raises:
        UsageError: it does not.
    """
    if text != LOCAL:
        _entry(text)
    return text


def _entry(text: str) -> Any:
    match = _TEXT.fullmatch(text)
    offered = {entry.name: entry for entry in entry_points(group=GROUP)}
    if match is None or match[1] not in offered:
        raise UsageError(
            f"{cut(redact(text), MAX_SHOWN)!r} is no engine",
            hint=f"one of {', '.join([LOCAL, *(f'{name}://…' for name in sorted(offered))])}",
        )
    return offered[match[1]]


def _open(text: str) -> Executor:
    entry = _entry(text)
    try:
        opened: Executor = entry.load()(text)
    except FirstreadError:
        raise
    except ImportError as exc:
        raise UsageError(
            f"the engine {entry.name} needs a package that is not installed: {exc}",
            hint=f"pip install 'firstread[{entry.name}]'",
        ) from exc
    except Exception as exc:
        shown = redact(f"{text}: {type(exc).__name__}: {exc}")
        raise EngineError(f"cannot open the engine {shown}") from exc
    return opened
