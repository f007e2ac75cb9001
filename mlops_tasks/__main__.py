"""`wmtp`, or `python -m mlops_tasks`: parse, set up logging, run one task or answer one question, end with the exit code.

The only module that writes to standard output: a command is given it as a stream.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import TextIO

from pydantic import TypeAdapter

from mlops_tasks import __version__, forecast, logs, pipeline, planning, stage, summary
from mlops_tasks.algorithms import commands as comparison_commands
from mlops_tasks.config.environment import Environment
from mlops_tasks.config.loading import load_environment, load_recipe
from mlops_tasks.config.sources import FileData, FolderModel, GeneratedData
from mlops_tasks.errors import UserError, WmtpError
from mlops_tasks.machine import keep_freed_memory, num_cores
from mlops_tasks.registry import commands as registry_commands
from mlops_tasks.stage import Run
from mlops_tasks.store import Artifact, Store
from mlops_tasks.tuning import commands as tuning_commands

log = logging.getLogger(__name__)

DEFAULT_ENVIRONMENT = "configs/environments/laptop.yaml"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; the return value is the exit code (see `errors`)."""
    options = _parser().parse_args(arguments)
    logs.configure(verbose=options.verbose)
    # transformers draws a bar for every file that it reads or writes, on a terminal or not.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # numpy's own pool of threads, which nothing here uses, would keep `distributed` from forking its ranks.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # torch sees the machine's cores, and not what a container may use of them.
    os.environ.setdefault("OMP_NUM_THREADS", str(num_cores()))
    if arguments is None:  # a process of its own, not a caller's
        keep_freed_memory()
    try:
        return int(options.answer(options, load_environment(options.env), sys.stdout) or 0)
    except WmtpError as error:
        log.error("%s", error)
        return error.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="wmtp", description="Nightly training of code language models, as idempotent tasks."
    )
    parser.add_argument("--version", action="version", version=__version__)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--env",
        default=os.environ.get("WMTP_ENVIRONMENT", DEFAULT_ENVIRONMENT),
        help="environment file (default: %(default)s)",
    )
    common.add_argument("--verbose", action="store_true", help="log more")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, text in _task_commands().items():
        _add_task(commands.add_parser(name, parents=[common], help=text), name)
    for name, (text, add) in _QUESTIONS.items():
        add(commands.add_parser(name, parents=[common], help=text))
    recipe = argparse.ArgumentParser(add_help=False)
    _add_recipe(recipe)
    registry_commands.add(
        commands.add_parser("registry", help="which versions there are, which one production loads, and moving that"),
        common,
    )
    tuning_commands.add(
        commands.add_parser("tune", help="look for a better recipe, and how far a study is"), common, recipe
    )
    comparison_commands.add(
        commands.add_parser("comparison", help="algorithms side by side, over seeds, at equal data and tokens"), common
    )
    return parser


def _add_task(command: argparse.ArgumentParser, name: str) -> None:
    command.add_argument("--spec", required=True, help="URI of the run's spec.json")
    command.add_argument("--task", required=True, help="id of the task")
    command.add_argument("--index", type=int, default=0, help="which of the mapped tasks")
    command.add_argument("--expect-key", help="end with an error that names the difference if the key is another")
    command.set_defaults(answer=_run_task, command=name)


def _add_why(command: argparse.ArgumentParser) -> None:
    command.add_argument("task")
    _add_recipe(command)
    command.set_defaults(answer=_why)


def _add_show(command: argparse.ArgumentParser) -> None:
    command.add_argument("what", nargs="?", help="URI of an artifact or of a run's spec.json; default: the last run")
    command.add_argument("--lineage", action="store_true", help="all that the artifact was made from, as a tree")
    command.set_defaults(answer=_show)


def _add_doctor(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="the findings as JSON")
    command.set_defaults(answer=_doctor)


def _add_check_data(command: argparse.ArgumentParser) -> None:
    command.add_argument("path", nargs="?", help="a file, here or on s3://; default: the data of --recipe")
    command.add_argument(
        "--kind",
        choices=("mbpp", "humaneval", "codecontests"),
        default="mbpp",
        help="its format (default: %(default)s)",
    )
    _add_recipe(command)
    command.set_defaults(answer=_check_data)


