# SPDX-License-Identifier: Apache-2.0
"""Benchmarks of firstread on real images; each prints its setting beside its figures."""
