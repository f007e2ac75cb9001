"""# Tuning

Looks for a better recipe: as many trials as the recipe's `tuning` says, each a training and its evaluation, shared out to workers that have one Optuna
study. The recipe itself is always the first trial. A trial that was made before is a **hit**; a worker that is killed costs its trial a new start,
and the study ends with exactly the trials that were asked for.

`select` has the best recipe and the one that it began with learn again with other seeds, and measures both on problems that no trial was measured
by (where the validation loss decides, on the same ones: then the seeds alone are new). Only a recipe that is better beyond chance is what `tuned:NAME` stands for from then on: `wmtp_daily` takes it with that as its recipe.

A scheduled run of a recipe that has no space, or where there is no database for studies, is skipped.

The same on a terminal: `wmtp tune run`, and `wmtp tune status`.
"""

from datetime import datetime, timedelta

from airflow.sdk import DAG, chain
from wmtp import DEFAULTS, LongPolicy, environment, limits, params, stage

with DAG(
    "wmtp_tune",
    description="Look for a better recipe, and believe it only beyond chance.",
    doc_md=__doc__,
    schedule="0 20 * * SAT",  # not beside the daily run, and done before the champion is evaluated
    start_date=datetime(2026, 1, 1),
    catchup=False,
    max_active_runs=1,
    max_active_tasks=limits()["max_active_tasks"],
    params=params(),
    tags=["wmtp"],
    default_args={**DEFAULTS, "execution_timeout": timedelta(hours=6), "trigger_rule": "none_failed"},
):
    plan = stage(
        "plan", is_study=True, doc_md="Tries the space on the recipe, and pins data and models for all trials."
    )
    pull_data = stage("pull_data", doc_md="Problems to learn from and held-out ones.")
    pull_model = stage("pull_model", doc_md="The base model and its tokenizer.")
    pull_reference = stage("pull_reference", doc_md="A model that the scorer trusts, or data for one.")
    reference = stage("reference", index=plan.output, doc_md="Trains the reference model, which trials share.")
    reward = stage("reward", doc_md="Candidates for a critic, and their rewards.")
    fit_critic = stage("fit_critic", doc_md="Value heads, and what they explain.")
    score_shard = stage(
        "score_shard", index=range(environment().score.num_shards), doc_md="Scores a share of the problems."
    )
    score = stage("score", doc_md="Merges the shards.")
    search = stage(
        "search",
        index=range(environment().tune.num_workers),
        execution_timeout=timedelta(days=2),
        retries=LongPolicy.RETRIES,  # each costs a trial's start at most
        retry_policy=LongPolicy(survives_kills=True),  # the study itself gives parameters up that kill workers
        doc_md="A worker: takes trials until none is left.",
    )
    select = stage(
        "select",
        execution_timeout=timedelta(days=1),
        retries=LongPolicy.RETRIES,  # each costs a training's start at most: those that ended are hits
        retry_policy=LongPolicy(),
        trigger_rule="all_done",  # the others do a lost worker's trials; what is not done `select` finds out
        doc_md="Holds the best recipe against this one.",
    )
    conclude = stage("conclude", doc_md="Adopts a better recipe, and writes the page of the study.")
    chain(plan, [pull_data, pull_model], reference)
    chain(pull_data, pull_reference, reference, reward, fit_critic, score_shard, score, search, select, conclude)
