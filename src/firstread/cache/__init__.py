# SPDX-License-Identifier: Apache-2.0
"""The contents of this node: sector files, image metadata, the room they take."""
