# SPDX-License-Identifier: Apache-2.0
"""Hands whole images to others: as one file, as a tar archive, over NBD."""
