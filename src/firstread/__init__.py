# SPDX-License-Identifier: Apache-2.0
"""firstread: containers that start before their image is pulled."""

__version__ = "0.1.0"
