"""What MLflow is told of a training: one key, one run, and the final model once.

Curves go there while the training runs, as well as they can: never at its cost, and never a checkpoint. `complete` adds
whatever is missing afterwards, from the artifact, which is safe in the store before MLflow is asked anything. Versions and
aliases are left to `registry`. Only these two modules talk to MLflow, and they import it inside functions: that costs
seconds, and more where a local database has to be opened.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import re
import shutil
import socket
import tempfile
import threading
import time
import urllib.request
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from mlops_tasks.config.environment import Environment
from mlops_tasks.config.recipe import Recipe
from mlops_tasks.errors import Interrupted, Unavailable, UserError, WmtpError
from mlops_tasks.store import Artifact, Store

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel, Run
    from mlflow.tracking import MlflowClient

log = logging.getLogger(__name__)

KEY_TAG = "stage_key"
STORE_TAG = "store"
"""Tag of a run: URI of the store that its training lies in."""
KIND_TAG = "kind"
"""Tag of a run: `train`, or what else has a key."""
_COMPARISON_TAG = "comparison"
_CONNECT_SECONDS = 5.0
_BATCH_SECONDS = 2.0
_RETRY_SECONDS = 30.0
_FLUSH_SECONDS = 10.0
_MAX_QUEUED_LINES = 1000
_MAX_METRICS_PER_CALL = 1000  # MLflow refuses more
_MAX_PARAMS_PER_CALL = 100
_MAX_TAG = 5000  # characters
_UNFINISHED = ".mlflow-"
_STALE_SECONDS = 3600.0
_TEMPORARY = frozenset(
    {"TEMPORARILY_UNAVAILABLE", "INTERNAL_ERROR", "REQUEST_LIMIT_EXCEEDED", "DEADLINE_EXCEEDED", "UNAVAILABLE"}
)
_FORBIDDEN = frozenset({"PERMISSION_DENIED", "UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED"})
# Set before mlflow is imported, and only where the user has not: no word to its makers, no bars in a pod's log, and an
# answer within seconds when a server is down (its own seven retries take four minutes).
_MLFLOW_DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}

Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]


def experiment_name(recipe: Recipe) -> str:
    """Where the runs of a recipe are filed: `wmtp/{algorithm}/{dataset}`."""
    return f"wmtp/{recipe.scoring.scorer}/{recipe.name}"


@contextmanager
def connection(environment: Environment) -> Iterator[MlflowClient]:
    """A client of the tracking server and its registry; all that MLflow raises inside becomes ours.

    Raises:
        Unavailable: the server cannot be reached, or says that it cannot now.
        UserError: the server does not let us in.
        WmtpError: whatever else it refuses.
    """
    for name, value in _MLFLOW_DEFAULTS.items():
        os.environ.setdefault(name, value)
    uri = environment.mlflow_uri
    _require_reachable(uri)
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    try:
        yield MlflowClient(uri, uri)
    except MlflowException as error:
        if error.error_code in _TEMPORARY:
            raise Unavailable(
                f"MLflow at {uri} cannot now: {error}. Start it or wait, then run this task again."
            ) from error
        if error.error_code in _FORBIDDEN:
            raise UserError(
                f"MLflow at {uri} refuses us: {error}. Set MLFLOW_TRACKING_USERNAME and _PASSWORD, or _TOKEN."
            ) from error
        raise WmtpError(f"MLflow at {uri}: {error.error_code}: {error}") from error


def _require_reachable(uri: str) -> None:
    """Fail in seconds, not after MLflow's own time-outs; and make a local database that is not there yet."""
    parts = urlsplit(uri)
    if parts.scheme == "sqlite":
        _make_database(_database(uri))
        return
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    if parts.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(host):
        return  # only the proxy knows the way
    try:
        socket.create_connection((host, port), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        raise Unavailable(
            f"MLflow at {uri} does not answer ({error}). Start it, or mend `mlflow_uri` in the environment file."
        ) from error


def _make_database(path: Path) -> None:
    """Make a local database that is not there yet, whole or not at all: MLflow cannot go on with one whose making was broken off."""
    if path.exists():
        return
    from mlflow.tracking import MlflowClient

    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f"{_UNFINISHED}*"):  # by a process that was killed
        if time.time() - left.stat().st_mtime > _STALE_SECONDS:
            shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=_UNFINISHED, dir=path.parent) as folder:
        whole = Path(folder) / path.name
        MlflowClient(f"sqlite:///{whole}", f"sqlite:///{whole}").search_experiments()
        try:
            os.link(whole, path)
        except FileExistsError:
            log.info("another process has made %s", path)
        except OSError:  # no hard links there
            os.rename(whole, path)


