# SPDX-License-Identifier: Apache-2.0
"""The soak: real images read for minutes while everything around them fails."""
