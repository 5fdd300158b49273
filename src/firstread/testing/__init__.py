# SPDX-License-Identifier: Apache-2.0
"""Real peers and inputs for tests; nothing else in the package imports it."""
