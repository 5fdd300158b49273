# SPDX-License-Identifier: Apache-2.0
"""Images on a disk: OCI layouts and archives."""
