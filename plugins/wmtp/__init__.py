"""What a DAG file needs: one factory for the tasks of the pipeline, one for a rollback, and the forms of their triggers.

The environment file is chosen when the DAG is parsed; task ids and edges do not depend on it. What the tasks do is
in `mlops_tasks`, which knows nothing of Airflow.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from airflow.sdk import BaseOperator, Param, XComArg
from airflow.sdk.definitions.mappedoperator import MappedOperator

from mlops_tasks import pipeline
from mlops_tasks.config import Environment, load_environment
from mlops_tasks.stage import Stage
from wmtp.local import LocalPlan, LocalRollback, LocalStage
from wmtp.task import RETRY_POLICY
from wmtp.trigger import CHECKOUT, Rollback, Trigger

__all__ = ["RETRY_POLICY", "environment", "params", "rollback", "rollback_params", "stage"]


def environment_file() -> str:
    """The environment file of this Airflow: `WMTP_ENVIRONMENT`, or the laptop's of this checkout."""
    given = os.environ.get("WMTP_ENVIRONMENT") or CHECKOUT / "configs" / "environments" / "laptop.yaml"
    return str(Path(given).resolve())


def environment() -> Environment:
    """Where this Airflow runs its stages."""
    return load_environment(environment_file())


def params() -> dict[str, Param]:
    """The typed form of a trigger; a scheduled run takes the recipe of the environment file."""
    return Trigger.params(recipe=environment().scheduled_recipe)


def stage(
    task_id: str, *, index: XComArg | Sequence[int] | None = None, **operator: Any
) -> BaseOperator | MappedOperator:
    """The operator of one task of the pipeline.

    Args:
        task_id: an id of `mlops_tasks.pipeline.TASKS`, or `plan`.
        index: what the task is mapped over; None: it is not mapped.
        operator: anything that an operator takes, such as `execution_timeout`.
    """
    kind = LocalPlan if task_id == "plan" else _kind_of(task_id)
    settings = {"task_id": task_id, "environment_file": environment_file(), **operator}
    if index is None:
        return kind(**settings)
    # Airflow takes the length of any other sequence from its text.
    return kind.partial(**settings).expand(index=index if isinstance(index, XComArg) else list(index))


def _kind_of(task_id: str) -> type[BaseOperator]:
    if environment().executor == "local":
        return LocalStage
    from wmtp.kubernetes import JobStage, PodStage, SandboxStage

    what = pipeline.task_named(task_id).run
    kinds = {pipeline.TRAIN.name: JobStage, pipeline.JUDGE.name: SandboxStage}
    return kinds.get(what.name, PodStage) if isinstance(what, Stage) else PodStage


def rollback(task_id: str, **operator: Any) -> BaseOperator:
    """The operator that gives production back an earlier model, as the form says.

    Args:
        operator: anything that an operator takes, such as `execution_timeout`.
    """
    return LocalRollback(task_id=task_id, environment_file=environment_file(), **operator)


def rollback_params() -> dict[str, Param]:
    """The typed form of a rollback."""
    return Rollback.params()
