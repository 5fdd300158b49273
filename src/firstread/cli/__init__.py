# SPDX-License-Identifier: Apache-2.0
"""The ``firstread`` command: one file per verb."""

import gc

# Before anything else is imported: a tenth of the time that a command takes to start would go into
# looking for garbage among what was just loaded.
gc.set_threshold(50_000)
