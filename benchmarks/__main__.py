# SPDX-License-Identifier: Apache-2.0
"""``python -m benchmarks NAME…``: run benchmarks, print and keep their figures.

Without a name it runs all of them. A JSON file keeps the last figures of each benchmark, so that
one can run again while the page in docs/ shows all.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks import burst, convert, node
from benchmarks.images.build import default_cache
from benchmarks.report import DOCS, Section, save
from firstread.errors import FirstreadError

BENCHMARKS: dict[str, Callable[[], Section]] = {
    convert.NAME: convert.measure,
    node.NAME: node.measure,
    burst.BURST: burst.measure,
}


def main() -> int:
    results = default_cache().parent / "benchmarks.json"
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", default=results, help=f"keep figures in [{results}]"
    )
    parser.add_argument("--docs", action="store_true", help=f"write them to docs/{DOCS.name}")
    options = parser.parse_args()
    names = options.names or list(BENCHMARKS)
    if unknown := set(names) - set(BENCHMARKS):
        parser.error(f"there is no benchmark {', '.join(unknown)}")
    if os.geteuid():
        parser.error("benchmarks mount and drop caches: run them as root")
    try:
        for name in names:
            save(BENCHMARKS[name](), options.json, docs=options.docs)
    except KeyboardInterrupt:
        return 130
    except FirstreadError as exc:
        print(f"error: {exc}" + (f" ({exc.hint})" if exc.hint else ""), file=sys.stderr)
        return exc.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
