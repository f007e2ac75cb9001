"""# The daily run

Pulls data, scores its tokens, trains a model with multi-token-prediction heads on them, runs the code that it writes, and
makes it the champion if it is provably better than the one before.

Every task looks first whether its result is in the store already; then it is a **hit** and starts nothing. A task that the
recipe does not need is **skipped**. A task that was interrupted goes on from its last checkpoint when it is cleared.

Trigger it with another recipe, with settings changed (`train.steps=200`), or with tasks forced to run anew.
`wmtp show` prints what a run came to; the last task writes a report.
"""

from datetime import datetime, timedelta

from airflow.sdk import DAG, chain
from wmtp import DEFAULTS, approval, environment, limits, params, stage

from mlops_tasks.pipeline import EVALUATIONS

ROLES = range(len(EVALUATIONS))
ROLE_NAME = f"{{{{ {[' '.join(evaluation) for evaluation in EVALUATIONS]}[task.index] }}}}"

with DAG(
    "wmtp_daily",
    description="Pull, score, train, evaluate, promote if better.",
    doc_md=__doc__,
    schedule="@daily",
    start_date=datetime(2026, 1, 1),
    catchup=False,
    **limits(),
    params=params(),
    tags=["wmtp"],
    default_args={
        **DEFAULTS,
        "execution_timeout": timedelta(hours=1),
        # A task that the recipe does not need is skipped, and what is below it runs all the same.
        "trigger_rule": "none_failed",
    },
):
    plan = stage("plan", doc_md="Resolves the recipe once, with data, models and champion pinned, into the run's spec.")
    pull_data = stage("pull_data", doc_md="Problems to learn from and held-out ones, checked, without contamination.")
    pull_model = stage("pull_model", doc_md="The base model and its tokenizer.")
    pull_reference = stage("pull_reference", doc_md="A model that the scorer trusts, or data for one.")
    reference = stage(
        "reference",
        index=plan.output,
        execution_timeout=timedelta(hours=12),
        doc_md="Trains the reference model, one for each fold where the recipe cross-fits.",
    )
    reward = stage("reward", execution_timeout=timedelta(hours=6), doc_md="Candidates for a critic, and their rewards.")
    fit_critic = stage("fit_critic", execution_timeout=timedelta(hours=6), doc_md="Value heads, and what they explain.")
    score_shard = stage(
        "score_shard",
        index=range(environment().score.num_shards),
        execution_timeout=timedelta(hours=6),
        doc_md="Scores a share of the problems, token by token.",
    )
    score = stage("score", doc_md="Merges the shards.")
    train = stage("train", execution_timeout=timedelta(hours=12), doc_md="Trains with the tokens weighted.")
    generate = stage(
        "generate",
        index=ROLES,
        map_index_template=ROLE_NAME,
        execution_timeout=timedelta(hours=6),
        doc_md="Writes programs for held-out problems.",
    )
    judge = stage(
        "judge", index=ROLES, map_index_template=ROLE_NAME, doc_md="Runs the programs against the problems' tests."
    )
    approve = approval("approve", doc_md="Asks a person, or nobody, as the environment file says.")
    promote = stage("promote", doc_md="Registers the candidate and, if it is better, makes it the champion.")
    report = stage("report", doc_md="Writes one page about the run.")
    chain(plan, [pull_data, pull_model], reference)
    chain(pull_data, pull_reference, reference, reward, fit_critic, score_shard, score)
    chain(score, train, generate, judge, approve, promote, report)
