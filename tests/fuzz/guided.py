# SPDX-License-Identifier: Apache-2.0
"""One target under atheris (libFuzzer for Python); see `tests.fuzz.__main__`."""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["firstread"]):
    from tests.fuzz.targets import TARGETS

if __name__ == "__main__":
    name = sys.argv.pop(1)
    atheris.Setup(sys.argv, TARGETS[name])
    atheris.Fuzz()
