# SPDX-License-Identifier: Apache-2.0
"""How deep JSON of others is nested, told before it is decoded.

Facts about Python: decoders recurse until the stack ends, and make objects on the way, so that it
collects garbage there. A finalizer that runs then, or a function in ``gc.callbacks``, fails with a
RecursionError of its own. Nobody can catch that one: Python prints it, and what the finalizer would
have given back is lost. Invariant: a document that is not deep leaves most of the stack.
"""

from __future__ import annotations

import re
from itertools import accumulate
from typing import Final

MAX_DEPTH: Final = 200  # of lists and objects within each other; real documents have a dozen

_OTHER: Final = re.compile(r'"(?:[^"\\]++|\\.)*+"?|[^"\[\]{}]++', re.DOTALL)
_STEPS: Final = {"[": 1, "{": 1, "]": -1, "}": -1}


def is_deep(text: str) -> bool:
    """Return whether lists and objects of a JSON text lie more than `MAX_DEPTH` within each other.

    Args:
        text: whole or cut off; if it is not JSON, the decoder is to say so.
    """
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return False
    depths = accumulate(map(_STEPS.__getitem__, _OTHER.sub("", text)))
    return max(depths, default=0) > MAX_DEPTH
