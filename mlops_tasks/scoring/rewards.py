"""The stage `reward`: candidate solutions of the training problems, good and bad, and what each is worth.

Owns which candidates there are. How a mistake is made is `mutations`', how the base model writes `evaluation.generation`'s, how a
program is judged `evaluation.referee`'s, what a reward model says `reward_model`'s; the table is `candidates`'. What the base model
wrote is put away meanwhile, so a killed stage goes on where it was.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mlops_tasks.config.learning import Candidates
from mlops_tasks.config.settings import Settings
from mlops_tasks.config.sources import Text
from mlops_tasks.data.problems import Problem, read_problems
from mlops_tasks.data.prompts import completion_text, program_of, render_prompt, require_kind, shots_of
from mlops_tasks.data.protocols import protocol_named
from mlops_tasks.evaluation.generation import COMPLETIONS, Row, Writing, load, write
from mlops_tasks.evaluation.referee import Referee
from mlops_tasks.parts import Parts
from mlops_tasks.scoring.candidates import ORIGINS, Origin, Rewarded, as_problem, standardised, telling, write_rewards
from mlops_tasks.scoring.mutations import mutants
from mlops_tasks.scoring.reward_model import model_rewards
from mlops_tasks.scoring.scorers import generator_of
from mlops_tasks.stage import Attempt

log = logging.getLogger(__name__)

Rewards = Mapping[tuple[str, str], float]
"""By problem id and completion."""


class RewardConfig(Settings):
    """The part of the recipe that `reward` is keyed by."""

    reward: Literal["tests", "model"]
    candidates: Candidates
    text: Text
    max_new_tokens: int
    precision: Literal["float32", "bfloat16"]
    min_seconds: float | None = None
    reference_factor: float | None = None
    """Limits of a program, as `evaluation` has them; None where none is run."""
    seed: int


@dataclass(frozen=True)
class Candidate:
    """A solution that somebody might write."""

    problem: Problem
    """With this solution."""
    origin: Origin
    completion: str
    """What is written after the prompt."""

    @classmethod
    def of(cls, problem: Problem, solution: str, origin: Origin, text: Text) -> Candidate:
        """In the form in which the problem's own solution is learnt, whoever wrote it."""
        mine = as_problem(problem, solution)
        return cls(mine, origin, completion_text(mine, text.prompt))


def reward(attempt: Attempt) -> dict[str, Any]:
    """Write `rewards.parquet`.

    Raises:
        UserError: a model that cannot be used, a prompt that leaves no room, or a machine that cannot confine a program.
        DataError: a problem's own solution does not pass its tests.
    """
    started = time.monotonic()
    config = RewardConfig.model_validate(attempt.config)
    problems = read_problems(attempt.inputs["data"].path("train.parquet"))[: config.candidates.num_problems]
    require_kind(problems, config.text.prompt)
    candidates, rewards = (_tested if config.reward == "tests" else _modelled)(attempt, config, problems)
    rows = _rows(candidates, rewards)
    write_rewards(attempt.folder / "rewards.parquet", rows)
    metrics = _metrics(rows)
    seconds = time.monotonic() - started
    log.info(
        "rewarded %d candidates of %d problems in %.1f s; %d problems give no signal, for all their candidates have one reward",
        len(rows), metrics["num_problems"], seconds, metrics["num_without_signal"],
    )  # fmt: skip
    num_unsupported = len(problems) - metrics["num_problems"]
    return {"reward": config.reward, **metrics, "num_unsupported": num_unsupported, "seconds": seconds}


def _tested(attempt: Attempt, config: RewardConfig, problems: Sequence[Problem]) -> tuple[list[Candidate], Rewards]:
    """The share of its tests that each candidate passes; programs run while the base model still writes others."""
    assert config.min_seconds is not None and config.reference_factor is not None
    resources = attempt.environment.judge
    with Referee(
        problems,
        config.text.prompt,
        min_seconds=config.min_seconds,
        reference_factor=config.reference_factor,
        num_workers=resources.num_workers,
        unsafe=resources.unsafe,
    ) as referee:
        candidates = _candidates(attempt, config, problems, lambda one: referee.submit(one.problem.id, one.completion))
        outcomes = referee.finish().outcomes
    return candidates, {text: outcome.tests_passed / outcome.num_tests for text, outcome in outcomes.items()}


