# SPDX-License-Identifier: Apache-2.0
"""OCI images: references, documents, and the interface to where images live."""