def _add_evaluate(command: argparse.ArgumentParser) -> None:
    _add_recipe(command)
    command.set_defaults(answer=_evaluate)


def _task_commands() -> dict[str, str]:
    commands: dict[str, str] = {}
    for task in pipeline.every().values():
        kind = "stage" if isinstance(task.run, stage.Stage) else "action"
        commands[task.verb] = f"run one task of the {kind} {task.verb}"
    return commands


def _add_recipe(command: argparse.ArgumentParser) -> None:
    command.add_argument("--recipe", default="configs/recipes/demo.yaml", help="recipe file (default: %(default)s)")
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="A.B=VALUE",
        dest="overrides",
        help="override one setting; may be repeated",
    )


def _add_plan(command: argparse.ArgumentParser) -> None:
    _add_recipe(command)
    command.add_argument("--spec", help="URI to write the spec to")
    command.add_argument(
        "--force", action="append", default=[], metavar="TASK", help="run this task anew, once; may be repeated"
    )
    command.add_argument(
        "--champion", action="store_true", help="only evaluate the champion on the data as they are; train nothing"
    )
    command.add_argument("--study", action="store_true", help="look for a better recipe, as `tuning` says")
    command.set_defaults(answer=_plan)


def _add_verify(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "what", nargs="*", metavar="PREFIX", help="a stage, the beginning of <stage>/<key>, or a URI; default: all"
    )
    command.add_argument("--recompute", metavar="TASK", help="run this task of a run again in the shadow and compare")
    command.add_argument("--spec", help="URI of that run's spec.json")
    command.add_argument("--index", type=int, default=0, help="which of the mapped tasks")
    command.set_defaults(answer=_verify)


def _add_gc(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--keep-runs",
        type=int,
        metavar="N",
        help="last runs of each deployment (default: as the environment file says)",
    )
    command.add_argument(
        "--grace-days", type=float, metavar="D", help="touch nothing younger (default: as the environment file says)"
    )
    command.add_argument(
        "--pin",
        action="append",
        default=[],
        metavar="PREFIX",
        help="keep this artifact and its inputs; may be repeated",
    )
    command.add_argument("--delete", action="store_true", help="remove it, instead of only saying what would go")
    command.set_defaults(answer=_gc)


def _add_compare(command: argparse.ArgumentParser) -> None:
    command.add_argument("a", metavar="A", help="URI of an artifact of judge, or judge/<key>")
    command.add_argument("b", metavar="B", help="the other one")
    command.add_argument(
        "--names", nargs=2, default=("A", "B"), metavar=("A", "B"), help="what to call them (default: A and B)"
    )
    command.add_argument("--out", default="comparison.html", help="the page (default: %(default)s)")
    command.add_argument(
        "--anyway", action="store_true", help="compare on their common problems even if they were not asked alike"
    )
    command.set_defaults(answer=_compare)


def _add_recommend(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--model",
        required=True,
        metavar="FOLDER",
        help="folder or s3:// prefix with a config.json; no weights are needed",
    )
    command.add_argument("--data", metavar="FILE", help="problems, in the format --kind; default: the data of --recipe")
    command.add_argument(
        "--kind", choices=("mbpp", "humaneval", "codecontests"), default="mbpp", help="(default: %(default)s)"
    )
    command.add_argument("--memory", required=True, help="of one device, such as 24GB")
    _add_recipe(command)
    command.set_defaults(answer=_recommend)


def _add_convert(command: argparse.ArgumentParser) -> None:
    command.add_argument("source", type=Path, help="folder with consolidated.pth and params.json")
    command.add_argument("target", type=Path, help="folder to write")
    command.add_argument("--positions", type=int, default=4096, help="of the result (default: %(default)s)")
    command.set_defaults(answer=_convert)


def _prefix_of(spec: str, environment: Environment) -> str:
    store = Store.of(environment).uri
    if not (spec.startswith(f"{store}/runs/") and spec.endswith("/spec.json")):
        raise UserError(
            f"--spec {spec} is not {store}/runs/…/spec.json. It must lie in the store of the environment file."
        )
    return spec.removeprefix(f"{store}/").removesuffix("/spec.json")


