# SPDX-License-Identifier: Apache-2.0
"""Threads that decode a struct for the first time, all at once."""

from __future__ import annotations

import sys

from firstread.testing.command import ran

# A process of its own: without `completed` it dies.
SCRIPT = """
import sys, threading
from typing import Annotated
import msgspec
from firstread.structs import completed
sys.setswitchinterval(1e-6)
for number in range(300):
    word = Annotated[str, msgspec.Meta(pattern=f"^[a-z]{{{number + 1}}}$")]
    kind = msgspec.defstruct("Kind", [(f"field{n}", list[word] | None, None) for n in range(8)])
    start = threading.Barrier(4)
    def decode():
        start.wait()
        msgspec.convert({"field7": ["a" * (number + 1)]}, completed(kind))
    threads = [threading.Thread(target=decode) for _ in range(4)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
"""


def test_threads_may_decode_at_once() -> None:
    assert ran([sys.executable, "-c", SCRIPT]).code == 0
