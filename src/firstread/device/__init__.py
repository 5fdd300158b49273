# SPDX-License-Identifier: Apache-2.0
"""How the kernel asks for bytes, and how it is answered."""
