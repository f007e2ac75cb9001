"""A program and its tests in two processes; how each is confined, and what their ends mean, is in test_sandbox."""

import fcntl
import os
import struct
import sys
from typing import Any

import pytest

from mlops_tasks.evaluation.trial import MESSAGE_LENGTH, Report, hold_program, hold_trial

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks a process of many libraries")


def reports_of(solution: str, *tests: str, setup: str = "") -> list[dict[str, Any]]:
    (program_in, to_program), (from_program, program_out) = os.pipe(), os.pipe()
    program = os.fork()
    if program == 0:
        # The process of the tests may have any number of descriptors, the other ends of these pipes among them.
        spare = [fcntl.fcntl(one, fcntl.F_DUPFD, 64) for one in (program_in, program_out)]
        for number, descriptor in enumerate(spare, start=3):
            os.dup2(descriptor, number)
        os.closerange(5, os.sysconf("SC_OPEN_MAX"))
        nothing = os.open(os.devnull, os.O_RDWR)
        for descriptor in range(3):
            os.dup2(nothing, descriptor)
        hold_program(3, 4)
        os._exit(0)
    os.close(program_in)
    os.close(program_out)
    reports: list[Report] = []
    hold_trial({"solution": solution, "setup": setup, "tests": tests}, from_program, to_program, reports.append)
    os.close(from_program)
    os.close(to_program)
    os.waitpid(program, 0)
    return reports


def verdict_of(solution: str, test: str, setup: str = "") -> str:
    """The verdict on one test; a star where it passed and the program had a say."""
    report = next(one for one in reports_of(solution, test, setup=setup) if one["part"] == "test")
    return str(report["verdict"]) + "*" * (report["is_inside"] and report["verdict"] == "passed")


def test_parts_run_in_order_and_each_is_reported() -> None:
    reports = reports_of("class Node: pass", "assert node.value == 3", setup="node = Node(); node.value = 3")
    assert [(one["part"], one.get("verdict")) for one in reports] == [
        ("solution", "passed"),
        ("setup", "passed"),
        ("test", "passed"),
        ("end", None),
    ]


def test_every_test_runs_after_one_that_fails() -> None:
    reports = reports_of("def f(x): return x", "assert f(1) == 2", "assert f(2) == 2", "assert g(3) == 3")
    assert [one["verdict"] for one in reports[:-1]] == ["passed", "failed", "passed", "error"]
    assert reports[-2]["message"] == "NameError: name 'g' is not defined"


@pytest.mark.parametrize(
    ("solution", "verdict", "message"),
    [
        ("def f(:", "error", "SyntaxError: invalid syntax"),
        ("1 / 0", "error", "ZeroDivisionError: division by zero"),
        ("assert False, 'my own check'", "error", "AssertionError: my own check"),
        ("import sys; sys.exit(0)", "crashed", "SystemExit: 0"),
        ("raise KeyboardInterrupt", "crashed", "KeyboardInterrupt"),
        ("raise MemoryError('much')", "crashed", "MemoryError"),
        ("b'x'.decode('rot13')", "error", "LookupError: 'rot13' is not a text encoding; use codecs.decode() to handle arbitrary codecs"),
        ("b'\\xff'.decode()", "error", "UnicodeDecodeError: 'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"),
        ("class My(KeyError):\n    def __str__(self): return 'odd'\nraise My(1)", "error", "My: odd"),
        ("class My(Exception):\n    def __init__(self, a, b): ...\nraise My(object(), 2)", "error", "My: "),
    ],
)  # fmt: skip
def test_a_solution_that_does_not_load_ends_the_trial(solution: str, verdict: str, message: str) -> None:
    report, end = reports_of(solution, "assert True")
    assert (report["part"], report["verdict"], end) == ("solution", verdict, {"part": "end"})
    assert report["message"].startswith(message)


