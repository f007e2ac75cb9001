"""Every attack of the table, run for real: not passed, nothing left, the harness alive, and the next program judged right."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from attacks import ATTACKS, Attack
from processes import below

from mlops_tasks.evaluation import sandbox as module
from mlops_tasks.evaluation.sandbox import IoTest, Program, Sandbox

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="programs are confined on Linux only")

TEST = "assert f(1) == 2"
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
    hostile = (
        Program(attack.solution, io_tests=(IoTest("1 2", "3"),), limit_seconds=0.4)
        if attack.is_script
        else Program(attack.solution, (TEST,), limit_seconds=0.4)
    )
    outcome, next_right, next_wrong = sandbox.run(
        [
            hostile,
            Program(RIGHT, (TEST, "import os; assert os.path.exists('/tmp')")),
            Program("def f(x): return x", (TEST,)),
        ]
    )
    assert outcome.verdict in attack.verdicts
    assert outcome.tests_passed == 0
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
    rows = [f"| {attack.name} | {' or '.join(attack.verdicts)} |" for attack in ATTACKS]
    assert "\n".join(rows) in page
