# SPDX-License-Identifier: Apache-2.0
"""The time that a test waits for an event.

Owns one number. It does not bound speed: a busy machine is not an error, and only an endless wait
exceeds it. Figures of speed are in benchmarks/.
"""

from __future__ import annotations

from typing import Final

PATIENCE_S: Final = 60.0