def _database(uri: str) -> Path:
    return Path(uri.removeprefix("sqlite:///"))


def is_empty(environment: Environment) -> bool:
    """True if MLflow is a local database that does not exist yet: nothing is registered, and mlflow need not be imported."""
    return environment.mlflow_uri.startswith("sqlite:///") and not _database(environment.mlflow_uri).exists()


# Runs


def find_run(client: MlflowClient, environment: Environment, stage_key: str) -> Run | None:
    """The run of a training, whatever recipe asked for it first; the oldest, should two have been made at one time.

    Another store's training of the same key has a run of its own. One from before runs named their store is anybody's.
    """
    experiments = client.search_experiments(filter_string="name LIKE 'wmtp/%'")
    if not experiments:
        return None
    found = client.search_runs([one.experiment_id for one in experiments], f"tags.{KEY_TAG} = '{stage_key}'")
    for store in (Store.of(environment).uri, None):
        if ours := [run for run in found if run.data.tags.get(STORE_TAG) == store]:
            return min(ours, key=lambda run: (run.info.start_time, run.info.run_id))
    return None


def find_or_create_run(
    client: MlflowClient,
    environment: Environment,
    *,
    stage_key: str,
    experiment: str,
    kind: str = "train",
    tags: Mapping[str, str] = MappingProxyType({}),
) -> Run:
    """The one run of a key in a store. MLflow has no unique tags: of two that are made at one time the older stays.

    Args:
        client: from `connection`.
        environment: names the tracking server and the store.
        stage_key: the key.
        experiment: used if there is no run yet.
        kind: what it is a run of; its name begins with that.
        tags: further ones of a run that is made.
    """
    identity = {KEY_TAG: stage_key, STORE_TAG: Store.of(environment).uri, KIND_TAG: kind.partition("-")[0]}
    if (found := find_run(client, environment, stage_key)) is not None:
        for name in identity.keys() - found.data.tags.keys():
            client.set_tag(found.info.run_id, name, identity[name])
        return found
    experiment_id = _experiment_id(client, environment, experiment)
    made = client.create_run(experiment_id, tags={**tags, **identity}, run_name=f"{kind}-{stage_key[:12]}")
    first = find_run(client, environment, stage_key) or made
    if first.info.run_id != made.info.run_id:
        client.delete_run(made.info.run_id)
    return first


def _experiment_id(client: MlflowClient, environment: Environment, name: str) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return client.create_experiment(name, artifact_location=_artifact_location(environment, name))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(name)  # another process was first
    assert found is not None
    if found.lifecycle_stage == "deleted":
        raise UserError(
            f"The experiment {name} at {environment.mlflow_uri} is deleted. "
            f"Restore it (`mlflow experiments restore -x {found.experiment_id}`), or give the recipe another name."
        )
    return str(found.experiment_id)


def _artifact_location(environment: Environment, experiment: str) -> str | None:
    """A folder beside a local database, which has no choice of its own but the working directory; None: the server's."""
    if not environment.mlflow_uri.startswith("sqlite:///"):
        return None
    root = environment.mlflow_artifacts or _database(environment.mlflow_uri).parent / "mlflow-artifacts"
    return (Path(root).absolute() / experiment).as_uri()


def log_params(client: MlflowClient, run: Run, params: Mapping[str, Any]) -> None:
    """Log what the run does not have yet; nested settings by dotted names. (MLflow's params never change.)"""
    from mlflow.entities import Param

    missing = [Param(name, value) for name, value in _dotted(params) if name not in run.data.params]
    for part in _parts(missing, _MAX_PARAMS_PER_CALL):
        client.log_batch(run.info.run_id, params=part)


