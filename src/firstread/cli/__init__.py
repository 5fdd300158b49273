# SPDX-License-Identifier: Apache-2.0
"""The ``firstread`` command: one file per verb."""

import gc

# Before any other import: a command would spend a tenth of its start on collecting garbage among
# the modules just loaded.
gc.set_threshold(50_000)
