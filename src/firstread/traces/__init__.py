# SPDX-License-Identifier: Apache-2.0
"""Traces: what a start reads of its image, as files that outlive a conversion."""
