"""# Algorithms side by side

Next-token training, uniform and weighted multi-token training, a critic, placebos: each learns the same problems in the same order, once with each
seed, and is judged on the same held-out problems. The last task writes a page with paired intervals, corrected for many comparisons, learning
curves, what each has cost, and a verdict in words, which may be that there is no difference.

Started by hand only. What to compare is a file of `configs/comparisons` (docs/comparison.md). Every task is mapped over the cells, an algorithm
with a seed each, and looks first whether its result is in the store already: what any run has made is a **hit**, and a comparison that was
stopped goes on when it is cleared or triggered again.

The same on a terminal: `wmtp comparison run FILE`, and `wmtp comparison show`.
"""

from datetime import datetime, timedelta

from airflow.sdk import DAG, chain
from wmtp import DEFAULTS, comparison, comparison_params, limits, stage

with DAG(
    "wmtp_compare",
    description="Compare algorithms over seeds, at equal data, order and tokens.",
    doc_md=__doc__,
    schedule=None,
    start_date=datetime(2026, 1, 1),
    **limits(),
    params=comparison_params(),
    tags=["wmtp"],
    default_args={
        **DEFAULTS,
        "execution_timeout": timedelta(hours=1),
        # A task that an algorithm does not need is skipped, and what is below it runs all the same.
        "trigger_rule": "none_failed",
    },
):
    plan = comparison("plan", doc_md="Checks the comparison before anything runs, and pins the spec of each cell.")
    hours = {"pull_data": 1, "pull_model": 1, "pull_reference": 1, "reference": 12, "reward": 6, "fit_critic": 6}
    hours |= {"score_shard": 6, "score": 1, "train": 12, "generate": 6, "judge": 1}
    steps = [
        stage(
            name, cell=plan.output, execution_timeout=timedelta(hours=most), doc_md=f"The stage `{name}` of each cell."
        )
        for name, most in hours.items()
    ]
    contrast = stage(
        "contrast", cell="{{ ti.xcom_pull('plan')[0] }}", doc_md="Compares the cells, and writes one page about them."
    )
    chain(plan, *steps, contrast)
