# SPDX-License-Identifier: Apache-2.0
"""OCI images: references, documents, and the places where images live."""
