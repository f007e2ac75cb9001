"""Made-up problems in MBPP's form: small functions on lists, numbers and texts, for a model that learns in a minute.

Owns the families, the draw, and which problems are held out. The asserts are true because the solution was run to get them.

A problem is a family, a noun and constants. Its SHA-256 decides what it may be used for, whatever the seed: the held-out
problems of every seed differ, in text and in code, from the training problems of every seed. A reference that learns from
another seed has therefore not seen what the model is judged on.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from mlops_tasks.config.sources import GeneratedData, Split
from mlops_tasks.data.problems import Problem

NUM_PROMPT = 10
NUM_TESTS = 3
LICENCE = "Apache-2.0"

# Residues of SHA-256 modulo 16.
_SPLIT_OF_RESIDUE: dict[int, Split] = {0: "prompt", 1: "validation", 2: "validation", 3: "test", 4: "test"}

_MAX_CONSTANT = 999
_MAX_FACTOR = 99

_PLURALS = (
    "prices", "scores", "sizes", "tolls", "weights", "rates", "lengths", "costs", "points", "levels",
    "marks", "heights", "counts", "depths", "speeds", "times", "votes", "sales", "debts", "loads",
)  # fmt: skip
_SINGULARS = (
    "price", "score", "size", "toll", "weight", "rate", "length", "cost", "point", "level",
    "mark", "height", "count", "depth", "speed", "time", "vote", "sale", "debt", "load",
)  # fmt: skip
_TEXTS = (
    "word", "title", "line", "label", "phrase", "message", "city", "street", "river", "garden",
    "letter", "planet", "signal", "winter", "silver", "market", "window", "forest", "bridge", "castle",
)  # fmt: skip
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_NOISE = ("todo", "old", "see", "note", "ticket", "fixed", "by", "was", "later", "check")

Takes = Literal["list", "number", "text"]


@dataclass(frozen=True)
class Family:
    """A kind of problem: `n` is the noun, `a` and `b` are constants, `c` and `d` are letters."""

    takes: Takes
    verb: str
    text: str
    body: str
    is_factor: bool = False
    """`a` is small, so that some inputs are multiples of it."""


FAMILIES = (
    Family("list", "raise", "add {a} to each of the {n}", "return [x + {a} for x in {n}]"),
    Family("list", "lower", "subtract {a} from each of the {n}", "return [x - {a} for x in {n}]"),
    Family("list", "scale", "multiply each of the {n} by {a}", "return [x * {a} for x in {n}]"),
    Family("list", "high", "keep the {n} above {a}", "return [x for x in {n} if x > {a}]"),
    Family("list", "low", "keep the {n} below {a}", "return [x for x in {n} if x < {a}]"),
    Family("list", "between", "keep the {n} from {a} to {b}", "return [x for x in {n} if {a} <= x <= {b}]"),
    Family(
        "list", "divided", "keep the {n} that {a} divides", "return [x for x in {n} if x % {a} == 0]", is_factor=True
    ),
    Family("list", "count", "count the {n} above {a}", "return sum(x > {a} for x in {n})"),
    Family("list", "total", "sum the {n} below {a}", "return sum(x for x in {n} if x < {a})"),
    Family("list", "swap", "replace {a} by {b} in the {n}", "return [{b} if x == {a} else x for x in {n}]"),
    Family("list", "limit", "lower the {n} above {a} to {a}", "return [min(x, {a}) for x in {n}]"),
    Family("list", "bonus", "add {a} to each of the {n} above {b}", "return [x + {a} if x > {b} else x for x in {n}]"),
    Family("number", "shift", "multiply a {n} by {a} and add {b}", "return {n} * {a} + {b}"),
    Family("number", "clamp", "bring a {n} into the range from {a} to {b}", "return max({a}, min({n}, {b}))"),
    Family("number", "rest", "find the remainder of a {n} divided by {a}", "return {n} % {a}", is_factor=True),
    Family("number", "split", "divide a {n} by {a} with remainder", "return divmod({n}, {a})", is_factor=True),
    Family("number", "choose", "subtract {a} from a {n} above {b}", "return {n} - {a} if {n} > {b} else {n}"),
    Family("text", "prefix", "put {a} before a {n}", 'return "{a}" + {n}'),
    Family("text", "change", "replace {c} by {d} in a {n}", 'return {n}.replace("{c}", "{d}")'),
    Family("text", "find", "count {c} and {d} in a {n}", 'return {n}.count("{c}") + {n}.count("{d}")'),
    Family("text", "tag", "put {c}{a} after a {n}", 'return {n} + "{c}{a}"'),
)


@dataclass(frozen=True)
class _Draw:
    family: Family
    noun: str
    a: int
    b: int
    c: str
    d: str

    def fill(self, template: str) -> str:
        return template.format(n=self.noun, a=self.a, b=self.b, c=self.c, d=self.d)

    @property
    def text(self) -> str:
        return f"Write a function to {self.fill(self.family.text)}."

    @property
    def name(self) -> str:
        return f"{self.family.verb}_{self.noun}"

    @property
    def split(self) -> Split:
        # The text names the noun and every constant that the code has, and nothing else: equal texts are equal codes.
        residue = int.from_bytes(hashlib.sha256(self.text.encode()).digest()) % 16
        return _SPLIT_OF_RESIDUE.get(residue, "train")

    def solution(self, noise: str) -> str:
        return f"def {self.name}({self.noun}):\n{noise}    {self.fill(self.family.body)}\n"


def generate_problems(source: GeneratedData) -> list[Problem]:
    """Draw the problems of a source: prompt 1-10, then test, validation and train.

    The same settings give the same problems; more of a split leaves the first ones of that split as they were.
    """
    sizes: dict[Split, int] = {
        "prompt": NUM_PROMPT,
        "test": source.num_test,
        "validation": source.num_validation,
        "train": source.num_train,
    }
    problems: list[Problem] = []
    for split, size in sizes.items():
        draws = _draws(random.Random(f"{source.seed}:{split}"), split)
        for _, (draw, rng) in zip(range(size), draws, strict=False):
            noise = _noise(rng) if split == "train" and rng.random() < source.noise else ""
            problems.append(_problem(draw, rng, str(len(problems) + 1), noise))
    return problems


def _draws(rng: random.Random, split: Split) -> Iterator[tuple[_Draw, random.Random]]:
    seen: set[str] = set()
    while True:
        draw = _draw(rng)
        if draw.split == split and draw.text not in seen:
            seen.add(draw.text)
            yield draw, random.Random(rng.getrandbits(64))


def _draw(rng: random.Random) -> _Draw:
    family = rng.choice(FAMILIES)
    nouns = {"list": _PLURALS, "number": _SINGULARS, "text": _TEXTS}[family.takes]
    a, b = sorted((_constant(rng), _constant(rng)))
    c, d = rng.sample(_LETTERS, 2)
    return _Draw(family, rng.choice(nouns), rng.randint(2, _MAX_FACTOR) if family.is_factor else a, b, c, d)


def _constant(rng: random.Random) -> int:
    """2 to 999, with one, two or three digits equally often."""
    num_digits = rng.randint(1, 3)
    return rng.randint(max(2, 10 ** (num_digits - 1)), 10**num_digits - 1)


def _problem(draw: _Draw, rng: random.Random, problem_id: str, noise: str) -> Problem:
    clean = draw.solution("")
    namespace: dict[str, object] = {}
    exec(clean, namespace)  # our own template
    function = namespace[draw.name]
    assert callable(function)
    arguments = _arguments(draw, rng)
    return Problem(
        id=problem_id,
        prompt=draw.text,
        solution=draw.solution(noise),
        tests=tuple(f"assert {draw.name}({argument!r}) == {function(argument)!r}" for argument in arguments),
        entry_point=draw.name,
        split=draw.split,
        source="generated",
        licence=LICENCE,
    )


def _arguments(draw: _Draw, rng: random.Random) -> list[object]:
    """Three different arguments, the later two beside the constants, so that a program with a wrong one fails."""
    arguments: list[object] = []
    beside = [_any_number(draw, rng), draw.a, draw.b]
    while len(arguments) < NUM_TESTS:
        argument = _argument(draw, beside[len(arguments)] + rng.randint(-1, 1), rng)
        if argument not in arguments:
            arguments.append(argument)
    return arguments


def _argument(draw: _Draw, number: int, rng: random.Random) -> list[int] | int | str:
    if draw.family.takes == "text":
        return "".join(rng.choice((draw.c, draw.d, rng.choice(_LETTERS))) for _ in range(rng.randint(3, 5)))
    if draw.family.takes == "number":
        return number
    numbers = [draw.a, number, _any_number(draw, rng)]
    rng.shuffle(numbers)
    return numbers


def _any_number(draw: _Draw, rng: random.Random) -> int:
    return draw.a * rng.randint(1, 9) if draw.family.is_factor else _constant(rng)


def _noise(rng: random.Random) -> str:
    """A comment that has nothing to do with the problem."""
    words = " ".join(rng.choices(_NOISE, k=rng.randint(2, 4)))
    return f"    # {words} {rng.randint(2, _MAX_CONSTANT)}\n"
