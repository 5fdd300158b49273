# SPDX-License-Identifier: Apache-2.0
"""From a read that waits to verified frames in a sector file."""
