# SPDX-License-Identifier: Apache-2.0
"""The daemon's socket: server, client, metrics."""