def _run_task(options: argparse.Namespace, environment: Environment, out: TextIO) -> None:
    run = Run.open(environment, _prefix_of(options.spec, environment))
    task = pipeline.task_named(options.task)
    if options.command != task.verb:
        raise UserError(f"The task {task.id} is run by `wmtp {task.verb}`, not by `wmtp {options.command}`.")
    if os.environ.get("JOB_COMPLETION_INDEX", "0") == "0":
        stage.execute(run, task, options.index, tasks=pipeline.every(), expect_key=options.expect_key)
        return
    from mlops_tasks.distributed import Pods

    first = Pods.of_environment()
    key, is_there = options.expect_key, first.is_first_there
    stage.accompany(run, task, options.index, tasks=pipeline.every(), expect_key=key, may_begin=is_there)


def _plan(options: argparse.Namespace, environment: Environment, out: TextIO) -> None:
    if options.spec:
        planning.plan(
            environment,
            _prefix_of(options.spec, environment),
            recipe=options.recipe,
            overrides=options.overrides,
            force=options.force,
            only_champion=options.champion,
            is_study=options.study,
        )
        return
    spec = planning.resolve(
        environment,
        recipe=options.recipe,
        overrides=options.overrides,
        force=options.force,
        only_champion=options.champion,
        is_study=options.study,
    )
    forecasts = list(forecast.preview(environment, spec))
    for one in forecasts:
        took = "" if one.seconds is None else f"{one.seconds / 60:6.1f} min last time"
        price = "" if one.cost is None else f"  {one.cost:.2f} {environment.currency}"
        out.write(f"{spec.label(one.task, one.index):<16}{one.outcome:<9}{took}{price}\n")
    out.write(
        f"champion: {f'version {spec.champion.version}' if spec.champion else 'none yet; the base model is compared with'}\n"
    )
    minutes = sum(one.seconds or 0.0 for one in forecasts) / 60
    costs = [one.cost for one in forecasts if one.cost is not None]
    price = f" and {sum(costs):.2f} {environment.currency}" if costs else ""
    out.write(f"expected: {minutes:.1f} min{price} where earlier runs tell\n")


def _why(options: argparse.Namespace, environment: Environment, out: TextIO) -> None:
    spec = planning.resolve(environment, recipe=options.recipe, overrides=options.overrides)
    out.writelines(f"{line}\n" for line in forecast.why(environment, spec, options.task))


def _show(options: argparse.Namespace, environment: Environment, out: TextIO) -> None:
    what = options.what
    if options.lineage and (what is None or what.endswith("/spec.json")):
        raise UserError("--lineage is of an artifact. Give its URI; the report of a run leads to each.")
    if what is None or what.endswith("/spec.json"):
        run = Run.open(environment, _prefix_of(what, environment)) if what else next(stage.runs(environment), None)
        if run is None:
            raise UserError(f"The store {environment.store} has no run yet. Start one with `make demo`.")
        out.writelines(f"{line}\n" for line in summary.of_run(run))
        return
    artifact = Store.of(environment).artifact_at(what.removesuffix("/manifest.json"))
    if artifact is None:
        raise UserError(f"{what} is no whole artifact. `wmtp show` without an argument tells of the last run.")
    told = summary.lineage(artifact) if options.lineage else summary.of_artifact(artifact)
    out.writelines(f"{line}\n" for line in told)


def _verify(options: argparse.Namespace, environment: Environment, out: TextIO) -> int:
    from mlops_tasks import housekeeping

    if options.recompute:
        return _recompute(options, environment, out)
    store = Store.of(environment)
    checked, broken, unread = [], 0, 0
    for one in housekeeping.verify(store, housekeeping.selected(store, options.what)):
        checked.append(one)
        if one.flaw is not None:
            broken, unread = broken + one.is_readable, unread + (not one.is_readable)
            out.write(f"{one.prefix}: {one.flaw}\n")
    num_bytes = sum(one.num_bytes for one in checked)
    told = [f"{broken} broken, quarantined; run the DAG again and they are made anew"] if broken else []
    told += [f"{unread} could not be read and were left alone; verify them again later"] if unread else []
    out.write(
        f"{len(checked)} artifacts, {sum(one.num_files for one in checked)} files, {housekeeping.readable(num_bytes)}: "
        f"{'; '.join(told) or 'all as committed'}\n"
    )
    return 65 if broken else 75 if unread else 0


