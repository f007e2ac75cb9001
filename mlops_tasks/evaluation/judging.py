"""The stage `judge`: run what a model wrote and say how good it is.

Owns what is kept of each program (`outcomes.parquet`) and what is said of all (`scores.json`). Verdicts are `referee`'s, the
estimators are `metrics`', the completions and likelihoods come from the stage `generate`. Nothing here loads a model.
"""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mlops_tasks.config.environment import JudgeResources
from mlops_tasks.config.evaluation import EvaluationSet
from mlops_tasks.config.settings import Settings
from mlops_tasks.config.sources import ProtocolId
from mlops_tasks.data.problems import Problem, chosen, read_problems
from mlops_tasks.data.prompts import prompts_sha256
from mlops_tasks.errors import DataError
from mlops_tasks.evaluation.answers import examples_in, reads_answer, reads_output
from mlops_tasks.evaluation.metrics import bits_per_byte, pass_at_k, wilson_interval
from mlops_tasks.evaluation.referee import Referee, Verdicts
from mlops_tasks.evaluation.sandbox import VERDICTS, Outcome, Program
from mlops_tasks.stage import Attempt

log = logging.getLogger(__name__)

_OUTCOMES = pa.schema(
    {
        "problem_id": pa.string(),
        "sample": pa.int32(),
        "completion": pa.string(),
        "program": pa.string(),
        "verdict": pa.string(),
        "passed": pa.bool_(),
        "tests_passed": pa.int32(),
        "num_tests": pa.int32(),
        "tests_inside": pa.int32(),
        "message": pa.string(),
        "exact_match": pa.bool_(),
        "reads_answer": pa.bool_(),
    }
)


class JudgeConfig(Settings):
    """The part of the recipe that `judge` is keyed by; see `mlops_tasks.config.evaluation.Evaluation`."""

    protocol: ProtocolId
    num_samples: int
    temperature: float
    top_p: float
    k: tuple[int, ...]
    min_seconds: float
    reference_factor: float
    problems: EvaluationSet


@dataclass(frozen=True)
class Completion:
    """What a model wrote after a prompt."""

    problem_id: str
    sample: int
    prompt: str
    completion: str


def judge(attempt: Attempt, referee: Referee | None = None) -> dict[str, Any]:
    """Run the completions of `generate` against the problems of a split.

    Args:
        referee: one that has seen some of the completions already; None: a new one.

    Raises:
        DataError: a problem's own solution fails, or the completions are not of these problems.
    """
    started = time.monotonic()
    config = JudgeConfig.model_validate(attempt.config)
    problems = chosen(read_problems(attempt.inputs["data"].path(f"{config.problems.split}.parquet")), config.problems)
    made = attempt.inputs["completions"]
    completions = read_completions(made.path("completions.parquet"))
    _require_samples(problems, completions, config.num_samples)
    if referee is None:
        with referee_of(problems, config, attempt.environment.judge) as found:
            verdicts = _verdicts(found, completions)
    else:
        verdicts = _verdicts(referee, completions)
    rows = rows_of(problems, completions, verdicts)
    path = attempt.folder / "outcomes.parquet"
    pq.write_table(pa.Table.from_pylist(rows, schema=_OUTCOMES), path, compression="zstd")
    # Of what was asked, not of what `generate` says of itself: the same programs may have been drawn in another way.
    about = config.model_dump(mode="json", include={"protocol", "num_samples", "temperature", "top_p"})
    prompts = {one.problem_id: one.prompt for one in completions}
    known = pq.read_table(made.path("likelihoods.parquet")).to_pylist()
    scores = {
        **about,
        "prompt_sha256": prompts_sha256(list(prompts.values())),
        **score(rows, config.k),
        "bits_per_byte": bits_per_byte([row for row in known if row["problem_id"] not in verdicts.unsupported]),
        "unsupported": dict(verdicts.unsupported),
    }
    (attempt.folder / "scores.json").write_text(json.dumps(scores, indent=2) + "\n")
    log.info(
        "judged %d programs of %d problems in %.1f s: pass@1 %.4f, verdicts %s",
        len(rows), scores["num_problems"], time.monotonic() - started, scores["pass_at_k"]["1"], scores["verdicts"],
    )  # fmt: skip
    # Of this run and not of the programs, and so in the manifest alone.
    tests_inside = sum(outcome.tests_inside for outcome in verdicts.outcomes.values())
    return {
        **scores,
        "protections": list(verdicts.protections),
        "programs_may": list(verdicts.allowances),
        "num_tests_inside": tests_inside,
    }


