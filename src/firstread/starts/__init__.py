# SPDX-License-Identifier: Apache-2.0
"""Start sets: what the command of an image reads first, found in the image without a run."""
