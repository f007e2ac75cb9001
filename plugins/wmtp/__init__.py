"""What a DAG file needs: a factory for the tasks of the pipeline, one each for approvals, comparisons, rollbacks and cleaning, and the triggers' forms.

The environment file is chosen when the DAG is parsed; task ids and edges do not depend on it. What the tasks do is
in `mlops_tasks`, which knows nothing of Airflow.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypedDict

from airflow.sdk import BaseOperator, Context, Param, XComArg
from airflow.sdk.definitions.mappedoperator import MappedOperator

from mlops_tasks import pipeline
from mlops_tasks.config.environment import Environment
from mlops_tasks.config.kubernetes import SANDBOXED, Kubernetes
from mlops_tasks.config.loading import load_environment
from mlops_tasks.stage import Stage
from mlops_tasks.tuning.asks import ASKERS
from wmtp.approval import AutomaticApproval, PersonApproval
from wmtp.champion import CHAMPIONS
from wmtp.local import LocalCleaning, LocalComparisonPlan, LocalPlan, LocalRollback, LocalStage
from wmtp.notices import News, callbacks, news_of_promotion, news_of_rollback
from wmtp.task import DEFAULTS, LongPolicy
from wmtp.trigger import CHECKOUT, Cleaning, Contest, Rollback, Trigger

__all__ = [
    "DEFAULTS",
    "LongPolicy",
    "approval",
    "cleaning",
    "cleaning_params",
    "comparison",
    "comparison_params",
    "environment",
    "limits",
    "params",
    "rollback",
    "rollback_params",
    "stage",
]


def environment_file() -> str:
    """The environment file of this Airflow: `WMTP_ENVIRONMENT`, or the laptop's of this checkout."""
    given = os.environ.get("WMTP_ENVIRONMENT") or CHECKOUT / "configs" / "environments" / "laptop.yaml"
    return str(Path(given).resolve())


def environment() -> Environment:
    """Where this Airflow runs its stages."""
    return load_environment(environment_file())


class Limits(TypedDict):
    """Arguments of a DAG."""

    max_active_runs: int
    max_active_tasks: int


def limits() -> Limits:
    """What runs of a DAG at one time: on this machine one task, which has the whole of it, and on a cluster as the environment file says."""
    cluster = _cluster()
    return {
        "max_active_runs": cluster.max_runs if cluster else 1,
        "max_active_tasks": cluster.max_tasks if cluster else 1,
    }


def params() -> dict[str, Param]:
    """The typed form of a trigger; a scheduled run takes the recipe of the environment file."""
    return Trigger.params(recipe=environment().scheduled_recipe)


def stage(
    task_id: str,
    *,
    index: XComArg | Sequence[int] | int | None = None,
    cell: XComArg | str | None = None,
    **operator: Any,
) -> BaseOperator | MappedOperator:
    """The operator of one task of the pipeline.

    Args:
        task_id: an id that `mlops_tasks.pipeline.task_named` knows, or `plan`.
        index: what the task is mapped over, or the one index that is wanted; None: it is not mapped.
        cell: of a comparison: the cells that the task is mapped over, or the one that is wanted; None: it is a task of the run itself.
        operator: anything that an operator takes, such as `execution_timeout`.
    """
    kind = LocalPlan if task_id == "plan" else _kind_of(task_id)
    common = _champion_moves(news_of_promotion) if task_id == "promote" else _common()
    settings = {"task_id": task_id, **common, **_pool(task_id), **operator}
    if isinstance(cell, XComArg):
        return kind.partial(map_index_template="{{ task.cell }}", **settings).expand(cell=cell)
    if index is None or isinstance(index, int):
        return kind(**settings, index=index or 0, cell=cell)
    # Airflow takes the length of any other sequence from its text.
    return kind.partial(**settings).expand(index=index if isinstance(index, XComArg) else list(index))


def approval(task_id: str, **operator: Any) -> BaseOperator:
    """The operator that lets a promotion go on: a person's answer, or at once, as the environment file says.

    Args:
        operator: anything that an operator takes.
    """
    asked = environment().approval
    if asked.kind == "automatic":
        return AutomaticApproval(task_id=task_id, **operator)
    return PersonApproval(task_id=task_id, approval=asked, **_common(), **operator)


def _common(news_of_success: Callable[[Context, Environment], News | None] | None = None) -> dict[str, Any]:
    """What every task has: where it runs, and who is told how it ends."""
    return {"environment_file": environment_file(), **callbacks(environment(), news_of_success)}


def _champion_moves(news_of_success: Callable[[Context, Environment], News | None]) -> dict[str, Any]:
    """What a task has that may give production another model: whoever deploys is told, and so are people."""
    return {"outlets": [CHAMPIONS], **_common(news_of_success)}


def _pool(task_id: str) -> dict[str, str]:
    cluster = _cluster()
    pool = cluster.profiles[cluster.profile_of(task_id)].pool if cluster and task_id != "plan" else None
    return {"pool": pool} if pool else {}


def _cluster() -> Kubernetes | None:
    """Where stages are pods; None: they are processes of this machine."""
    here = environment()
    return here.kubernetes if here.executor == "kubernetes" else None


def _kind_of(task_id: str) -> type[BaseOperator]:
    if _cluster() is None:
        return LocalStage
    from wmtp.kubernetes import JobStage, PodStage, SandboxStage
    from wmtp.study import StudyStage

    if task_id in ASKERS:
        return StudyStage
    what = pipeline.task_named(task_id).run
    if not isinstance(what, Stage):
        return PodStage
    if what.name in SANDBOXED:
        return SandboxStage
    return JobStage if what.name == pipeline.TRAIN.name else PodStage


def comparison(task_id: str, **operator: Any) -> BaseOperator:
    """The operator that lays the cells of a comparison out, as the form says; its output is what `stage` is mapped over.

    Args:
        operator: anything that an operator takes, such as `execution_timeout`.
    """
    return LocalComparisonPlan(task_id=task_id, **_common(), **operator)


def comparison_params() -> dict[str, Param]:
    """The typed form of a comparison."""
    return Contest.params()


def rollback(task_id: str, **operator: Any) -> BaseOperator:
    """The operator that gives production back an earlier model, as the form says.

    Args:
        operator: anything that an operator takes, such as `execution_timeout`.
    """
    return LocalRollback(task_id=task_id, **_champion_moves(news_of_rollback), **operator)


def cleaning(task_id: str, *, removes: bool, **operator: Any) -> BaseOperator:
    """The operator that says what nobody needs any more, or removes it.

    Args:
        removes: whether it may remove anything.
        operator: anything that an operator takes, such as `execution_timeout`.
    """
    settings = {"task_id": task_id, **_common(), **_pool(task_id), "removes": removes, **operator}
    if _cluster() is None:
        return LocalCleaning(**settings)
    from wmtp.sweep import ClusterCleaning

    return ClusterCleaning(**settings)


def cleaning_params() -> dict[str, Param]:
    """The typed form of a housekeeping."""
    return Cleaning.params()


def rollback_params() -> dict[str, Param]:
    """The typed form of a rollback."""
    return Rollback.params()
