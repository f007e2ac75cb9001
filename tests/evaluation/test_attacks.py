"""Every attack of the table, run for real: not passed, nothing left, the harness alive, and the next program judged right."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from attacks import ATTACKS, TEST, Attack
from processes import below

from mlops_tasks.evaluation import sandbox as module
from mlops_tasks.evaluation.sandbox import IoTest, Program, Sandbox

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="programs are confined on Linux only")

RIGHT = "def f(x): return x + 1"


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(num_workers=1) as running:
        yield running


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_an_attack_is_contained(sandbox: Sandbox, attack: Attack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WALL_FACTOR", 3.0)
    worker = sandbox._workers[0]._process.pid
    idle = below(worker)
    # Whatever is to run out of its time has little of it.
    limit = 0.15 if "timeout" in attack.verdicts else 0.4
    io_tests, tests = ((IoTest("1 2", "3"),), ()) if attack.is_script else ((), (attack.test,))
    hostile = Program(attack.solution, tests, attack.setup, limit, io_tests)
    outcome, next_right, next_wrong = sandbox.run(
        [
            hostile,
            Program(RIGHT, (TEST, "import os; assert os.path.exists('/tmp')")),
            Program("def f(x): return x", (TEST,)),
        ]
    )
    verdict = "marked" if outcome.passed and outcome.tests_inside == 1 else outcome.verdict
    assert verdict in attack.verdicts, outcome.message
    assert outcome.tests_passed == outcome.passed
    assert (next_right.verdict, next_wrong.verdict) == ("passed", "failed")
    assert below(worker) == idle
    assert not Path("/tmp/wmtp-attack").exists()
    assert sandbox._folder is not None
    assert [path.name for path in Path(sandbox._folder.name).rglob("*")] == ["0"]


def test_the_table_is_long_enough_and_its_names_are_one_each() -> None:
    assert len(ATTACKS) >= 40
    assert len({attack.name for attack in ATTACKS}) == len(ATTACKS)


def test_the_documented_table_is_this_one() -> None:
    page = (Path(__file__).parents[2] / "docs" / "sandbox.md").read_text()
    assert "\n".join(map(row_of, ATTACKS)) in page


def row_of(attack: Attack) -> str:
    test = "" if attack.test == TEST else f"`{'; '.join(line.strip() for line in attack.test.splitlines())}`"
    return f"| {attack.name} | {test} | {' or '.join(attack.verdicts)} |"
