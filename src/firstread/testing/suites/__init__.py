# SPDX-License-Identifier: Apache-2.0
"""One suite per interface: the test of an implementation is a constructor and the suite."""
