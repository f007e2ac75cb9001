"""Moving the aliases of a product line: by one process at a time, only from where it was decided, and never by half.

Every move is told in a log that only grows. Its entry is there before the first alias moves and says at last how it ended, so that
whoever comes next knows of one that was broken off: if the champion had moved the rest is done, and if not it is undone.

    registry/<name>/lease.json   who moves an alias now
    registry/<name>/000001.json  one move: which version, over which champion, by whom, when, why

MLflow moves an alias without asking where it was. The lease keeps the processes of one store apart, and the log has one entry of each
number; only a process that slept for longer than the lease holds, between its last look and its write, could still overwrite another's.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal
from urllib.parse import quote

from mlops_tasks import lease, registry, tracking
from mlops_tasks.config.environment import Environment, LeaseTerms
from mlops_tasks.config.settings import Settings
from mlops_tasks.errors import Unavailable, UserError
from mlops_tasks.registry import BY_HAND, PROMOTED_BY, Version
from mlops_tasks.store import Store

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

log = logging.getLogger(__name__)

Action = Literal["promote", "rollback", "archive"]

PLACE = "registry"
"""Folder of the logs in a store; no stage is called so."""

# A move takes seconds. Whoever waits must wait for longer than the lease of a machine that died is held.
_TERMS = LeaseTerms(ttl_seconds=20, wait_seconds=60)


@dataclass(frozen=True)
class Order:
    """What somebody wants done, and why."""

    action: Action
    wanted: str | None
    """Number or alias of the version; None, of a rollback: `previous`, unless that one was taken back itself."""
    by: str
    """A person, or the prefix of a run."""
    reason: str
    is_once: bool = False
    """`by` is never used for another order: what it stands for is not done a second time, whatever moved since."""

    def __post_init__(self) -> None:
        for name, value in (("reason", self.reason), ("name of whoever asks", self.by)):
            if not value.strip():
                raise UserError(f"The {name} of a {self.action} is {value!r}. Give one: it is kept with the version.")


class Move(Settings):
    """One entry of the log."""

    action: Action
    wanted: str | None
    """What was asked for: a number, an alias, or None."""
    version: str
    """Whose alias, or tag, is set."""
    over: str | None
    """The champion when it was decided; None: there was none."""
    previous: str | None
    """Who had the alias `previous` then."""
    by: str
    reason: str
    at: str
    """When it began, UTC."""
    outcome: Literal["begun", "done", "undone"] = "begun"

    @property
    def in_words(self) -> str:
        """One line."""
        what = f"{self.action} version {self.version}" + (f" over version {self.over}" if self.over else "")
        ended = "" if self.outcome == "done" else f", {self.outcome}"
        return f"{self.at[:16].replace('T', ' ')} {what} by {self.by.removeprefix('runs/')}: {self.reason}{ended}"


def history(store: Store, name: str) -> list[Move]:
    """All moves of a product line, the newest first."""
    found = store.read_jsons([f"{_place(name)}/{entry}" for entry in _entries(store, name)])
    return [Move.model_validate(tree) for tree in reversed(found) if tree is not None]


def promote(environment: Environment, name: str, order: Order) -> Move:
    """Make a version the champion on somebody's word.

    Args:
        environment: its registry, and its store.
        name: the product line.
        order: what is asked, by whom and why.

    Raises:
        UserError: the champion is another one by now, or the version may not be champion.
        Unavailable: another process is at it, or the registry cannot be reached.
    """
    with tracking.connection(environment) as client:
        seen = registry.aliases(client, name)
        with moving(client, environment, name, by=order.by) as line:
            # Who asks for an alias means the version that has it now, and not when its turn comes.
            number = seen.get(str(order.wanted), str(order.wanted))
            return line.repeated(order) or line.move(order, number, over=seen.get("champion"))


def rollback(environment: Environment, name: str, order: Order) -> Move:
    """Give production back what it loaded before, or another version.

    Args:
        environment: its registry, and its store.
        name: the product line.
        order: what is asked, by whom and why.

    Raises:
        UserError: as `promote`; or nobody knows where to go back to.
        Unavailable: another process is at it, or the registry cannot be reached.
    """
    with tracking.connection(environment) as client:
        seen = registry.aliases(client, name)
        over = seen.get("champion")
        with moving(client, environment, name, by=order.by) as line:
            # What `previous` is can be told only now: a rollback that was broken off may have moved it.
            if (done := line.repeated(order)) is not None:
                return done
            goes_back = order.wanted in (None, "previous")
            number = line.version_to_return(over) if goes_back else seen.get(str(order.wanted), str(order.wanted))
            return line.move(order, number, over=over)


def archive(environment: Environment, name: str, order: Order) -> Move:
    """Put a version away: it stays in the registry, and no alias may go there.

    Raises:
        UserError: an alias is there, or it is archived already.
        Unavailable: another process is at it, or the registry cannot be reached.
    """
    with tracking.connection(environment) as client, moving(client, environment, name, by=order.by) as line:
        return line.repeated(order) or line.archive(order)


@contextmanager
def moving(client: MlflowClient, environment: Environment, name: str, *, by: str) -> Iterator[Line]:
    """A product line whose aliases this process alone moves; what another one broke off is settled first.

    Args:
        client: from `tracking.connection`.
        environment: its store, which has the lease and the log.
        name: the product line.
        by: told to those who wait.

    Raises:
        Unavailable: another process is at it for longer than this one waits.
    """
    store = Store.of(environment)
    with lease.held(store, _place(name), terms=_TERMS, run=by.removeprefix("runs/"), is_done=lambda: False) as mine:
        assert mine is not None
        line = Line(client, store, name, mine.token)
        line.settle()
        yield line


class Line:
    """A product line under the lease."""

    def __init__(self, client: MlflowClient, store: Store, name: str, token: int) -> None:
        self._client, self._store, self._name, self._token = client, store, name, token

    def settle(self) -> None:
        """End what was broken off: the champion has moved and the rest follows, or it has not and all is as before."""
        if (last := self._last()) is None or last.outcome != "begun":
            return
        has_moved = last.action == "archive" or _champion(self._client, self._name) == last.version
        (self._finish if has_moved else self._undo)(last)
        log.warning(
            "%s: broken off, and %s now: %s", self._name, "brought to its end" if has_moved else "undone", last.in_words
        )

    def repeated(self, order: Order) -> Move | None:
        """The move that was this very order, which is then done already: the last one, or any if it is done once only."""
        asked = (order.action, order.wanted, order.by, order.reason)
        done = [move for move in history(self._store, self._name) if move.outcome == "done"]
        same = [move for move in done if (move.action, move.wanted, move.by, move.reason) == asked]
        if order.is_once or not same or same[0] != done[0]:
            return same[0] if order.is_once and same else None
        last = same[0]
        version = registry.version_named(self._client, self._name, last.version)
        is_so = version.is_archived if last.action == "archive" else "champion" in version.aliases
        return last if is_so else None

    def move(self, order: Order, number: str, *, over: str | None) -> Move:
        """Make a version the champion, if the champion is still the one that the decision was about."""
        self._require_champion(over)
        version = registry.version_named(self._client, self._name, number)
        if over == version.number:
            raise UserError(
                f"Version {over} of {self._name} is the champion already, promoted {version.who_and_why('promoted') or BY_HAND}. Nothing was moved."
            )
        self._require_loadable(version)
        return self._carry_out(order, version.number, over)

    def archive(self, order: Order) -> Move:
        """Put a version away that nobody loads by a name."""
        version = registry.version_named(self._client, self._name, str(order.wanted))
        if version.aliases:
            raise UserError(
                f"Version {version.number} of {self._name} has the alias {', '.join(version.aliases)}, so somebody may load it. Move the alias "
                "first (`wmtp registry promote` or `rollback`, or in MLflow), then archive."
            )
        if version.is_archived:
            raise UserError(
                f"Version {version.number} of {self._name} was archived {version.who_and_why('archived')}. Nothing was changed."
            )
        return self._carry_out(order, version.number, None)

    def version_to_return(self, over: str | None) -> str:
        """Whom a rollback makes champion that names nobody."""
        self._require_champion(over)
        number = self._holder("previous")
        if number is None or number == over:
            raise UserError(
                f"{self._name} has {'no alias `previous`' if number is None else f'version {over} both as champion and as previous'}, so nobody knows what "
                f"to go back to. Name a version with --to; `wmtp registry list {self._name}` shows them."
            )
        version = registry.version_named(self._client, self._name, number)
        if version.is_taken_back:
            raise UserError(
                f"The previous version {number} of {self._name} was rolled back itself, {version.who_and_why('rolled_back')}. Name a version with "
                f"--to; `wmtp registry list {self._name}` shows them."
            )
        return number

    def offer(self, number: str) -> None:
        """Make a version that was refused the candidate."""
        self._set_alias("candidate", number)

    def withdraw(self, number: str) -> None:
        """Take the alias `candidate` from a version that has it."""
        if self._holder("candidate") == number:
            self._set_alias("candidate", None)

    def _require_champion(self, expected: str | None) -> None:
        now = _champion(self._client, self._name)
        if now == expected:
            return
        last = self._last()
        why = f" ({last.in_words})" if last and last.outcome == "done" and last.version == now else ""
        raise UserError(
            f"{self._name} had {_in_words(expected)} as its champion when this was decided, and has {_in_words(now)} now{why}. Nothing was moved. "
            f"Look at `wmtp registry list {self._name}` and decide again."
        )

    def _require_loadable(self, version: Version) -> None:
        what = f"Version {version.number} of {self._name}"
        others = f"Choose another version; `wmtp registry list {self._name}` shows them."
        if version.is_archived:
            raise UserError(
                f"{what} was archived {version.who_and_why('archived')}. {others} If it is to return after all, delete its tag `archived_at` in MLflow."
            )
        if version.model is None:
            raise UserError(f"{what} was not registered by promote, so nobody knows where its artifact is. {others}")
        if version.model.artifact(self._store) is None:
            raise UserError(
                f"{what} is {self._store.uri}/{version.model.prefix}, which is not whole there any more, and the nights to come are compared with it. "
                f"Restore it there, or: {others[0].lower()}{others[1:]}"
            )

    def _carry_out(self, order: Order, number: str, over: str | None) -> Move:
        now = datetime.now(UTC).isoformat(timespec="microseconds")
        begun = Move(
            action=order.action, wanted=order.wanted, version=number, over=over, previous=self._holder("previous"),
            by=order.by, reason=order.reason, at=now,
        )  # fmt: skip
        name = f"{_place(self._name)}/{len(_entries(self._store, self._name)) + 1:06}.json"
        if not self._store.backend.create(name, _bytes(begun)):
            raise self._overtaken(name)
        self._finish(begun)
        done = begun.model_copy(update={"outcome": "done"})
        log.info("%s: %s", self._name, done.in_words)
        return done

    def _finish(self, move: Move) -> None:
        """Do whatever of it is not done yet."""
        if move.action == "archive":
            self._tag(move.version, "archived", move)
        else:
            self._crown(move)
        self._end(move, "done")

    def _crown(self, move: Move) -> None:
        if move.over is not None:
            # Whoever was champion by hand is known for one, and does not return by night.
            by = self._client.get_model_version(self._name, move.over).tags.get(PROMOTED_BY, BY_HAND)
            registry.set_tags(self._client, self._name, move.over, {PROMOTED_BY: by})
            self._set_alias("previous", move.over)
        self._set_alias("champion", move.version)
        # After `champion`: a kill between the two must not leave tags of what did not happen.
        self._tag(move.version, "promoted", move)
        if move.action == "rollback" and move.over is not None:
            self._tag(move.over, "rolled_back", move)
        self.withdraw(move.version)

    def _undo(self, move: Move) -> None:
        if move.over is not None and self._holder("previous") == move.over:
            self._set_alias("previous", move.previous)
        self._end(move, "undone")

    def _tag(self, number: str, what: str, move: Move) -> None:
        lease.require(self._store, _place(self._name), self._token)
        tags = {f"{what}_by": move.by, f"{what}_at": move.at, f"{what}_reason": move.reason}
        registry.set_tags(self._client, self._name, number, tags)

    def _set_alias(self, alias: str, number: str | None) -> None:
        lease.require(self._store, _place(self._name), self._token)
        if number is None:
            self._client.delete_registered_model_alias(self._name, alias)
        else:
            self._client.set_registered_model_alias(self._name, alias, number)

    def _holder(self, alias: str) -> str | None:
        return registry.aliases(self._client, self._name).get(alias)

    def _end(self, move: Move, outcome: Literal["done", "undone"]) -> None:
        name = f"{_place(self._name)}/{_entries(self._store, self._name)[-1]}"
        ended = move.model_copy(update={"outcome": outcome})
        if not self._store.backend.swap(name, _bytes(ended), over=_bytes(move)):
            raise self._overtaken(name)

    def _last(self) -> Move | None:
        entries = _entries(self._store, self._name)
        tree = self._store.read_json(f"{_place(self._name)}/{entries[-1]}") if entries else None
        return None if tree is None else Move.model_validate(tree)

    def _overtaken(self, name: str) -> Unavailable:
        return Unavailable(
            f"{self._store.uri}/{name} was written by another process: this one was out of touch for too long. Look at "
            f"`wmtp registry list {self._name}`, then do it again."
        )


def _champion(client: MlflowClient, name: str) -> str | None:
    return registry.aliases(client, name).get("champion")


def _place(name: str) -> str:
    return f"{PLACE}/{quote(name, safe='')}"


def _entries(store: Store, name: str) -> list[str]:
    return [entry for entry in store.children(_place(name)) if entry != "lease.json"]


def _bytes(move: Move) -> bytes:
    return json.dumps(move.model_dump(mode="json"), indent=1, sort_keys=True).encode()


def _in_words(number: str | None) -> str:
    return f"version {number}" if number else "no version"
