"""The step before a promotion: a person who is asked in Airflow's own form, or nobody.

Both are the same task to the DAG; which it is, the environment file says. What the gates ask is `mlops_tasks.registry.gates`'.
"""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Any

from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk import BaseOperator, Context

from mlops_tasks.config.environment import PersonalApproval
from mlops_tasks.config.loading import load_environment
from mlops_tasks.stage import Run

log = logging.getLogger(__name__)


class AutomaticApproval(BaseOperator):
    """Nobody is asked."""

    def execute(self, context: Context) -> dict[str, str]:
        """Let it pass."""
        log.info("approved: the environment file wants no person to be asked")
        return {"approved_by": "nobody was asked"}


class PersonApproval(ApprovalOperator):
    """Asks a person, with what each gate said and the candidate's card in the form, unless the answer would change nothing.

    A rejection, and no answer in time, skip the promotion: production stays as it is, and the report is written.
    """

    def __init__(self, *, environment_file: str, approval: PersonalApproval, **operator: Any) -> None:
        super().__init__(
            subject="Shall this model take the champion's place?",
            defaults=self.REJECT,
            response_timeout=timedelta(hours=approval.hours),
            **operator,
        )
        self.environment_file = environment_file

    def execute(self, context: Context) -> Any:
        """Ask, unless `promote` refuses it whatever the answer is."""
        # With numpy and pyarrow, which a DAG that is parsed must not load.
        from mlops_tasks.registry.card import Card
        from mlops_tasks.registry.promotion import weigh, why_not_by_night

        environment = load_environment(self.environment_file)
        run = Run.open(environment, Run.prefix_of(environment, self.dag_id, context["run_id"]))
        candidate = run.artifact("train")
        assert candidate is not None
        weighed = weigh(run, candidate)
        if not weighed.evidence.passed:
            log.info("nobody is asked, for the gates refuse it: %s", weighed.in_words)
            return {"approved_by": "nobody was asked: the gates refuse it"}
        if (reason := why_not_by_night(run, candidate)) is not None:
            log.info("nobody is asked, for no night changes it: %s", reason)
            return {"approved_by": f"nobody was asked: {reason}"}
        gates = "\n".join(f"- **{gate.name}** holds: {gate.text}" for gate in weighed.gates)
        # Tables, for Airflow's form joins the lines of a block of code.
        self.body = f"{gates}\n\n{Card(run, candidate, version='', compared=weighed.in_words).of_candidate()}"
        self.subject = f"Shall the candidate of {run.title} be the champion of {run.spec.recipe.model.name}?"
        return super().execute(context)