def _dotted(value: Mapping[str, Any], place: str = "") -> Iterator[tuple[str, str]]:
    for name, child in value.items():
        if isinstance(child, Mapping):
            yield from _dotted(child, f"{place}{name}.")
        else:
            yield f"{place}{name}", child if isinstance(child, str) else json.dumps(child)


def scalars(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a metrics dict; those in lists and dicts get names of their own, and `step` is not one.

    >>> scalars({"step": 3, "loss": 2, "head_nats": [0.5, 0.7], "stopped": True, "learning_rate": None})
    {'loss': 2.0, 'head_nats/1': 0.5, 'head_nats/2': 0.7}
    """
    found: dict[str, float] = {}
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            found |= {f"{name}/{part}": number for part, number in scalars(value).items()}
        elif isinstance(value, list | tuple):
            found |= scalars({f"{name}/{position}": part for position, part in enumerate(value, start=1)})
        elif isinstance(value, int | float) and not isinstance(value, bool) and name != "step":
            found[name] = float(value)
    return found


def _parts(values: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(values), size):
        yield values[start : start + size]


# Curves


@dataclass(frozen=True)
class _Line:
    step: int
    metrics: dict[str, float]
    milliseconds: int


class _Points:
    """The points of one run: adds those that are not there, so that a resumed training draws nothing twice."""

    def __init__(self, client: MlflowClient, run: Run) -> None:
        self.run_id = run.info.run_id
        self._present = {
            (name, point.step) for name in run.data.metrics for point in client.get_metric_history(self.run_id, name)
        }

    def add(self, client: MlflowClient, lines: Iterable[_Line]) -> None:
        from mlflow.entities import Metric

        new = {
            (name, line.step): Metric(name, value, line.milliseconds, line.step)
            for line in lines
            for name, value in line.metrics.items()
            if (name, line.step) not in self._present
        }
        for part in _parts(list(new.values()), _MAX_METRICS_PER_CALL):
            client.log_batch(self.run_id, metrics=part)
        self._present |= new.keys()


class CurveLogger:
    """Sends a training's curves to MLflow from a thread of its own. Nothing here can stop or slow the training."""

    def __init__(self, environment: Environment, *, stage_key: str, experiment: str, params: Mapping[str, Any]) -> None:
        self._environment = environment
        self._stage_key = stage_key
        self._experiment = experiment
        self._params = params
        self._lines: queue.Queue[_Line] = queue.Queue(_MAX_QUEUED_LINES)
        self._is_closing = threading.Event()
        self._status: Status = "FINISHED"
        self._points: _Points | None = None
        self._has_warned = False
        self._thread = threading.Thread(target=self._work, name="curves", daemon=True)
        self._thread.start()

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Hand over the numbers of one step (see `scalars`); when the queue is full they are left to `complete`."""
        try:
            self._lines.put_nowait(_Line(step, scalars(metrics), _now()))
        except queue.Full:
            self._warn("the queue of curve points is full")

    def close(self, status: Status) -> None:
        """Send what is left, for some seconds at most."""
        self._status = status
        self._is_closing.set()
        self._thread.join(_FLUSH_SECONDS)

    def _work(self) -> None:
        is_last = False
        while True:
            try:
                self._send(is_last)
            except WmtpError as error:
                self._warn(str(error))
                if is_last or self._is_closing.wait(_RETRY_SECONDS):
                    return
            if is_last:
                return
            is_last = self._is_closing.wait(_BATCH_SECONDS)

    def _send(self, is_last: bool) -> None:
        with connection(self._environment) as client:
            if self._points is None:
                run = find_or_create_run(
                    client, self._environment, stage_key=self._stage_key, experiment=self._experiment
                )
                log_params(client, run, self._params)
                client.update_run(run.info.run_id, status="RUNNING")
                self._points = _Points(client, run)
            self._points.add(client, [self._lines.get_nowait() for _ in range(self._lines.qsize())])
            if is_last:
                client.set_terminated(self._points.run_id, self._status)

    def _warn(self, reason: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            log.warning(
                "curves do not reach MLflow now (%s); the training goes on, and `promote` adds what is missing", reason
            )


@contextmanager
def curve_logger(
    environment: Environment, *, stage_key: str, experiment: str, params: Mapping[str, Any]
) -> Iterator[CurveLogger]:
    """A logger whose run is the one of `stage_key`: a resumed training continues it.

    Args:
        environment: names the tracking server.
        stage_key: key of the training.
        experiment: see `experiment_name`; used if there is no run yet.
        params: the training's part of the spec.
    """
    logger = CurveLogger(environment, stage_key=stage_key, experiment=experiment, params=params)
    status: Status = "FAILED"
    try:
        yield logger
        status = "FINISHED"
    except (Interrupted, KeyboardInterrupt):
        status = "KILLED"
        raise
    finally:
        logger.close(status)


def _now() -> int:
    return time.time_ns() // 1_000_000


# The end of a training


@dataclass(frozen=True)
class Logged:
    """Where a training lies in MLflow."""

    experiment_id: str
    run_id: str
    model_id: str
    model_uri: str
    """Artifact location of the model."""


def complete(
    client: MlflowClient, environment: Environment, *, train: Artifact, experiment: str,
    metrics: Mapping[str, float], tags: Mapping[str, str], prompt: str,
) -> Logged:  # fmt: skip
    """Log all that a training's run does not have yet: params, curves, final metrics, and the final model once.

    Args:
        client: from `connection`.
        environment: names the tracking server.
        train: artifact of the training.
        experiment: used if there is no run yet.
        metrics: what was measured afterwards; logged at the last step.
        tags: facts to find the run by; replaced if they are there.
        prompt: the model's input example.
    """
    from mlflow.entities import RunTag

    run = find_or_create_run(client, environment, stage_key=train.manifest["key"], experiment=experiment)
    log_params(client, run, train.manifest["components"]["config"])
    client.log_batch(run.info.run_id, tags=[RunTag(name, value) for name, value in tags.items()])
    points = _Points(client, run)
    points.add(client, _curve(train.path("curves.jsonl")))
    final = {f"final/{name}": value for name, value in (scalars(train.metrics) | dict(metrics)).items()}
    _set_metrics(client, run, final, step=int(train.metrics["steps"]))
    model = _final_model(client, run, train, prompt)
    client.set_terminated(run.info.run_id, "FINISHED")
    return Logged(run.info.experiment_id, run.info.run_id, model.model_id, model.artifact_location)


def log_card(client: MlflowClient, logged: Logged, text: str) -> None:
    """Put a card beside a model's weights, in place of one that is there: another night may have evaluated the same model anew."""
    with tempfile.TemporaryDirectory() as scratch:
        card = Path(scratch) / "README.md"
        card.write_text(text, encoding="utf-8")
        client.log_model_artifact(logged.model_id, str(card), "artifacts/model")


def _set_metrics(client: MlflowClient, run: Run, metrics: Mapping[str, float], *, step: int) -> None:
    """Log what is new or has changed since: a later recipe may evaluate the same training differently."""
    from mlflow.entities import Metric

    changed = {name: value for name, value in metrics.items() if run.data.metrics.get(name) != value}
    client.log_batch(run.info.run_id, metrics=[Metric(name, value, _now(), step) for name, value in changed.items()])


def _curve(path: Path) -> list[_Line]:
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [_Line(line["step"], scalars(line), _now()) for line in lines]


def _final_model(client: MlflowClient, run: Run, train: Artifact, prompt: str) -> LoggedModel:
    """The model of this training: found, or made; one whose upload was broken off is filled again under the same id."""
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus

    tags = {KEY_TAG: train.manifest["key"], "digest": train.digest}
    which = " AND ".join(f"tags.{name} = '{value}'" for name, value in tags.items())
    found = client.search_logged_models([run.info.experiment_id], filter_string=which)
    model = found[0] if found else client.create_logged_model(run.info.experiment_id, "model", run.info.run_id, tags)
    if model.status != LoggedModelStatus.READY:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "model"
            _save_completer(folder, model_id=model.model_id, run_id=run.info.run_id, train=train, prompt=prompt)
            client.log_model_artifacts(model.model_id, str(folder))
        client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    linked = {output.model_id for output in run.outputs.model_outputs} if run.outputs else set()
    if model.model_id not in linked:
        client.log_outputs(run.info.run_id, [LoggedModelOutput(model.model_id, int(train.metrics["steps"]))])
    return model


def _save_completer(folder: Path, *, model_id: str, run_id: str, train: Artifact, prompt: str) -> None:
    """Write a pyfunc that anyone can load: the weights, and `completer.py` beside them as it is, so that this package is not needed."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*Any type hint is inferred")  # about classes of its own
        import mlflow.pyfunc
    from mlflow.models import Model

    from mlops_tasks.completer import SIGNATURE
    from mlops_tasks.data.prompts import is_chat
    from mlops_tasks.model import HEADS_FILE

    artifacts = {"model": str(train.folder("model"))}
    if HEADS_FILE in train.names:
        artifacts["heads"] = str(train.path(HEADS_FILE))
    mlflow.pyfunc.save_model(
        folder,
        mlflow_model=Model(model_id=model_id, run_id=run_id),
        python_model=str(Path(__file__).with_name("completer.py")),
        artifacts=artifacts,
        signature=SIGNATURE,
        input_example=[{"prompt": prompt}],
        model_config={"is_chat": is_chat(train.manifest["components"]["config"]["text"]["prompt"])},
        pip_requirements=[
            f"{name}=={_version(name)}"
            for name in ("mlflow", "torch", "transformers", "tokenizers", "safetensors", "pandas")
        ],
    )


def _version(distribution: str) -> str:
    return metadata.version(distribution).partition("+")[0]


# Studies


def study_run(client: MlflowClient, environment: Environment, *, study_key: str, experiment: str) -> Run:
    """The run of a study, below which its trials are."""
    return find_or_create_run(client, environment, stage_key=study_key, experiment=experiment, kind="study")


def log_trial(
    environment: Environment, *, study_key: str, experiment: str, slot: int, params: Mapping[str, Any], curve: Mapping[int, float],
    metrics: Mapping[str, float], tags: Mapping[str, str], status: Status,
) -> None:  # fmt: skip
    """Log what a trial's run, below that of its study, does not have yet.

    Args:
        study_key: of the study.
        slot: the trial's number in the study; one slot, one run.
        params: what it changes, by dotted name.
        curve: validation losses by step.
        metrics: what it came to.
        tags: replaced if they are there.

    Raises:
        WmtpError: see `connection`.
    """
    from mlflow.entities import RunTag

    with connection(environment) as client:
        parent = study_run(client, environment, study_key=study_key, experiment=experiment)
        run = find_or_create_run(
            client,
            environment,
            stage_key=f"{study_key}.{slot}",
            experiment=experiment,
            kind=f"slot-{slot}",
            tags={"mlflow.parentRunId": parent.info.run_id, "slot": str(slot)},
        )
        log_params(client, run, params)
        client.log_batch(run.info.run_id, tags=[RunTag(name, value[:_MAX_TAG]) for name, value in tags.items()])
        lines = [_Line(step, {"validation_nats": nats}, _now()) for step, nats in sorted(curve.items())]
        _Points(client, run).add(client, lines)
        _set_metrics(client, run, metrics, step=max(curve, default=0))
        if status == "RUNNING":
            client.update_run(run.info.run_id, status=status)
        else:
            client.set_terminated(run.info.run_id, status)


def finished_slots(environment: Environment, *, study_key: str, experiment: str) -> set[int]:
    """Slots of a study whose runs have ended.

    Raises:
        WmtpError: see `connection`.
    """
    with connection(environment) as client:
        parent = study_run(client, environment, study_key=study_key, experiment=experiment)
        below = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}' and attributes.status = 'FINISHED'"
        return {int(one.data.tags["slot"]) for one in client.search_runs([parent.info.experiment_id], below)}


def log_study(
    environment: Environment, *, study_key: str, experiment: str, metrics: Mapping[str, float], tags: Mapping[str, str], texts: Mapping[str, str],
) -> dict[str, str]:  # fmt: skip
    """Log what a study came to, and end its run.

    Args:
        texts: files beside it, by name.

    Returns:
        Ids of its run and of its experiment.

    Raises:
        WmtpError: see `connection`.
    """
    from mlflow.entities import RunTag

    with connection(environment) as client:
        run = study_run(client, environment, study_key=study_key, experiment=experiment)
        client.log_batch(run.info.run_id, tags=[RunTag(name, value[:_MAX_TAG]) for name, value in tags.items()])
        _set_metrics(client, run, metrics, step=0)
        for name, text in texts.items():
            client.log_text(run.info.run_id, text, name)
        client.set_terminated(run.info.run_id, "FINISHED")
        return {"experiment_id": run.info.experiment_id, "run_id": run.info.run_id}


def log_report(environment: Environment, *, stage_key: str, experiment: str, page: str, name: str) -> dict[str, str]:
    """Put a report beside the run that it is about; several DAG runs may have reports on one training.

    Returns:
        Ids of that run and of its experiment.

    Raises:
        WmtpError: see `connection`.
    """
    with connection(environment) as client:
        run = find_or_create_run(client, environment, stage_key=stage_key, experiment=experiment)
        client.log_text(run.info.run_id, page, f"reports/{re.sub(r'[^A-Za-z0-9._-]+', '-', name)}/report.html")
        return {"experiment_id": run.info.experiment_id, "run_id": run.info.run_id}


# Comparisons of algorithms


@dataclass(frozen=True)
class LoggedCell:
    """One algorithm with one seed, as MLflow shows it."""

    name: str
    params: Mapping[str, Any]
    metrics: Mapping[str, float]
    curve: Sequence[tuple[int, float]]
    """Validation loss by step."""
    train_key: str
    """Key of its training, whose own run has the rest."""


def log_comparison(
    environment: Environment, *, comparison: str, name: str, cells: Sequence[LoggedCell], metrics: Mapping[str, float], verdict: str, page: str
) -> dict[str, str]:  # fmt: skip
    """Log a comparison as one run with a nested one for each cell; what is there already is not logged twice.

    Args:
        comparison: tells it from all others; one comparison, one parent run.
        name: files it under `wmtp/comparison/{name}`.
        metrics: of the comparison as a whole.

    Returns:
        Ids of the parent run and of its experiment.

    Raises:
        WmtpError: see `connection`.
    """
    with connection(environment) as client:
        experiment = _experiment_id(client, environment, f"wmtp/comparison/{name}")
        parent = _comparison_run(client, experiment, {_COMPARISON_TAG: comparison}, run_name=comparison)
        client.log_text(parent.info.run_id, page, "report.html")
        client.set_tag(parent.info.run_id, "mlflow.note.content", verdict)
        _set_metrics(client, parent, metrics, step=0)
        for cell in cells:
            tags = {
                _COMPARISON_TAG: f"{comparison}/{cell.name}",
                "mlflow.parentRunId": parent.info.run_id,
                "train_key": cell.train_key,
            }
            run = _comparison_run(client, experiment, tags, run_name=cell.name)
            log_params(client, run, cell.params)
            _Points(client, run).add(
                client, [_Line(step, {"validation_nats": nats}, _now()) for step, nats in cell.curve]
            )
            _set_metrics(client, run, cell.metrics, step=max((step for step, _ in cell.curve), default=0))
            client.set_terminated(run.info.run_id, "FINISHED")
        client.set_terminated(parent.info.run_id, "FINISHED")
        return {"experiment_id": experiment, "run_id": parent.info.run_id}


def _comparison_run(client: MlflowClient, experiment: str, tags: Mapping[str, str], *, run_name: str) -> Run:
    found = client.search_runs([experiment], f"tags.{_COMPARISON_TAG} = '{tags[_COMPARISON_TAG]}'")
    return found[0] if found else client.create_run(experiment, tags=dict(tags), run_name=run_name)
