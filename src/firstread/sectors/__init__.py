# SPDX-License-Identifier: Apache-2.0
"""Sectors: their format, and the sources and stores that hold them."""
