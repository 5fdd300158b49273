# SPDX-License-Identifier: Apache-2.0
"""A layer of very many entries: refused at the limit, in little memory.

The limit is a tenth of the real one, which takes ten times as long and proves no more: entries kept
as objects, of some 400 bytes each, would need more than `MAX_MEMORY` here, too.
"""

from __future__ import annotations

import gzip
import subprocess
import sys
from dataclasses import dataclass

from firstread.convert.entry import TarLimits
from firstread.testing.entries import to_tar
from firstread.testing.images import File, Image, Layer, digest_of, write_layout
from firstread.units import KiB, MiB

LIMIT = TarLimits().entries // 10
ENTRIES = 1_000_000
AT_ONCE = 10_000
MAX_MEMORY = 160 * MiB

# The memory of a child in wait4(2) includes that of its parent at the fork.
SCRIPT = f"""
import re
from functools import partial
from firstread.cli.main import run
from firstread.convert import tar
tar.TarLimits = partial(tar.TarLimits, entries={LIMIT})
print(run(["convert", "oci:in:latest", "oci:out:latest"]))
print(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
"""


@dataclass(frozen=True)
class Bomb(Layer):
    """A layer of gzip members that all hold the same entries; nobody unpacks it."""

    @property
    def blob(self) -> bytes:
        some = to_tar([File(f"f{number % 8}") for number in range(AT_ONCE)], zero_blocks=0)
        return gzip.compress(some, mtime=0) * (ENTRIES // AT_ONCE)

    @property
    def diff_id(self) -> str:
        return digest_of(b"not computed")


def test_a_million_entries_are_refused_in_little_memory() -> None:
    layer = Bomb(b"")
    write_layout(Image([layer]), "in")
    ran = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    code, peak = ran.stdout.split()
    assert ran.stderr.endswith(  # it takes some seconds, and reports progress
        f"firstread: oci:in:latest: layer {digest_of(layer.blob)}: tar entry 'f0' at byte"
        f" {LIMIT * 512}: the layer has more than {LIMIT} entries\n"
        "  remove what the image does not need\n"
    )
    assert int(code) == 3
    assert int(peak) * KiB < MAX_MEMORY