def test_an_assertion_inside_the_solution_is_no_wrong_answer() -> None:
    reports = reports_of("def f(x):\n    assert x > 5\n    return x", "assert f(1) == 1", "assert f(6) == 7")
    assert [one["verdict"] for one in reports[1:-1]] == ["error", "failed"]


def test_an_assertion_in_a_check_of_the_setup_is_a_wrong_answer() -> None:
    assert verdict_of("def f(x): return x", "check(f)", "def check(f):\n    assert f(1) == 2") == "failed"


def test_an_exception_that_cannot_be_shown_is_still_reported() -> None:
    solution = "class Odd(Exception):\n    def __str__(self): raise SystemExit(0)\ndef f(): raise Odd"
    assert verdict_of(solution, "f()") == "error"
    assert len(reports_of("raise ValueError('x' * 10**6)")[0]["message"]) == MESSAGE_LENGTH


def test_a_program_is_a_module_that_can_be_found_and_is_not_main() -> None:
    solution = """
from dataclasses import dataclass
@dataclass
class P:
    x: "int"
if __name__ == "__main__":
    raise SystemExit
"""
    assert verdict_of(solution, "assert P(1).x == 1") == "passed"


def test_annotations_of_a_program_are_evaluated_as_in_a_file_of_its_own() -> None:
    assert verdict_of("def f(x: int): ...", "assert f.__annotations__['x'] is int") == "passed"


