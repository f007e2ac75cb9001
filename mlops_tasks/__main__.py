"""`wmtp`, or `python -m mlops_tasks`: parse, set up logging, run one task or answer one question, end with the exit code.

The only module that reads the process's environment variables and writes to standard output.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from mlops_tasks import __version__, logs, pipeline, stage, summary
from mlops_tasks.config import Environment, load_environment
from mlops_tasks.errors import UserError, WmtpError
from mlops_tasks.machine import num_cores
from mlops_tasks.stage import Run
from mlops_tasks.store import Store

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
        command = commands.add_parser(name, parents=[common], help=text)
        command.add_argument("--spec", required=True, help="URI of the run's spec.json")
        command.add_argument("--task", required=True, help="id of the task")
        command.add_argument("--index", type=int, default=0, help="which of the mapped tasks")
        command.add_argument("--expect-key", help="end with an error that names the difference if the key is another")
        command.set_defaults(answer=_run_task, command=name)
    _add_plan(
        commands.add_parser(
            "plan", parents=[common], help="what a recipe would hit and run; with --spec: resolve it for a run"
        )
    )
    why = commands.add_parser("why", parents=[common], help="which part of a task's key changed since the last run")
    why.add_argument("task")
    _add_recipe(why)
    why.set_defaults(answer=_why)
    show = commands.add_parser("show", parents=[common], help="a run as a table, or an artifact with its lineage")
    show.add_argument("what", nargs="?", help="URI of an artifact or of a run's spec.json; default: the last run")
    show.set_defaults(answer=_show)
    check = commands.add_parser(
        "check-data", parents=[common], help="run every reference solution against its own tests"
    )
    check.add_argument("path", help="a file in MBPP's format")
    check.set_defaults(answer=_check_data)
    return parser


def _task_commands() -> dict[str, str]:
    commands: dict[str, str] = {}
    for task in pipeline.TASKS.values():
        name = _command_of(task)
        commands[name] = f"run one task of the {'stage' if isinstance(task.run, stage.Stage) else 'action'} {name}"
    return commands


def _command_of(task: stage.Task) -> str:
    return task.run.name if isinstance(task.run, stage.Stage) else task.id


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
    command.set_defaults(answer=_plan)


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
    if options.command != _command_of(task):
        raise UserError(f"The task {task.id} is run by `wmtp {_command_of(task)}`, not by `wmtp {options.command}`.")
    stage.execute(run, task, options.index, tasks=pipeline.TASKS, expect_key=options.expect_key)


def _plan(options: argparse.Namespace, environment: Environment, out: TextIO) -> None:
    if options.spec:
        pipeline.plan(
            environment,
            _prefix_of(options.spec, environment),
            recipe=options.recipe,
            overrides=options.overrides,
            force=options.force,
        )
        return
    spec = pipeline.resolve(environment, recipe=options.recipe, overrides=options.overrides, force=options.force)
    total = 0.0
    for one in pipeline.preview(environment, spec):
        total += one.seconds or 0.0
        took = "" if one.seconds is None else f"{one.seconds / 60:6.1f} min last time"
        out.write(f"{spec.label(one.task, one.index):<16}{one.outcome:<9}{took}\n")
    out.write(
        f"champion: {f'version {spec.champion.version}' if spec.champion else 'none yet; the base model is compared with'}\n"
    )
    out.write(f"expected: {total / 60:.1f} min where earlier runs tell\n")


def _why(options: argparse.Namespace, environment: Environment, out: TextIO) -> None:
    spec = pipeline.resolve(environment, recipe=options.recipe, overrides=options.overrides)
    out.writelines(f"{line}\n" for line in pipeline.why(environment, spec, options.task))


def _show(options: argparse.Namespace, environment: Environment, out: TextIO) -> None:
    what = options.what
    if what is None or what.endswith("/spec.json"):
        run = Run.open(environment, _prefix_of(what, environment)) if what else next(stage.runs(environment), None)
        if run is None:
            raise UserError(f"The store {environment.store} has no run yet. Start one with `make demo`.")
        out.writelines(f"{line}\n" for line in summary.of_run(run))
        return
    artifact = Store.of(environment).artifact_at(what.removesuffix("/manifest.json"))
    if artifact is None:
        raise UserError(f"{what} is no whole artifact. `wmtp show` without an argument tells of the last run.")
    out.writelines(f"{line}\n" for line in summary.of_artifact(artifact))


def _check_data(options: argparse.Namespace, environment: Environment, out: TextIO) -> int:
    from mlops_tasks.data.sources import read_mbpp
    from mlops_tasks.evaluation.judging import check_references

    problems = read_mbpp(Path(options.path))
    outcomes = check_references(problems, num_workers=environment.judge.num_workers)
    failed = [
        (problem, outcome) for problem, outcome in zip(problems, outcomes, strict=True) if outcome.verdict != "passed"
    ]
    out.writelines(f"{problem.id}: {outcome.verdict}: {outcome.message}\n" for problem, outcome in failed)
    out.write(f"{len(problems) - len(failed)} of {len(problems)} reference solutions pass their tests\n")
    return 65 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
