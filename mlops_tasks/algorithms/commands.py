"""`wmtp comparison`: algorithms side by side from a terminal, and what the DAG `wmtp_compare` calls.

Reads arguments and writes lines; what a comparison is stands in `algorithms`, what is said of it in `report.algorithms`.
"""

from __future__ import annotations

import argparse
from typing import TextIO

from mlops_tasks import algorithms
from mlops_tasks.algorithms import FILE, Cells
from mlops_tasks.config.environment import Environment
from mlops_tasks.errors import Unavailable, UserError
from mlops_tasks.store import Store


def add(command: argparse.ArgumentParser, common: argparse.ArgumentParser) -> None:
    """Add the subcommands to the parser of `wmtp comparison`."""
    commands = command.add_subparsers(required=True, metavar="COMMAND")
    plan = commands.add_parser(
        "plan", parents=[common], help="check a comparison file, and lay its cells out; runs none"
    )
    plan.add_argument("file", metavar="FILE", help="such as configs/comparisons/demo.yaml")
    _add_place(plan)
    plan.set_defaults(answer=_plan)
    run = commands.add_parser("run", parents=[common], help="make all cells, one after another; what is made is a hit")
    run.add_argument("file", metavar="FILE", help="such as configs/comparisons/demo.yaml")
    run.set_defaults(answer=_run)
    show = commands.add_parser("show", parents=[common], help="how far a comparison has come, or what it came to")
    _add_place(show)
    show.set_defaults(answer=_show)
    report = commands.add_parser("report", parents=[common], help="write the page of a comparison that is done")
    _add_place(report)
    report.set_defaults(answer=_report)


def _add_place(command: argparse.ArgumentParser) -> None:
    command.add_argument("--spec", metavar="URI", help=f"its {FILE} in the store (default: the newest one's)")


def _plan(options: argparse.Namespace, environment: Environment, out: TextIO) -> None:
    prefix = _prefix_of(options.spec, environment) if options.spec else None
    cells = algorithms.plan(environment, options.file, prefix)
    out.writelines(f"{cell.name}\n" for cell in cells.plan.cells)
    out.write(f"{cells.store.uri}/{cells.prefix}/{FILE}\n")


def _run(options: argparse.Namespace, environment: Environment, out: TextIO) -> None:
    cells = algorithms.plan(environment, options.file)
    for number, cell in enumerate(cells.plan.cells, start=1):
        out.write(f"{number} of {len(cells.plan.cells)}: {cell.name}\n")
        out.flush()
        algorithms.execute(cells, cell)
    _tell(cells, out)
    _write(cells, out)


def _show(options: argparse.Namespace, environment: Environment, out: TextIO) -> None:
    from mlops_tasks.report.algorithms import status

    cells = _found(options.spec, environment)
    out.write(f"{cells.name}\n\n")
    try:
        _tell(cells, out)
    except Unavailable:  # that a cell has not ended is what is asked
        out.writelines(f"{line}\n" for line in status(cells))


def _report(options: argparse.Namespace, environment: Environment, out: TextIO) -> None:
    _write(_found(options.spec, environment), out)


def _tell(cells: Cells, out: TextIO) -> None:
    from mlops_tasks.algorithms.findings import Findings
    from mlops_tasks.report.algorithms import in_words

    out.writelines(f"{line}\n" for line in in_words(Findings.of(cells)))


def _write(cells: Cells, out: TextIO) -> None:
    from mlops_tasks.report.algorithms import report

    out.write(f"page: {report(cells)['path']}\n")


def _found(spec: str | None, environment: Environment) -> Cells:
    if spec is not None:
        return Cells.open(environment, _prefix_of(spec, environment))
    newest = next(algorithms.planned(environment), None)
    if newest is None:
        raise UserError(
            f"The store {environment.store} has no comparison yet. Start one: wmtp comparison run configs/comparisons/demo.yaml"
        )
    return newest


def _prefix_of(spec: str, environment: Environment) -> str:
    store = Store.of(environment).uri
    if not (spec.startswith(f"{store}/runs/") and spec.endswith(f"/{FILE}")):
        raise UserError(
            f"--spec {spec} is not {store}/runs/…/{FILE}. It must lie in the store of the environment file."
        )
    return spec.removeprefix(f"{store}/").removesuffix(f"/{FILE}")