def _recompute(options: argparse.Namespace, environment: Environment, out: TextIO) -> int:
    from mlops_tasks import housekeeping

    if not options.spec or options.what:
        raise UserError("--recompute TASK needs --spec, the URI of the run's spec.json, and no prefix.")
    run = Run.open(environment, _prefix_of(options.spec, environment))
    task = pipeline.task_named(options.recompute)
    found = housekeeping.recompute(run, task, options.index, tasks=pipeline.every())
    for one in found:
        out.write(f"{one.name}: committed {one.committed or 'nothing'}, recomputed {one.recomputed or 'nothing'}\n")
    out.write(f"{run.spec.label(task.id, options.index)}: {len(found) or 'no'} files differ\n")
    return 65 if found else 0


def _gc(options: argparse.Namespace, environment: Environment, out: TextIO) -> None:
    from mlops_tasks import housekeeping
    from mlops_tasks.registry import old_runs

    policy = environment.housekeeping
    collector = housekeeping.Collector(
        environment,
        num_runs=policy.keep_runs if options.keep_runs is None else options.keep_runs,
        grace=timedelta(days=policy.grace_days if options.grace_days is None else options.grace_days),
        pins=options.pin,
    )
    garbage = collector.garbage()
    gone = list(collector.remove(garbage)) if options.delete else garbage
    for one in gone:
        out.write(f"{housekeeping.readable(one.num_bytes):>12}  {one.prefix}  {one.text}\n")
    uploads = collector.uploads(dry_run=not options.delete)
    forgotten = old_runs.find(environment)
    if options.delete:
        old_runs.delete(environment, forgotten)
    out.writelines(f"{one}\n" for one in forgotten)
    size = housekeeping.readable(sum(one.num_bytes for one in gone))
    out.write(f"{len(gone)} prefixes with {size}, {uploads} unfinished writes and {len(forgotten)} runs in MLflow: ")
    out.write("removed\n" if options.delete else "a dry run, nothing was removed; --delete removes them\n")


def _doctor(options: argparse.Namespace, environment: Environment, out: TextIO) -> int:
    from mlops_tasks import doctor

    found = []
    for one in doctor.examine(environment):
        found.append(one)
        if not options.json:
            out.write(f"{one.status:<5} {one.check:<9} {one.text}\n")
            out.flush()
    if options.json:
        out.write(json.dumps([asdict(one) for one in found], indent=1, ensure_ascii=False) + "\n")
    return doctor.exit_code(found)


def _check_data(options: argparse.Namespace, environment: Environment, out: TextIO) -> int:
    from mlops_tasks.data.pull import reading_of
    from mlops_tasks.evaluation.referee import check_references

    reading = reading_of(_source_of(options), environment.s3)
    # Their own solutions are run too: whether they pass is one thing, whether others may be judged by their tests another.
    problems = [*reading.problems, *(one.problem for one in reading.unsupported if one.problem)]
    outcomes = check_references(problems, environment.judge.num_workers, unsafe=environment.judge.unsafe)
    failed = [(problem, outcome) for problem, outcome in zip(problems, outcomes, strict=True) if not outcome.passed]
    out.writelines(f"unsupported: {one}\n" for one in reading.unsupported)
    out.writelines(f"{problem.id}: {outcome.verdict}: {outcome.message}\n" for problem, outcome in failed)
    out.write(f"{len(problems) - len(failed)} of {len(problems)} reference solutions pass their tests\n")
    if reading.unsupported:
        out.write(f"{len(reading.unsupported)} problems are unsupported: no model is asked for them\n")
    return 65 if failed else 0


def _source_of(options: argparse.Namespace) -> FileData:
    if options.path is not None:
        source: FileData = TypeAdapter(FileData).validate_python({"kind": options.kind, "path": options.path})
        return source
    found = load_recipe(options.recipe, options.overrides).data.source
    if isinstance(found, GeneratedData):
        raise UserError(
            f"The data of {options.recipe} is made up and right as it is. Name a file, or a recipe with one."
        )
    return found


