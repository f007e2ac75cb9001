"""`wmtp registry`: what the registry holds on a terminal, and the moves that people make by hand.

Reads arguments and writes lines; what a move means is `registry.moves`'.
"""

from __future__ import annotations

import argparse
import getpass
import json
import socket
from collections.abc import Iterator, Sequence
from typing import Any, TextIO

from mlops_tasks import registry, tracking
from mlops_tasks.config.environment import Environment
from mlops_tasks.errors import DataError, UserError
from mlops_tasks.registry import Version, moves
from mlops_tasks.registry.moves import Action, Move, Order
from mlops_tasks.store import MANIFEST, Artifact, Store

_NUM_MOVES = 10
_COLUMNS = (
    "version", "aliases", "stage", "algorithm", "data", "spec", "code", "pass@1, 95% interval", "promoted", "rolled back", "archived",
)  # fmt: skip


def add(command: argparse.ArgumentParser, common: argparse.ArgumentParser) -> None:
    """Add the subcommands to the parser of `wmtp registry`."""
    commands = command.add_subparsers(required=True, metavar="COMMAND")
    listing = commands.add_parser("list", parents=[common], help="all versions, and what is known of them")
    listing.add_argument("name", nargs="?", metavar="NAME", help="a product line, with its last moves; default: all")
    listing.add_argument("--json", action="store_true", help="for a program: one list of versions with all their tags")
    listing.set_defaults(answer=_list)
    compare = commands.add_parser(
        "compare", parents=[common], help="versions by their logged metrics, and problem by problem with the first one"
    )
    compare.add_argument("name", metavar="NAME", help="the product line")
    compare.add_argument("versions", nargs="+", metavar="VERSION", help="two or more numbers or aliases")
    compare.add_argument(
        "--metric", action="append", default=[], metavar="START", help="only metrics that begin so; may be repeated"
    )
    compare.set_defaults(answer=_compare)
    promote = _add_move(commands, common, "promote", "make a version the champion, whatever the gate says")
    promote.add_argument("version", metavar="VERSION", help="number or alias")
    rollback = _add_move(commands, common, "rollback", "give production back what it loaded before")
    rollback.add_argument("--to", metavar="VERSION", dest="version", help="number or alias (default: previous)")
    archive = _add_move(commands, common, "archive", "put a version away; no alias may go there any more")
    archive.add_argument("version", metavar="VERSION", help="number or alias")


def _add_move(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser, action: Action, text: str
) -> argparse.ArgumentParser:  # fmt: skip
    command = commands.add_parser(action, parents=[common], help=text)
    command.add_argument("name", metavar="NAME", help="the product line")
    command.add_argument("--reason", required=True, help="why; kept with the version and in the log")
    command.add_argument("--by", help="who asks (default: user@host)")
    command.add_argument(
        "--once", action="store_true", help="do nothing if this order was ever carried out; --by tells it from others"
    )
    command.add_argument(
        "--json", action="store_true", help="for a program: the move, and where the version is, on one line"
    )
    command.set_defaults(answer=_move, action=action)
    return command


def _list(options: argparse.Namespace, environment: Environment, out: TextIO) -> None:
    _require_registry(environment)
    with tracking.connection(environment) as client:
        known = registry.names(client)
        if options.name and options.name not in known:
            raise UserError(f"The registry has no model {options.name!r}. It has {', '.join(known) or 'none yet'}.")
        found = {name: registry.versions(client, name) for name in ([options.name] if options.name else known)}
    if options.json:
        json.dump([_record(version) for versions in found.values() for version in versions], out, indent=1)
        out.write("\n")
        return
    for name, versions in found.items():
        out.writelines(f"{line}\n" for line in _listed(name, versions))
    if options.name:
        for move in moves.history(Store.of(environment), options.name)[:_NUM_MOVES]:
            out.write(f"{move.in_words}\n")


def _require_registry(environment: Environment) -> None:
    """To ask, or to mistype a path, must not make a database."""
    if tracking.is_empty(environment):
        raise UserError(
            f"{environment.mlflow_uri} does not exist yet, so nothing is registered there. Run the DAG once, or mend `mlflow_uri` in "
            "the environment file."
        )


def _listed(name: str, versions: Sequence[Version]) -> Iterator[str]:
    yield name
    yield from _aligned(_filled([_COLUMNS, *(_row(version) for version in versions)]))
    yield ""


