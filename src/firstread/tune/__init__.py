# SPDX-License-Identifier: Apache-2.0
"""A simulator of starts: what each setting would cost on each link, from traces alone."""