def read_completions(path: Path) -> list[Completion]:
    """Read what `generate` wrote."""
    columns = ["problem_id", "sample", "prompt", "completion"]
    return [Completion(**row) for row in pq.read_table(path, columns=columns).to_pylist()]


def referee_of(problems: Sequence[Problem], config: JudgeConfig, resources: JudgeResources) -> Referee:
    """The referee that an evaluation asks for."""
    return Referee(
        problems,
        config.protocol,
        min_seconds=config.min_seconds,
        reference_factor=config.reference_factor,
        num_workers=resources.num_workers,
        unsafe=resources.unsafe,
    )


def _verdicts(referee: Referee, completions: Sequence[Completion]) -> Verdicts:
    for one in completions:
        referee.submit(one.problem_id, one.completion)
    return referee.finish()


def rows_of(problems: Sequence[Problem], completions: Sequence[Completion], verdicts: Verdicts) -> list[dict[str, Any]]:
    """Describe every completion in a row of `outcomes.parquet`, in order of problem and sample; unsupported problems have none."""
    by_id = {problem.id: problem for problem in problems}
    place = {problem.id: index for index, problem in enumerate(problems)}
    ordered = sorted(completions, key=lambda one: (place[one.problem_id], one.sample))
    return [
        _row(by_id[one.problem_id], one, verdicts.programs[text], verdicts.outcomes[text])
        for one in ordered
        if one.problem_id not in verdicts.unsupported
        for text in [(one.problem_id, one.completion)]
    ]


def _row(problem: Problem, completion: Completion, program: Program, outcome: Outcome) -> dict[str, Any]:
    return {
        "problem_id": problem.id,
        "sample": completion.sample,
        "completion": completion.completion,
        "program": program.text,
        "verdict": outcome.verdict,
        "passed": outcome.passed,
        "tests_passed": outcome.tests_passed,
        "num_tests": outcome.num_tests,
        "tests_inside": outcome.tests_inside,
        "message": outcome.message,
        "exact_match": _without_trailing_space(program.solution) == _without_trailing_space(problem.solution),
        "reads_answer": _is_read_off(problem, completion.prompt, program.solution),
    }


def _is_read_off(problem: Problem, prompt: str, solution: str) -> bool:
    if problem.kind != "stdio":
        return reads_answer(
            solution, [*(test for test in problem.tests if test in prompt), *examples_in(problem.prompt)]
        )
    flat = " ".join(prompt.split())
    outputs = [" ".join(test.output.split()) for test in problem.io_tests if " ".join(test.input.split()) in flat]
    return reads_output(solution, [output for output in outputs if output in flat])


def _without_trailing_space(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip().splitlines()]


def _require_samples(problems: Sequence[Problem], completions: Sequence[Completion], num_samples: int) -> None:
    expected = {(problem.id, sample) for problem in problems for sample in range(num_samples)}
    found = Counter((one.problem_id, one.sample) for one in completions)
    wrong = sorted(set(found) ^ expected) or sorted(key for key, times in found.items() if times > 1)
    if wrong or not expected:
        raise DataError(
            f"The completions are not {num_samples} of each of {len(problems)} problems: {len(completions)} rows, and "
            f"(problem, sample) {wrong[:5]} missing, unexpected or there twice. Run `generate` and `judge` on the same split."
        )


def score(rows: Sequence[Mapping[str, Any]], ks: Sequence[int]) -> dict[str, Any]:
    """Sum outcomes up.

    Args:
        rows: as of `rows_of`, the same number n for each problem.
        ks: each at most n.
    """
    passed = [list(outcomes) for outcomes in _by_problem(rows).values()]
    means = {k: sum(pass_at_k(len(one), sum(one), k) for one in passed) / len(passed) for k in sorted({1, *ks})}
    verdicts = Counter(row["verdict"] for row in rows)
    return {
        "num_problems": len(passed),
        "pass_at_k": {str(k): mean for k, mean in means.items()},
        "pass_at_k_interval": {str(k): list(wilson_interval(mean, len(passed))) for k, mean in means.items()},
        "exact_match": sum(row["exact_match"] for row in rows) / len(rows),
        "verdicts": {verdict: verdicts[verdict] for verdict in VERDICTS},
        "tests_passed_share": sum(row["tests_passed"] / row["num_tests"] for row in rows) / len(rows),
        "num_reading_answer": sum(row["reads_answer"] for row in rows),
        "num_passed_reading_answer": sum(row["reads_answer"] and row["passed"] for row in rows),
    }


def _by_problem(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[bool]]:
    passed: dict[str, list[bool]] = {}
    for row in rows:
        passed.setdefault(row["problem_id"], []).append(row["passed"])
    return passed
