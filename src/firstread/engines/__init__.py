# SPDX-License-Identifier: Apache-2.0
"""Engines that run the tasks of conversions on other machines."""
