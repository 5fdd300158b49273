# SPDX-License-Identifier: Apache-2.0
"""Preflight checks: what a node, an image and a container engine need.

Owns what ``firstread doctor`` looks at and what it advises; changes nothing. Invariant: a check
returns what it found as a `Finding`, whatever that is; what is missing is a finding, no exception.
"""
