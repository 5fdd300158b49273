# SPDX-License-Identifier: Apache-2.0
"""The snapshotter of containerd: lazy images as they are, ordinary ones as overlayfs has them."""