@pytest.mark.parametrize(
    ("solution", "test"),
    [
        ("def f(x): x[0].append(2); x[1]['k'] = {3}", "i, d = [1], {}; f([i, d]); assert i == [1, 2] and d == {'k': {3}}"),
        ("def f(x): x.clear()", "s = {1}; f(s); assert s == set()"),
        ("def f(n):\n    for i in range(n): yield i", "g = f(3); assert next(g) == 0 and list(g) == [1, 2]"),
        ("class I:\n    def __init__(self, n): self.n = n\n    def __iter__(self): self.i = 0; return self\n    def __next__(self):\n        self.i += 1\n        if self.i > self.n: raise StopIteration\n        return self.i",
         "assert list(I(2)) == [1, 2]"),
        ("def f(g, x): return [g(one) for one in x]", "assert f(lambda x: x * 2, [1, 2]) == [2, 4]"),
        ("def f(g, x): return g(x)", "assert f(sorted, [2, 1]) == [1, 2] and f(int, '3') == 3"),
        ("def f(g):\n    try: g()\n    except KeyError as e: return e.args", "def g(): raise KeyError(3)\nassert f(g) == (3,)"),
        ("def f(x): return sum(x)", "assert f(iter([1, 2])) == 3 and f(x for x in (3, 4)) == 7"),
        ("def f(*args, **named): return args, named", "assert f(1, *[2], b=3) == ((1, 2), {'b': 3})"),
        ("def f(x): raise ValueError('no')", "try:\n    f(1)\nexcept ValueError as e:\n    assert str(e) == 'no'\nelse:\n    assert False"),
        ("class A(ValueError): ...\nclass B(A): ...\ndef f(): raise B(3)", "try:\n    f()\nexcept A as e:\n    assert e.args == (3,)"),
        ("from collections import namedtuple\nP = namedtuple('P', 'x y')\ndef f(): return [P(1, 2)]",
         "assert f() == [(1, 2)] and (1, 2) == f()[0] and f()[0].x == 1 and set(f()) == {(1, 2)} and sorted(f()) == [(1, 2)]"),
        ("from typing import NamedTuple\nclass P(NamedTuple):\n    x: int\n    def twice(self): return 2 * self.x\ndef f(): return P(1)",
         "p = f()\nimport copy\nassert isinstance(p, tuple) and str(p) == 'P(x=1)' and p.twice() == 2 and copy.deepcopy([p]) == [(1,)]"),
        ("import enum\nclass C(str, enum.Enum):\n    RED = 'red'\ndef f(): return C.RED",
         "c = f(); assert ','.join([c, 'x']) == 'red,x' and c.value == 'red' and c.name == 'RED' and c.upper() == 'RED' and isinstance(c, str)"),
        ("from pathlib import PurePosixPath as P\ndef f(x): return P(x) / 'b'", "from pathlib import PurePosixPath as P\nassert f(P('a')) == P('a/b') and f('a').name == 'b'"),
        ("class D(dict): ...\ndef f(): return D(a=1, b=2)", "d = f(); assert isinstance(d, dict) and d == {'a': 1, 'b': 2} and len(d) == 2 and d['a'] == 1 and d.get('c', 0) == 0 and sorted(d) == ['a', 'b'] and {**d} == d"),
        ("class A:\n    def __init__(self, n): self.n = n\n    def add(self, x): self.n += x\n    def has(self, x): return x == self.n", "a = A(1); a.add(2); assert a.has(3) and not a.has(4) and a.n == 3"),
        ("class S(list):\n    def push(self, x): self.append(x)", "s = S(); s.push(1); s.append(2); assert s == [1, 2] and len(s) == 2 and 2 in s"),
        ("class S:\n    def __init__(self): self.x = []\n    def push(self, v): self.x.append(v)",
         "s = S(); s.push(1); assert s.x == [1]; s.y = 3; assert s.y == 3 and not hasattr(s, 'z')"),
        ("import enum\nclass C(enum.IntEnum):\n    RED = 3\ndef f(): return C.RED", "assert f() == 3 and f() + 1 == 4 and max(f(), 2) == 3"),
        ("import re\ndef f(s): return re.sub('a', 'b', s)", "assert re.match('b+', f('aa'))"),
        ("def sum(a, b): return a * b", "assert sum(2, 3) == 6"),
        ("def int(x): return 0\ndef f(): return '35'", "assert int(f()) == 35"),
        ("import math\ndef f(x): return x / 3", "assert math.isclose(f(1), 0.333333333333) and abs(f(1) - 0.3333) < 1e-3"),
        ("def f(): return float('nan'), float('inf')", "a, b = f(); assert a != a and b > 10**300"),
        ("def f():\n    x = []\n    for _ in range(5000): x = [x]\n    return x", "assert len(f()) == 1"),
        ("def f(x): return x if x < 2 else f(x - 1) + f(x - 2)", "def check(candidate):\n    assert candidate(10) == 55\ncheck(f)"),
        ("import threading\ndef f(x):\n    r = []\n    t = threading.Thread(target=lambda: r.append(x)); t.start(); t.join()\n    return r", "assert f(1) == [1]"),
    ],
)  # fmt: skip
def test_a_right_program_passes_as_in_one_process(solution: str, test: str) -> None:
    assert verdict_of(solution, test) == "passed"
    own: dict[str, Any] = {}
    exec(solution, own)
    if "def int" not in solution:  # in one process a program judges itself
        exec(test, own)


LIAR = "class E:\n    def __eq__(self, other): return True\n    __hash__ = None\n"