def _modelled(attempt: Attempt, config: RewardConfig, problems: Sequence[Problem]) -> tuple[list[Candidate], Rewards]:
    """What the reward model says of each candidate."""
    candidates = _candidates(attempt, config, problems, lambda one: None)
    form, shots = protocol_named(config.text.prompt), _shots(attempt, config)
    texts = [(form.render(one.problem, shots), one.completion) for one in candidates]
    found = model_rewards(attempt.inputs["reward_model"], texts)
    return candidates, {(one.problem.id, one.completion): value for one, value in zip(candidates, found, strict=True)}


def _candidates(
    attempt: Attempt, config: RewardConfig, problems: Sequence[Problem], tell: Callable[[Candidate], None]
) -> list[Candidate]:
    """Different candidates of each problem, in order of the problems, each told as soon as it is there."""
    candidates = [one for problem in problems for one in edited(problem, config)]
    for one in candidates:
        tell(one)
    candidates += _sampled(attempt, config, problems, tell)
    different: dict[tuple[str, str], Candidate] = {}
    for one in candidates:
        different.setdefault((one.problem.id, one.completion), one)
    place = {problem.id: index for index, problem in enumerate(problems)}
    return sorted(different.values(), key=lambda one: place[one.problem.id])


def edited(problem: Problem, config: RewardConfig) -> list[Candidate]:
    """The problem's own solution and mutants of it."""
    rng = generator_of(config.seed, problem.id)
    drawn = mutants(problem.solution, count=config.candidates.num_mutants, rng=rng)
    others = [Candidate.of(problem, one.solution, one.mistake, config.text) for one in drawn]
    # Where a program begins with its prompt, a mistake in there is not one that a model could make.
    return [
        Candidate.of(problem, problem.solution, "reference", config.text),
        *(one for one in others if one.problem.kind == problem.kind),
    ]


def _sampled(
    attempt: Attempt, config: RewardConfig, problems: Sequence[Problem], tell: Callable[[Candidate], None]
) -> list[Candidate]:
    """What the base model writes, but for what holds no program."""
    asked = config.candidates
    if not asked.num_samples:
        return []
    writer = load(attempt.inputs["model"].folder("model"), precision=config.precision)
    shots, by_id = _shots(attempt, config), {problem.id: problem for problem in problems}
    prompts = {problem.id: render_prompt(problem, config.text.prompt, shots, writer.tokenizer) for problem in problems}

    def candidate(row: Row) -> Candidate | None:
        problem = by_id[row["problem_id"]]
        solution = program_of(problem, row["completion"], config.text.prompt)
        return Candidate.of(problem, solution, "sampled", config.text) if solution.strip() else None

    def told(row: Row) -> None:
        if one := candidate(row):
            tell(one)

    parts = Parts(attempt.store, attempt.prefix, COMPLETIONS, identity=("problem_id", "sample"), token=attempt.token)
    writing = Writing(
        protocol=config.text.prompt,
        num_samples=asked.num_samples,
        temperature=asked.temperature,
        top_p=asked.top_p,
        max_new_tokens=config.max_new_tokens,
        precision=config.precision,
        seed=config.seed,
    )
    size = attempt.environment.generate.batch_size
    rows = write(writer, prompts, writing, batch_size=size, earlier=parts.read(), on_row=told, put_away=parts.add)
    return [one for row in rows if (one := candidate(row))]


def _shots(attempt: Attempt, config: RewardConfig) -> tuple[Problem, ...]:
    return shots_of(read_problems(attempt.inputs["data"].path("prompt.parquet")), config.text.prompt)


def _rows(candidates: Sequence[Candidate], rewards: Rewards) -> list[Rewarded]:
    """Candidates of problems that can judge, with their rewards standardised within each problem."""
    judged: dict[str, list[tuple[Candidate, float]]] = {}
    for one in candidates:
        value = rewards.get((one.problem.id, one.completion))
        if value is not None:
            judged.setdefault(one.problem.id, []).append((one, value))
    return [
        Rewarded(problem_id, one.origin, one.problem.solution, value, scaled)
        for problem_id, mine in judged.items()
        for (one, value), scaled in zip(mine, standardised([value for _, value in mine]), strict=True)
    ]


def _metrics(rows: Sequence[Rewarded]) -> dict[str, Any]:
    num_problems = len({row.problem_id for row in rows})
    by_origin = {origin: [row.reward for row in rows if row.origin == origin] for origin in ORIGINS}
    return {
        "num_problems": num_problems,
        "num_without_signal": num_problems - len(telling(rows)),
        "num_candidates": {origin: len(found) for origin, found in by_origin.items()},
        "mean_reward": {origin: sum(found) / len(found) for origin, found in by_origin.items() if found},
    }
