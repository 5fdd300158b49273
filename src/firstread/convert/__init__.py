# SPDX-License-Identifier: Apache-2.0
"""Turns an OCI image into EROFS metadata and sector blobs."""
