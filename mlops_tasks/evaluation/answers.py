"""Whether a program reads its answer off a test that its prompt shows.

A small model that cannot solve a task may still pass its only shown test by returning what stands there. Owns the signs of
that in a program's syntax tree; it is a flag for the reader of a report and changes no verdict. It errs towards silence:
a label such as `return "Yes"` is what many right programs return, so it counts only where there is nothing else.
"""

from __future__ import annotations

import ast
import contextlib
import doctest
import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

_READING = frozenset({"input", "stdin", "open", "fileinput"})
_TELLING_NUMBER = 10  # a right program may well return a smaller one
_TELLING_LEAVES = 3
_CONVERSIONS = ("set", "frozenset", "list", "tuple", "sorted", "dict")
_Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda


def reads_answer(program: str, shown_tests: Sequence[str]) -> bool:
    """Whether the program holds what a shown test expects.

    One of: a telling value (a number from 10 on, a fraction, a literal of three or more) is returned, or such a literal stands
    anywhere; any expected value is returned and a telling argument of the same test is compared with; the program is
    nothing but `return` of the expected value.

    Args:
        shown_tests: assert statements that the prompt shows.

    Example:
        after `assert area(3, 7) == 21`, `return 21` reads the answer and `return a * b` does not; after
        `assert is_even(4) == True`, `return True` does if the program is nothing else.
    """
    tree = _parsed(program)
    if tree is None:
        return False
    body = _without_prose(tree)
    returned = {_canonical(node) for node in _returned(body)} - {None}
    literals = {
        _canonical(node) for node in ast.walk(body) if isinstance(node, ast.List | ast.Tuple | ast.Set | ast.Dict)
    }
    compared = {
        _canonical(side)
        for node in ast.walk(body)
        if isinstance(node, ast.Compare)
        for side in (node.left, *node.comparators)
    }
    for arguments, expected in _shown(shown_tests):
        answer = _canonical(expected)
        if _is_telling(expected) and answer in returned | literals:
            return True
        if answer in returned and (_is_nothing_else(body) or any(_canonical(one) in compared for one in arguments)):
            return True
    return False


def examples_in(stub: str) -> list[str]:
    """The `>>>` examples in the docstrings of code as assert statements.

    Example:
        a line `>>> add(1, 20)` above a line `21` gives `assert add(1, 20) == 21`.
    """
    tree = _parsed(stub)
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)] if tree else []
    found: list[doctest.Example] = []
    for function in functions:
        with contextlib.suppress(ValueError):  # what begins like an example and is none
            found += doctest.DocTestParser().get_examples(ast.get_docstring(function) or "")
    return [f"assert {one.source.strip()} == {one.want.strip()}" for one in found if one.want]


def reads_output(script: str, shown_outputs: Sequence[str]) -> bool:
    """Whether a script holds an output that its prompt shows.

    It does where a text or number in it is a telling output (several words, a number from 10 on, a fraction), or where it prints any
    shown output and reads no input.

    Args:
        shown_outputs: what the prompt's examples print, with single spaces.

    Example:
        after the output `3 1 2`, `print("3 1 2")` holds it; after the output `YES`, `print("YES")` does if nothing is read.
    """
    tree = _parsed(script)
    if tree is None:
        return False
    held = {" ".join(str(node.value).split()) for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    names |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return any(output in held and (_is_telling_text(output) or not names & _READING) for output in shown_outputs)


def _is_telling_text(output: str) -> bool:
    if " " in output:
        return True
    try:
        number = float(output)
    except ValueError:
        return False
    return math.isfinite(number) and (abs(number) >= _TELLING_NUMBER or not number.is_integer())


def _parsed(source: str) -> ast.Module | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a stray "\\d" in somebody else's program nobody wants a line
            return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None  # what does not parse does not run either


def _without_prose(tree: ast.Module) -> ast.Module:
    """The program without docstrings and its own asserts, which may quote a test."""

    class _Stripper(ast.NodeTransformer):
        def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
            return None if isinstance(node.value, ast.Constant) else node

        def visit_Assert(self, node: ast.Assert) -> None:
            return None

    stripped = _Stripper().visit(tree)
    assert isinstance(stripped, ast.Module)
    return stripped


def _returned(tree: ast.Module) -> Iterator[ast.expr]:
    for node in ast.walk(tree):
        value = node.value if isinstance(node, ast.Return) else node.body if isinstance(node, ast.Lambda) else None
        if isinstance(value, ast.IfExp):
            yield from (value.body, value.orelse)
        elif value is not None:
            yield value


def _is_nothing_else(tree: ast.Module) -> bool:
    """Each function only returns a constant."""
    functions = [node for node in ast.walk(tree) if isinstance(node, _Function)]
    return bool(functions) and all(
        isinstance(function, ast.Lambda) or all(isinstance(line, ast.Return | ast.Pass) for line in function.body)
        for function in functions
    )


def _shown(tests: Sequence[str]) -> Iterator[tuple[list[ast.expr], ast.expr]]:
    """Of each assert the telling arguments and what is expected."""
    for test in tests:
        for node in ast.walk(_parsed(test) or ast.Module([], [])):
            if isinstance(node, ast.Assert):
                yield from _claims(node.test)


def _claims(claim: ast.expr) -> Iterator[tuple[list[ast.expr], ast.expr]]:
    if isinstance(claim, ast.Compare) and len(claim.ops) == 1 and isinstance(claim.ops[0], ast.Eq | ast.Is):
        for asked, expected in ((claim.left, claim.comparators[0]), (claim.comparators[0], claim.left)):
            if _canonical(expected) is not None:
                yield _arguments(asked), expected
    elif isinstance(claim, ast.UnaryOp) and isinstance(claim.op, ast.Not):
        yield _arguments(claim.operand), ast.Constant(False)
    elif isinstance(claim, ast.Call):
        yield _arguments(claim), ast.Constant(True)


def _arguments(asked: ast.expr) -> list[ast.expr]:
    calls = [node for node in ast.walk(asked) if isinstance(node, ast.Call)]
    return [one for call in calls for one in call.args if _is_telling(one) or _is_text(one)]


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value) > 1


def _is_telling(node: ast.expr) -> bool:
    value = _value(node)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return abs(value) >= _TELLING_NUMBER or value != int(value)
    leaves = [leaf for leaf in ast.walk(node) if isinstance(leaf, ast.Constant)]
    return isinstance(value, list | tuple | set | dict) and len(leaves) >= _TELLING_LEAVES


def _canonical(node: ast.expr) -> str | None:
    """The same text for the same value, whatever kind of sequence holds it; None: no literal."""
    value = _value(node)
    return None if value is _NOT_LITERAL else _text(value)


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ",".join(sorted(f"{_text(key)}:{_text(item)}" for key, item in value.items())) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(_text, value)) + "]"
    if isinstance(value, set | frozenset):
        return "[" + ",".join(sorted(map(_text, value))) + "]"
    return repr(value)


_NOT_LITERAL = object()


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Call) and len(node.args) == 1 and not node.keywords:
        node = node.args[0] if isinstance(node.func, ast.Name) and node.func.id in _CONVERSIONS else node
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return _NOT_LITERAL
