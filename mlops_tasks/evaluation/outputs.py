"""When what a program printed is what it had to print.

The rule of CodeContests where a problem has no checker of its own: the same words, and numbers to within 1e-6. Only the
standard library is imported here.
"""

from __future__ import annotations

import math
import re
from decimal import Decimal

TOLERANCE = 1e-6
"""Absolute or relative, whichever is kinder."""

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?", re.ASCII)
_INTEGER = re.compile(r"[+-]?\d+", re.ASCII)


def same_output(expected: str, printed: str) -> bool:
    """Whether two texts have the same words between white space; numbers with a point may be near each other.

    Two integers are the same digit for digit: of 1000000007 and 1000000008 only one is right. A number with a point that stands
    for an integer may be off by 1e-6, however large it is.

    Example:
        "0.5 yes" and "0.50000001\\nyes\\n" are the same, and so are "2" and "2.0"; "7" and "8" are not.
    """
    wanted, found = expected.split(), printed.split()
    return len(wanted) == len(found) and all(map(_same_word, wanted, found))


def _same_word(wanted: str, found: str) -> bool:
    if wanted == found:
        return True
    if not (_NUMBER.fullmatch(wanted) and _NUMBER.fullmatch(found)):
        return False
    if _INTEGER.fullmatch(wanted) and _INTEGER.fullmatch(found):
        return False
    if _INTEGER.fullmatch(wanted):
        return abs(Decimal(found) - int(wanted)) <= TOLERANCE
    return math.isclose(float(wanted), float(found), rel_tol=TOLERANCE, abs_tol=TOLERANCE)
