# SPDX-License-Identifier: Apache-2.0
"""How long a test waits for what has to happen.

Owns one number. It is no bound on speed: a machine that is busy with other work is not wrong, so
only what would never have ended runs into it. Figures of speed are in benchmarks/.
"""

from __future__ import annotations

from typing import Final

PATIENCE_S: Final = 60.0
