"""The registered models: which versions a product line has, what is known of each, and which of them production loads.

Owns what a version's tags mean, looks versions up and registers them. Who may move an alias, and how, is said in
`registry.moves`; what a night's candidate has to show for it in `registry.promotion`; what a training's run holds is
`tracking`'s.

    champion    what production loads
    previous    what it loaded before
    candidate   the newest version that the gate refused
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlops_tasks import tracking
from mlops_tasks.config.environment import Environment
from mlops_tasks.errors import UserError
from mlops_tasks.stage import Champion, artifact_prefix
from mlops_tasks.store import Artifact, Store

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

log = logging.getLogger(__name__)

PROMOTED_BY = "promoted_by"
"""The tag of every version that is or was champion."""
BY_HAND = "by hand"
"""Its value where somebody moved the alias in MLflow itself."""

_OUTCOMES_TAG, _OUTCOMES_DIGEST_TAG = "outcomes", "gate.candidate_outcomes"
_OLDER_STAGES = (("champion", "Production"), ("candidate", "Staging"))


@dataclass(frozen=True)
class Reference:
    """An artifact, as `Store.version_at` finds it."""

    prefix: str
    digest: str

    def artifact(self, store: Store) -> Artifact | None:
        """The artifact; None if it is not whole in the store any more."""
        return store.version_at(self.prefix, self.digest)


@dataclass(frozen=True)
class Version:
    """One version of a product line, with all that is known of it."""

    name: str
    """The product line."""
    number: str
    run_id: str
    """Of the training's run in MLflow; empty: it has none."""
    aliases: tuple[str, ...]
    tags: Mapping[str, str]

    @property
    def model(self) -> Reference | None:
        """The artifact of `train`; None: it was not registered by `promote`, so nobody knows where that is."""
        if not {tracking.KEY_TAG, "digest"} <= self.tags.keys():
            return None
        return Reference(artifact_prefix("train", self.tags[tracking.KEY_TAG]), self.tags["digest"])

    @property
    def outcomes(self) -> Reference | None:
        """The judged programs that its evidence rests on; None: none are named."""
        if not {_OUTCOMES_TAG, _OUTCOMES_DIGEST_TAG} <= self.tags.keys():
            return None
        return Reference(self.tags[_OUTCOMES_TAG], self.tags[_OUTCOMES_DIGEST_TAG])

    @property
    def is_archived(self) -> bool:
        """Whether somebody put it away: no alias may go there."""
        return "archived_at" in self.tags

    @property
    def is_taken_back(self) -> bool:
        """Whether somebody rolled it back since it was last promoted."""
        return self.tags.get("rolled_back_at", "") > self.tags.get("promoted_at", "")

    @property
    def older_stage(self) -> str:
        """What MLflow would have called it while versions had stages: None, Staging, Production or Archived."""
        aliased = (stage for alias, stage in _OLDER_STAGES if alias in self.aliases)
        return next(aliased, "Archived" if self.is_archived else "None")

    @property
    def pass_at_1(self) -> tuple[float, float, float] | None:
        """Mean pass@1 on the gate set when it was judged last, with its 95 % interval; None: it never was."""
        if not {"gate.candidate", "gate.num_problems"} <= self.tags.keys():
            return None
        from mlops_tasks.evaluation.metrics import wilson_interval

        share = float(self.tags["gate.candidate"])
        return share, *wilson_interval(share, int(self.tags["gate.num_problems"]))

    def who(self, what: str) -> str:
        """Who did something with it, and when, where `what` is promoted, rolled_back or archived; empty: nobody."""
        by, at = (self.tags.get(f"{what}_{part}") for part in ("by", "at"))
        told = (at and at[:16].replace("T", " "), by and f"by {by.removeprefix('runs/')}")
        return " ".join(part for part in told if part)

    def who_and_why(self, what: str) -> str:
        """As `who`, with the reason."""
        reason = self.tags.get(f"{what}_reason")
        return self.who(what) + (f" ({reason})" if reason else "")


def names(client: MlflowClient) -> list[str]:
    """All product lines."""
    found: list[str] = []
    token: str | None = None
    while token != "":
        page = client.search_registered_models(page_token=token)
        found += [model.name for model in page]
        token = page.token or ""
    return found


def aliases(client: MlflowClient, name: str) -> dict[str, str]:
    """Number of the version behind each alias of a product line; of one that does not exist, none."""
    from mlflow.exceptions import MlflowException

    try:
        return {alias: str(number) for alias, number in client.get_registered_model(name).aliases.items()}
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return {}
        raise


