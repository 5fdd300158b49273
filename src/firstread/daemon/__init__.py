# SPDX-License-Identifier: Apache-2.0
"""The processes of a node: supervisor, anchor, fetcher process, their upgrades and confinement."""
