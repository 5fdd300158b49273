# SPDX-License-Identifier: Apache-2.0
"""Real container images, built on this machine from Debian's packages and PyPI's wheels.

Owns the images that benchmarks, the demo and the larger tests work on; knows nothing of
firstread's format. Invariant: `build.build` leaves a complete OCI layout ``DIR/NAME`` (tag
``latest``, gzip layers) beside its record ``DIR/NAME.json``, or nothing.
"""
