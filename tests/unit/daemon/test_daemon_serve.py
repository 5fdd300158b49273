# SPDX-License-Identifier: Apache-2.0
"""The process of the fetcher: what it does when a part of it breaks."""

from __future__ import annotations

import json
import subprocess
import sys

from firstread.testing.patience import PATIENCE_S

_FAILS = """
import threading, time
from firstread.daemon.serve import end_with_thread
from firstread.daemon.supervisor import configure_logging
configure_logging("INFO")
threading.excepthook = end_with_thread
threading.Thread(target=lambda: {}["missing"], daemon=True).start()
time.sleep(60)
"""


def test_the_fetcher_ends_with_the_first_of_its_threads_that_fails() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _FAILS],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 1
    record = json.loads(done.stderr)
    assert record["level"] == "critical"
    assert "a thread of it failed: 'missing'" in record["message"]
    assert "KeyError" in json.dumps(record)
