# SPDX-License-Identifier: Apache-2.0
"""Mounts as data: the table, mounting, recovery, pulls, online maintenance."""