def _evaluate(options: argparse.Namespace, environment: Environment, out: TextIO) -> None:
    from mlops_tasks import benchmark

    run = benchmark.evaluate(environment, recipe=options.recipe, overrides=options.overrides)
    out.writelines(f"{line}\n" for line in benchmark.in_words(run))


def _recommend(options: argparse.Namespace, environment: Environment, out: TextIO) -> None:
    from mlops_tasks import recommendation
    from mlops_tasks.data.pull import reading_of

    recipe = load_recipe(options.recipe, options.overrides)
    options.path = options.data
    source = recipe.data.source if options.data is None else _source_of(options)
    num_samples = sum(one.split == "train" for one in reading_of(source, environment.s3).problems)
    config = recommendation.config_of(FolderModel(kind="folder", path=options.model), environment.s3)
    case = recommendation.Case(
        config, recipe.train, _bytes_of(options.memory), recipe.text.max_length, environment.train.loss_chunk_rows
    )
    for one in recommendation.recommend(case, num_samples=num_samples):
        out.write(f"{one.setting}: {json.dumps(one.value)}\n    {one.why}\n")
    for way in case.ways.values():
        rows = f"{way.rows} rows at a time{', recomputed' if way.recompute else ''}" if way.rows else "does not fit"
        out.write(f"{way.kind:<6} {rows}; one row takes {recommendation.in_words(way.smallest)}\n")


def _convert(options: argparse.Namespace, environment: Environment, out: TextIO) -> None:
    from mlops_tasks import native

    num_heads = native.convert(options.source, options.target, max_positions=options.positions)
    out.write(f"{options.target}: train it with train.num_heads {num_heads} and train.head_kind layer\n")


def _bytes_of(text: str) -> float:
    number = text.upper().removesuffix("B").removesuffix("G")
    try:
        return float(number) * 1e9
    except ValueError:
        raise UserError(f"--memory is {text!r}, which is no size. Give it in gigabytes, such as 24GB.") from None


def _compare(options: argparse.Namespace, environment: Environment, out: TextIO) -> None:
    from mlops_tasks.report import comparison

    store = Store.of(environment)
    a, b = (_judged(store, what) for what in (options.a, options.b))
    compared = comparison.Compared.of(a, b, names=options.names, allow_differences=options.anyway)
    Path(options.out).write_bytes(comparison.page(compared).encode(errors="replace"))
    out.writelines(f"{line}\n" for line in comparison.in_words(compared))
    out.write(f"page: {options.out}\n")


def _judged(store: Store, what: str) -> Artifact:
    artifact = store.artifact_at(what if "://" in what or what.startswith("/") else f"{store.uri}/{what}")
    if artifact is None or artifact.manifest.get("stage") != "judge":
        raise UserError(
            f"{what} is no whole artifact of judge in the store {store.uri}. `wmtp evaluate` prints its URI, and the report of a "
            "run leads to each."
        )
    return artifact


_QUESTIONS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None]]] = {
    "plan": ("what a recipe would hit and run; with --spec: resolve it for a run", _add_plan),
    "why": ("which part of a task's key changed since the last run", _add_why),
    "show": ("a run as a table, or an artifact with its lineage", _add_show),
    "verify": ("hash what is committed again, or compute it again", _add_verify),
    "gc": ("what nobody needs any more; removes nothing without --delete", _add_gc),
    "doctor": ("look an environment over before the first run, and say what to put right", _add_doctor),
    "check-data": ("run every reference solution against its own tests", _add_check_data),
    "evaluate": ("measure a recipe's own model on its report set; trains nothing", _add_evaluate),
    "recommend": ("settings to begin with, and why, before there is a device", _add_recommend),
    "convert": ("a published checkpoint with heads of its own as a folder to train from", _add_convert),
    "compare": ("two judged models, problem by problem", _add_compare),
}
"""The commands beside the tasks': what each is for, and its arguments."""


if __name__ == "__main__":
    sys.exit(main())