@pytest.mark.parametrize(
    ("solution", "test", "verdict"),
    [
        (LIAR + "def f(): return E()", "assert f() == 3", "failed"),
        (LIAR + "def f(): return E()", "assert 3 == f()", "failed"),
        (LIAR + "def f(): return [E(), {'k': E()}]", "assert f() == [3, {'k': 4}]", "failed"),
        (LIAR + "def f(): return E()", "assert not f() != 3", "failed"),
        (LIAR + "def f(): return E()", "assert f() in (3, 4)", "failed"),
        ("class L(int):\n    def __eq__(self, o): return True\n    __hash__ = int.__hash__\ndef f(): return L(0)", "assert f() == 3", "failed"),
        ("class L(list):\n    def __iter__(self): return iter([3])\n    def __eq__(self, o): return True\ndef f(): return L()", "assert f() == [3]", "failed"),
        ("class S(float):\n    def __sub__(self, o): return 0.0\n    __rsub__ = __sub__\ndef f(): return S(9)", "assert abs(f() - 3) < 1e-6", "failed"),
        ("class S:\n    def __sub__(self, o): return S()\n    def __abs__(self): return 0\ndef f(): return S()", "assert abs(f() - 3) < 1e-6", "error"),
        ("class S:\n    def __lt__(self, o): return True\n    __gt__ = __lt__\ndef f(): return S()", "assert 2 < f() < 4", "error"),
        ("class S:\n    __class__ = int\n    def __eq__(self, o): return True\ndef f(): return S()", "assert isinstance(f(), int)", "failed"),
        ("class S:\n    def __contains__(self, o): return True\n    def __iter__(self): return iter(())\ndef f(): return S()", "assert 3 in f()", "failed"),
        ("def f(): return 0\ndef abs(x): return 0", "assert abs(f() - 3) < 1e-6", "failed"),
        ("import math\nmath.isclose = lambda *a, **k: True\ndef f(): return 0", "import math\nassert math.isclose(f(), 3)", "failed"),
        ("class math:\n    isclose = print\ndef f(): return 0", "import math\nassert math.isclose(f(), 3)", "failed"),
    ],
)  # fmt: skip
def test_a_program_has_no_say_in_a_comparison(solution: str, test: str, verdict: str) -> None:
    assert verdict_of(solution, test) == verdict


@pytest.mark.parametrize(
    ("solution", "test", "setup"),
    [
        ("class P:\n    def __eq__(self, o): return True", "assert P() == P()", ""),
        ("class P: ...\ndef f(): return P()", "assert f()", ""),
        ("def f(n):\n    while True: yield n", "from itertools import islice; assert list(islice(f(3), 2)) == [3, 3]", ""),
        ("def f(n):\n    yield n", "from types import GeneratorType; assert isinstance(f(3), GeneratorType)", ""),
        ("def f(n): return lambda x: x + n", "assert f(3)(4) == 7", ""),
        ("class N:\n    def __init__(self, n): self.next = n", "a = N(None); b = N(a); assert b.next is a and a.next is None", ""),
        ("LIMIT = 3\ndef f(): return LIMIT", "assert f() == LIMIT", ""),
        ("from collections import defaultdict\ndef f(): return defaultdict(lambda: 3, a=1)", "d = f(); assert d == {'a': 1} and d['b'] == 3", ""),
        ("class A:\n    def __init__(self, n): self.n = n\n    def add(self, x): self.n += x\n    def __len__(self): return self.n", "a = A(1); a.add(2); assert len(a) == 3", ""),
        ("class P: ...\ndef f(): return P()", "assert isinstance(f(), P)", ""),
        ("def f(x): x.sort(); return x", "a = [3, 1]; b = f(a); assert b is a and a == [1, 3]", ""),
        ("def sum(a, b): return a * b", "def check(candidate):\n    for a in (2, 3): assert candidate(a, 3) == a * 3\ncheck(sum)", ""),
        ("def f(): return 0\ndef same(a, b): return True", "assert same(f(), 3)", ""),
        ("def f(tree): return tree.value", "assert f(Tree(3)) == 3", "class Tree:\n    def __init__(self, value): self.value = value"),
    ],
)  # fmt: skip
def test_what_a_program_judges_itself_is_marked(solution: str, test: str, setup: str) -> None:
    assert verdict_of(solution, test, setup) == "passed*"


def test_a_list_that_changes_in_place_is_read_again_after_each_call() -> None:
    solution = "class S(list):\n    def push(self, x): self.append(x); return len(self)"
    test = "s = S(); t = s\nfor n in (1, 2): assert s.push(n) == n == len(t) == t[-1] + 0 * len(s)\nassert t == [1, 2] and t is s"
    assert verdict_of(solution, test) == "passed"


def test_an_object_of_the_program_s_is_not_copied_by_a_test() -> None:
    reports = reports_of("class P: ...", "import copy\ncopy.deepcopy(P())")
    assert reports[1]["message"] == "TypeError: a test cannot copy an object of the program's own"


