# SPDX-License-Identifier: Apache-2.0
"""The EROFS file system: format, tree, writer, reader, text dump."""
