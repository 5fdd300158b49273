# SPDX-License-Identifier: Apache-2.0
"""One cold-start suite for every way to start a container, firstread's and others'."""
