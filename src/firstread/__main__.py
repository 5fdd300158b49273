# SPDX-License-Identifier: Apache-2.0
"""``python -m firstread``: the same as ``firstread``."""

from firstread.cli.main import main

main()