def test_a_loop_variable_of_the_test_is_no_name_of_the_program_s() -> None:
    assert verdict_of("x = 3\ndef f(y): return y", "assert all(f(x) == x for x in range(3))") == "passed"


def test_a_name_that_the_set_up_made_is_never_the_program_s() -> None:
    setup = "import math"
    solution = "import math\ndef f():\n    global math\n    class math:\n        isclose = print\n    return 0"
    reports = reports_of(solution, "f()", "assert math.isclose(f(), 3)", setup=setup)
    assert [one["verdict"] for one in reports[2:-1]] == ["passed", "failed"]


def test_a_program_cannot_hide_its_function_to_lend_a_builtin() -> None:
    solution = "def abs(x): return 0\ndef f(x):\n    globals().pop('f', None)\n    return x"
    tests = ("assert abs(f(1) - 1) < 1e-6", "assert abs(f(2) - 9) < 1e-6")
    assert [one["verdict"] for one in reports_of(solution, *tests)[1:-1]] == ["passed", "error"]


def test_what_a_test_cannot_pass_to_a_program_is_told() -> None:
    (_, report, _) = reports_of("def f(x): return 1", "class T: ...\nassert f(T()) == 1")
    assert report["verdict"] == "error"
    assert "a test passes an object of type T to the program" in report["message"]


@pytest.mark.parametrize(
    "test", ["try:\n    f()\nexcept BaseException:\n    pass", "try:\n    f()\nfinally:\n    raise ValueError", "f()"]
)
def test_a_program_that_is_gone_passes_no_test(test: str) -> None:
    reports = reports_of("import os\ndef f(): os._exit(0)", test, "assert True")
    assert [one["verdict"] for one in reports] == ["passed", "ended"]


UNKNOWN = b'{"raised": false, "graph": {"items": [[1]], "nodes": [null, ["pickle", 1]]}}'


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"passed\n", b"\0\0\0\2{}", b"\xff" * 8, b"\0\0\0\4[[[["),
        struct.pack(">I", len(UNKNOWN)) + UNKNOWN,
        struct.pack(">I", 200_000) + b"[" * 200_000,
    ],
    ids=["nothing", "text", "empty", "too long", "no JSON", "unknown kind", "deep"],
)
def test_what_is_no_answer_is_none(data: bytes) -> None:
    solution = f"""
import os
pipes = [fd for fd in range(64) if os.path.exists(f'/proc/self/fd/{{fd}}') and 'pipe' in os.readlink(f'/proc/self/fd/{{fd}}')]
def f():
    os.write(max(pipes), {data!r})
    os._exit(0)
"""
    reports = reports_of(solution, "f()", "assert True")
    assert [one["verdict"] for one in reports] == ["passed", "ended"]


def test_set_up_calls_its_own_builtins_whatever_the_program_calls_its_functions() -> None:
    setup = "def check(candidate): assert abs(candidate(1) - 2) < 1e-6"
    assert verdict_of("def abs(x): return 0\ndef f(x): return 99", "check(f)", setup) == "failed"
    assert verdict_of("def max(a, b): return a\ndef f(x): return 2", "check(f)", setup) == "passed"


def test_a_name_of_the_programs_in_set_up_may_judge_every_test_and_is_marked() -> None:
    setup = "def same(a, b): return close(a, b)"
    solution = "def close(a, b): return True\ndef f(x): return 99"
    assert verdict_of(solution, "assert same(f(1), 2)", setup) == "passed*"
    assert (
        verdict_of(
            "f = float\nclass M:\n    def isclose(self, a, b): return True\nmath = M()", "assert math.isclose(f(1), 2)"
        )
        == "passed*"
    )


@pytest.mark.parametrize(
    "test", ["assert all(map(lambda x: f(x) == x + 1, [1]))", "for x in map(f, [1]): assert x == 2"]
)
def test_a_program_that_raises_stop_iteration_does_not_end_the_tests_own_loop(test: str) -> None:
    assert verdict_of("def f(x): raise StopIteration", test) == "error"