def versions(client: MlflowClient, name: str) -> list[Version]:
    """All versions of a product line, the newest first."""
    by_alias = aliases(client, name)
    found: list[Version] = []
    token: str | None = None
    while token != "":
        page = client.search_model_versions(f"name = '{name}'", page_token=token)
        for one in page:
            number = str(one.version)
            held = tuple(alias for alias, holder in sorted(by_alias.items()) if holder == number)
            found.append(Version(name, number, one.run_id or "", held, dict(one.tags)))
        token = page.token or ""
    return sorted(found, key=lambda version: int(version.number), reverse=True)


def version_named(client: MlflowClient, name: str, wanted: str) -> Version:
    """A version by its number or by an alias.

    Raises:
        UserError: there is none.
    """
    there = versions(client, name)
    for version in there:
        if wanted == version.number or wanted in version.aliases:
            return version
    if not there:
        raise UserError(
            f"There is no version of {name!r} in the registry. It has {', '.join(names(client)) or 'no model yet'}."
        )
    known = [*sorted(aliases(client, name)), *(version.number for version in there)]
    raise UserError(f"{name} has no version or alias {wanted!r}. It has {', '.join(known)}.")


def champion(environment: Environment, name: str) -> Champion | None:
    """The version of a product line that carries the alias `champion`, or None.

    Raises:
        Unavailable: the registry cannot be reached.
        UserError: the version was not registered by `promote`, so nobody knows where its artifact is.
    """
    if tracking.is_empty(environment):
        return None
    with tracking.connection(environment) as client:
        return champion_of(client, name)


def champion_of(client: MlflowClient, name: str) -> Champion | None:
    """As `champion`, over a connection that is there."""
    number = aliases(client, name).get("champion")
    if number is None:
        return None
    tags = client.get_model_version(name, number).tags
    if tracking.KEY_TAG not in tags or "digest" not in tags:
        raise UserError(
            f"Version {number} of {name} is the champion but has no tags `{tracking.KEY_TAG}` and `digest`: it was not registered by promote. "
            "Move the alias `champion` to a version that was, or delete the alias to start from the base model."
        )
    return Champion(name=name, version=number, key=tags[tracking.KEY_TAG], digest=tags["digest"])


def aliased(environment: Environment) -> list[Version]:
    """Every version of every product line that carries an alias, of ours or of somebody's own.

    Raises:
        Unavailable: the registry cannot be reached.
    """
    if tracking.is_empty(environment):
        return []
    with tracking.connection(environment) as client:
        return [version for name in names(client) for version in versions(client, name) if version.aliases]


def find(client: MlflowClient, name: str, train: Artifact) -> Version | None:
    """The version of a trained model; the oldest, should two have been made at one time."""
    which = " AND ".join([f"name = '{name}'", *(f"tags.{tag} = '{value}'" for tag, value in _identity(train).items())])
    found = min((str(one.version) for one in client.search_model_versions(which)), key=int, default=None)
    return None if found is None else version_named(client, name, found)


def register(
    client: MlflowClient, name: str, *, train: Artifact, logged: tracking.Logged, outcomes: Artifact, tags: Mapping[str, str]
) -> str:  # fmt: skip
    """The number of a trained model's version, found or made, with its evidence.

    Args:
        client: from `tracking.connection`.
        name: the product line.
        train: artifact of the training.
        logged: where the training lies in MLflow.
        outcomes: artifact of `judge` on which the evidence rests.
        tags: the evidence, and facts to find the version by; replaced if they are there.
    """
    tags = {**tags, **_identity(train), _OUTCOMES_TAG: outcomes.prefix, _OUTCOMES_DIGEST_TAG: outcomes.digest}
    if (version := find(client, name, train)) is not None:
        set_tags(client, name, version.number, tags)
        return version.number
    _create_registered_model(client, name)
    made = client.create_model_version(
        name, source=logged.model_uri, run_id=logged.run_id, model_id=logged.model_id, tags=tags
    )
    log.info("registered version %s of %s from %s", made.version, name, train.uri)
    return str(made.version)


def _identity(train: Artifact) -> dict[str, str]:
    return {tracking.KEY_TAG: train.manifest["key"], "digest": train.digest}


def describe(client: MlflowClient, name: str, number: str, text: str) -> None:
    """Set what MLflow's page of a version says of it, in Markdown, if it says something else."""
    if client.get_model_version(name, number).description != text:
        client.update_model_version(name, number, description=text)


def set_tags(client: MlflowClient, name: str, number: str, tags: Mapping[str, str]) -> None:
    """Set those that differ: one call each is all that MLflow has."""
    present = client.get_model_version(name, number).tags
    for tag, value in tags.items():
        if present.get(tag) != value:
            client.set_model_version_tag(name, number, tag, value)


def _create_registered_model(client: MlflowClient, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