def _record(version: Version) -> dict[str, Any]:
    return {
        "name": version.name, "version": version.number, "aliases": list(version.aliases), "stage": version.older_stage,
        "run_id": version.run_id, "tags": dict(version.tags),
    }  # fmt: skip


def _row(version: Version) -> tuple[str, ...]:
    tags = version.tags
    digests = (tags.get(name, "")[:12] for name in ("data_digest", "gate.spec"))
    score = version.pass_at_1
    return (
        version.number, ", ".join(version.aliases), version.older_stage, tags.get("algorithm", ""), *digests, tags.get("code_version", ""),
        f"{score[0]:.1%} ({score[1]:.1%} to {score[2]:.1%})" if score else "",
        version.who("promoted"), version.who_and_why("rolled_back"), version.who_and_why("archived"),
    )  # fmt: skip


def _compare(options: argparse.Namespace, environment: Environment, out: TextIO) -> None:
    if len(options.versions) < 2:
        raise UserError(f"compare was given {options.versions[0]} alone. Name a second version to compare it with.")
    _require_registry(environment)
    with tracking.connection(environment) as client:
        versions = [registry.version_named(client, options.name, wanted) for wanted in options.versions]
        found = [client.get_run(one.run_id).data.metrics if one.run_id else {} for one in versions]
    names = sorted({name for one in found for name in one if name.startswith(tuple(options.metric) or "")})
    rows = [(name, *(_number(one.get(name)) for one in found)) for name in names]
    out.writelines(f"{line}\n" for line in _aligned([("metric", *(version.number for version in versions)), *rows]))
    store, first = Store.of(environment), versions[0]
    for other in versions[1:]:
        out.writelines(f"{line}\n" for line in ("", *_problem_by_problem(store, other, first)))


def _problem_by_problem(store: Store, ours: Version, theirs: Version) -> Iterator[str]:
    """What two versions' stored outcomes say of them, or why nobody can tell."""
    from mlops_tasks.report.comparison import Compared, in_words

    names = (f"version {ours.number}", f"version {theirs.number}")
    try:
        a, b = (_outcomes(store, version) for version in (ours, theirs))
        yield from in_words(Compared.of(a, b, names=names))
    except DataError as error:
        yield f"{names[0]} and {names[1]} are not compared problem by problem. {error}"


def _outcomes(store: Store, version: Version) -> Artifact:
    if version.outcomes is None:
        raise DataError(
            f"Version {version.number} names no stored outcomes: promote did not register it, or did before it kept them."
        )
    found = version.outcomes.artifact(store)
    if found is None:
        raise DataError(
            f"{store.uri}/{version.outcomes.prefix}, the outcomes of version {version.number}, is not whole there any more."
        )
    return found


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


_MOVES = {"promote": moves.promote, "rollback": moves.rollback, "archive": moves.archive}


def _move(options: argparse.Namespace, environment: Environment, out: TextIO) -> None:
    order = Order(
        options.action,
        options.version,
        by=options.by or _user(),
        reason=" ".join(options.reason.split()),
        is_once=options.once,
    )
    _require_registry(environment)
    move = _MOVES[options.action](environment, options.name, order)
    out.write(f"{_moved(environment, options.name, move) if options.json else f'{options.name}: {move.in_words}'}\n")


def _moved(environment: Environment, name: str, move: Move) -> str:
    """A move, with what its version is now: another move may have come after one that is repeated."""
    with tracking.connection(environment) as client:
        version = registry.version_named(client, name, move.version)
    model = version.model
    manifest = f"{Store.of(environment).uri}/{model.prefix}/{MANIFEST}" if model else None
    found = {"name": name, "aliases": list(version.aliases), "manifest": manifest, "digest": model and model.digest}
    return json.dumps(move.model_dump(mode="json") | found)


def _user() -> str:
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (KeyError, OSError) as error:  # a pod's user has no name
        raise UserError(f"Nobody knows who asks for this ({error}). Say so with --by.") from error


def _filled(rows: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    """The rows without the columns that hold nothing but their head."""
    return list(zip(*(column for column in zip(*rows, strict=True) if any(column[1:])), strict=True))


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns as wide as they must be.

    >>> _aligned([("a", "b"), ("long", "1")])
    ['a     b', 'long  1']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
