# SPDX-License-Identifier: Apache-2.0
"""Converts what registries and clusters have: which images, where to, and when."""
