# SPDX-License-Identifier: Apache-2.0
"""Reports: what a start has done and read, as one page of HTML."""
