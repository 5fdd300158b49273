# SPDX-License-Identifier: Apache-2.0
"""Running a container on a lazy mount."""
