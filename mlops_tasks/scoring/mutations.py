"""Programs with one mistake, made of one that passes.

Owns which mistakes there are and how one is written into the text. Everything else stays as its author wrote it: a program that
was printed from a syntax tree could be told from the original by its layout alone. Whether a mistake matters is for the tests.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mlops_tasks.data.problems import parse_quietly
from mlops_tasks.scoring.candidates import Mistake

_ARITHMETIC: dict[type[ast.AST], tuple[str, str]] = {
    ast.Add: ("+", "-"), ast.Sub: ("-", "+"), ast.Mult: ("*", "+"), ast.Div: ("/", "*"), ast.FloorDiv: ("//", "/"), ast.Mod: ("%", "//"),
    ast.Pow: ("**", "*"), ast.LShift: ("<<", ">>"), ast.RShift: (">>", "<<"), ast.BitAnd: ("&", "|"), ast.BitOr: ("|", "&"), ast.BitXor: ("^", "&"),
}  # fmt: skip
_OTHERS: dict[type[ast.AST], tuple[str, str]] = {
    ast.Lt: ("<", "<="), ast.LtE: ("<=", "<"), ast.Gt: (">", ">="), ast.GtE: (">=", ">"), ast.Eq: ("==", "!="), ast.NotEq: ("!=", "=="),
    ast.Is: ("is", "is not"), ast.IsNot: ("is not", "is"), ast.In: ("in", "not in"), ast.NotIn: ("not in", "in"), ast.And: ("and", "or"), ast.Or: ("or", "and"),
}  # fmt: skip
_SWAPS = _ARITHMETIC | _OTHERS


@dataclass(frozen=True)
class Mutant:
    """A program with one mistake."""

    solution: str
    mistake: Mistake


@dataclass(frozen=True)
class _Edit:
    """Bytes to replace."""

    start: int
    end: int
    text: str
    mistake: Mistake


def mutants(source: str, *, count: int, rng: np.random.Generator) -> list[Mutant]:
    """Draw different programs that differ from `source` in one place: an operator swapped, a constant off by one, a line dropped.

    Args:
        source: Python that parses.
        count: how many at most; a short program has fewer.
        rng: draws them; nothing else does.

    Example:
        `return a + 2` has the mutants `return a - 2`, `return a + 1`, `return a + 3` and, alone in its function, `pass`.
    """
    tree, code = parse_quietly(source), source.encode()
    original = ast.dump(tree)
    found = dict.fromkeys(
        Mutant((code[: edit.start] + edit.text.encode() + code[edit.end :]).decode(), edit.mistake)
        for edit in _edits(tree, _Places(code))
    )
    order = rng.permutation(len(found))
    candidates = (list(found)[index] for index in order)
    return [one for _, one in zip(range(count), (one for one in candidates if _differs(one, original)), strict=False)]


def _differs(mutant: Mutant, original: str) -> bool:
    """Whether it is another program, and one at all: an edit may hit a comment, or leave a block empty."""
    try:
        return ast.dump(parse_quietly(mutant.solution)) != original
    except SyntaxError:
        return False


class _Places:
    """Where nodes of a syntax tree lie, in bytes."""

    def __init__(self, code: bytes) -> None:
        self.code = code
        lengths = [0, *(len(line) for line in code.splitlines(keepends=True))]
        self.line_starts = np.cumsum(lengths).tolist()

    def start(self, node: ast.expr | ast.stmt) -> int:
        return int(self.line_starts[node.lineno - 1]) + node.col_offset

    def end(self, node: ast.expr | ast.stmt) -> int:
        assert node.end_lineno is not None and node.end_col_offset is not None
        return int(self.line_starts[node.end_lineno - 1]) + node.end_col_offset

    def lines(self, node: ast.stmt) -> tuple[int, int]:
        """From the beginning of its first line to the beginning of the line behind it."""
        assert node.end_lineno is not None
        return int(self.line_starts[node.lineno - 1]), int(self.line_starts[node.end_lineno])


def _edits(tree: ast.Module, at: _Places) -> Iterator[_Edit]:
    for node in _walk(tree):
        match node:
            case ast.BinOp(left=left, op=op, right=right):
                yield from _swap(op, at.end(left), at.start(right), at)
            case ast.AugAssign(target=target, op=op, value=value):
                yield from _swap(op, at.end(target), at.start(value), at)
            case ast.Compare(left=left, ops=ops, comparators=others):
                for comparison, one, other in zip(ops, [left, *others], others, strict=False):
                    yield from _swap(comparison, at.end(one), at.start(other), at)
            case ast.BoolOp(op=op, values=values):
                yield from _swap(op, at.end(values[0]), at.start(values[1]), at)
            case ast.Constant(value=int(value)) if not isinstance(value, bool):
                yield from (_Edit(at.start(node), at.end(node), str(value + by), "constant") for by in (-1, 1))
        for body in (getattr(node, name, None) for name in ("body", "orelse", "finalbody")):
            if isinstance(body, list):
                yield from _dropped_lines(body, at)


def _walk(tree: ast.AST) -> Iterator[ast.AST]:
    yield tree
    for child in ast.iter_child_nodes(tree):
        if not isinstance(child, ast.JoinedStr):  # before Python 3.12 the nodes in it have no places of their own
            yield from _walk(child)


def _swap(op: ast.AST, start: int, end: int, at: _Places) -> Iterator[_Edit]:
    """Between two operands stand an operator, parentheses and blanks."""
    old, new = _SWAPS.get(type(op), (None, ""))
    if old is None:
        return
    pattern = rb"\s+".join(re.escape(word) for word in old.encode().split())
    if found := re.search(pattern, at.code[start:end]):
        yield _Edit(start + found.start(), start + found.end(), new, "operator")


def _dropped_lines(body: list[ast.stmt], at: _Places) -> Iterator[_Edit]:
    for statement in body:
        if hasattr(statement, "body") or _is_text(statement):
            continue
        start, end = at.lines(statement)
        is_alone = not at.code[start : at.start(statement)].strip() and _is_rest(at.code[at.end(statement) : end])
        if len(body) == 1:
            yield _Edit(at.start(statement), at.end(statement), "pass", "line")
        elif is_alone:
            yield _Edit(start, end, "", "line")


def _is_text(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _is_rest(code: bytes) -> bool:
    return not code.strip() or code.lstrip().startswith(b"#")
