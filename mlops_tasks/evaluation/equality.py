"""Tests whose `==` the program cannot answer itself.

A program may return an object that says it equals everything. Owns the rewriting of a test's comparisons so that such an
object is a wrong answer; running the test is `harness`'s. Only the standard library is imported here.
"""

from __future__ import annotations

import ast
import os
from collections import deque
from types import CodeType, WrapperDescriptorType
from typing import Any

NAME = "__judged_equal__"
_LIBRARY = os.path.dirname(os.__file__)
_CONTAINERS = (list, tuple, set, frozenset, deque)


def compile_test(source: str, filename: str) -> CodeType:
    """Compile a test in which each `a == b` is `NAME(a, b)`; the one who runs it binds `NAME` to `judged_equal`.

    Raises:
        SyntaxError: as `compile`.
    """
    tree = ast.fix_missing_locations(_Rewriter().visit(ast.parse(source, filename)))
    return compile(tree, filename, "exec", dont_inherit=True)


class _Rewriter(ast.NodeTransformer):
    def visit_Compare(self, node: ast.Compare) -> ast.expr:
        self.generic_visit(node)
        if len(node.ops) != 1 or not isinstance(node.ops[0], ast.Eq):
            return node
        call = ast.Call(ast.Name(NAME, ast.Load()), [node.left, node.comparators[0]], [])
        return ast.copy_location(call, node)


def judged_equal(left: Any, right: Any) -> Any:
    """`left == right`, but False if one side alone compares by code that the program brought along.

    Where both do, the test itself made an object of the program's class to compare with.

    Example:
        an object with `__eq__ = lambda self, other: True` does not equal 7, and a list that holds it does not equal [7].
    """
    answer = left == right
    if answer and _holds_foreign(left) != _holds_foreign(right):
        return False
    return answer


def _holds_foreign(value: Any) -> bool:
    equals = type(value).__eq__
    is_from_library = getattr(getattr(equals, "__code__", None), "co_filename", "").startswith(_LIBRARY)
    if not isinstance(equals, WrapperDescriptorType) and not is_from_library:
        return True
    if isinstance(value, dict):
        return any(_holds_foreign(item) for pair in value.items() for item in pair)
    return isinstance(value, _CONTAINERS) and any(_holds_foreign(item) for item in value)
