# SPDX-License-Identifier: Apache-2.0
"""The time that a test waits for an event.

Owns one number. It does not bound speed: a busy machine is not an error, and only an endless wait
exceeds it. Figures of speed are in benchmarks/.
"""

from __future__ import annotations

import os
from typing import Final

PATIENCE_S: Final = float(os.environ.get("FIRSTREAD_PATIENCE_S", "60"))
"""Seconds; an emulated machine needs more than the default."""
