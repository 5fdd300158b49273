# SPDX-License-Identifier: Apache-2.0
"""What is on this node: sector files, image metadata, the room they take."""
