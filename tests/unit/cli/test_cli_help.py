# SPDX-License-Identifier: Apache-2.0
"""The help of a verb imports its options, and nothing else."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from firstread.cli.main import VERBS
from firstread.testing.patience import PATIENCE_S

LOADED = """
import json, sys
from firstread.cli.main import run
code = run(sys.argv[1:])
print(json.dumps([code, sorted(name for name in sys.modules)]))
"""
# Each takes longer to import than everything that `--help` needs.
DEAR = {"urllib3", "msgspec", "grpc", "prometheus_client", "asyncio", "ssl", "zstandard"}


def loaded(*arguments: str) -> tuple[str, set[str]]:
    command = [sys.executable, "-c", LOADED, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=True)
    *lines, last = done.stdout.splitlines()
    code, names = json.loads(last)
    assert code == 0
    return "\n".join(lines), set(names)


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_a_verb_imports_nothing_expensive(verb: str) -> None:
    text, names = loaded(verb, "--help")
    assert text.startswith("Usage:")
    assert not names & DEAR
