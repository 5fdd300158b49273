# SPDX-License-Identifier: Apache-2.0
"""``python -m benchmarks.ask WORKLOAD``: exits with 0 if a workload that serves answers now.

This is the client of the benchmarks as a command, for ``firstread trace --until-command``.
"""

from __future__ import annotations

import sys

from benchmarks.images.ready import Answers, answers
from benchmarks.suite.workloads import WORKLOADS


def main() -> int:
    (name,) = sys.argv[1:]
    ready = WORKLOADS[name].ready
    return 0 if isinstance(ready, Answers) and answers(ready) else 1


if __name__ == "__main__":
    sys.exit(main())
