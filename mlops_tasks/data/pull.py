"""The stage `pull`: a snapshot of problems or of a model, exactly as pinned by `plan`.

Owns what a snapshot's files are called: `<split>.parquet` for each split (an absent one is an empty table) with `unsupported.json`
(problems that no program could be judged by, and why), or `model/` as `save_pretrained` writes it; and what a whole model is. Formats are read in `sources`, digests are `pins`', the hub is `hub`'s,
made-up problems are `generated`'s, what equals what is `contamination`'s, and a random model is built in `random_model`.

Licences are told in the metrics and not in a file, so that a word in a model's README.md makes nothing below anew.
"""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import TypeAdapter

from mlops_tasks.config.environment import S3Access
from mlops_tasks.config.sources import DataSource, FolderModel, GeneratedData, HubModel, ModelSource, RandomModel
from mlops_tasks.data.contamination import contaminated_pairs
from mlops_tasks.data.generated import LICENCE, generate_problems
from mlops_tasks.data.hub import commit_of, download
from mlops_tasks.data.pins import (
    MODEL_FILES,
    digest_of_files,
    digest_of_model,
    digest_of_remote_file,
    digest_of_remote_model,
    digest_of_source,
    model_files,
    remote_file,
    remote_model_files,
)
from mlops_tasks.data.problems import SPLITS, Problem, read_problems, write_problems
from mlops_tasks.data.remote import file_at, is_remote
from mlops_tasks.data.sources import Reading, read_source
from mlops_tasks.errors import DataError, UserError
from mlops_tasks.stage import Attempt
from mlops_tasks.store import Artifact

log = logging.getLogger(__name__)

_NUM_PAIRS_TOLD = 50
_CARD = "README.md"


def pull(attempt: Attempt) -> dict[str, Any]:
    """Write the snapshot, and count what is in it.

    Args:
        attempt: its config is `{"data": DataSource, "on_contamination": …}` or `{"model": ModelSource}`, and `pin`, the digest
            that the source had when the run was planned. Its input `data`, if any, is a snapshot that a model of these
            problems will score.

    Raises:
        UserError: a bad file, or something that a model needs is missing.
        DataError: contamination, or the source has changed since it was planned.
        Unavailable: S3 or the hub does not answer.
    """
    access = attempt.environment.s3
    pin: str | None = attempt.config.get("pin")
    if "data" in attempt.config:
        data: DataSource = TypeAdapter(DataSource).validate_python(attempt.config["data"])
        scored = _scored(attempt.inputs["data"]) if "data" in attempt.inputs else []
        return _snapshot(reading_of(data, access, pin=pin), attempt.config["on_contamination"], scored, attempt.folder)
    model: ModelSource = TypeAdapter(ModelSource).validate_python(attempt.config["model"])
    return _pull_model(model, pin, attempt.folder / "model", access)


def _scored(data: Artifact) -> list[Problem]:
    """All problems of the run's data but those that are shown in prompts."""
    return [
        problem for split in SPLITS if split != "prompt" for problem in read_problems(data.path(f"{split}.parquet"))
    ]


def reading_of(source: DataSource, access: S3Access, *, pin: str | None = None) -> Reading:
    """What a source holds, wherever it lies.

    Args:
        pin: the digest that it has to have; None: whatever is there now.

    Raises:
        UserError: no such file, or a bad one.
        DataError: the source has another digest.
        Unavailable: S3 does not answer.
    """
    if isinstance(source, GeneratedData):
        _require_pin(pin, digest_of_source(source), "the generated data")
        return Reading(tuple(generate_problems(source)))
    if is_remote(source.path):
        file = remote_file(source.path, access)
        _require_pin(pin, digest_of_remote_file(file), source.path)
        with tempfile.TemporaryDirectory() as folder:
            file.fetch(Path(folder, file.name))
            return read_source(source, Path(folder, file.name), name=source.path)
    reading = read_source(source, Path(source.path))
    # Only after reading: a file that is replaced between a check and its reading would be pinned as something else.
    _require_pin(pin, digest_of_source(source), source.path)
    return reading


def _snapshot(
    reading: Reading, on_contamination: Literal["refuse", "drop"], scored: Sequence[Problem], folder: Path
) -> dict[str, Any]:
    kept, dropped = _decontaminated(reading.problems, scored, on_contamination)
    for split in SPLITS:
        write_problems(folder / f"{split}.parquet", [problem for problem in kept if problem.split == split])
    counts = {f"num_{split}": sum(problem.split == split for problem in kept) for split in SPLITS}
    if reading.unsupported:
        reasons = {one.id: one.reason for one in reading.unsupported}
        (folder / "unsupported.json").write_text(
            json.dumps(reasons, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        log.warning(
            "%d of %d problems are unsupported and left out, the first is %s",
            len(reasons), len(reasons) + len(reading.problems), reading.unsupported[0],
        )  # fmt: skip
    return {
        **counts,
        "origins": _origins(kept),
        "num_unsupported": len(reading.unsupported),
        "num_dropped": len(reading.problems) - len(kept),
        "dropped": dropped,
    }


def _origins(problems: Sequence[Problem]) -> list[dict[str, Any]]:
    counted = Counter((problem.source, problem.licence) for problem in problems)
    return [
        {"source": source, "licence": licence, "num_problems": number}
        for (source, licence), number in sorted(counted.items())
    ]


def _require_pin(pin: str | None, found: str, where: str) -> None:
    if pin not in (None, found):
        raise DataError(
            f"{where} changed while the run was going on: its digest was {pin} when the run was planned and is {found} now. "
            "Start a new run; and put new data beside the old, under a name of its own."
        )


def _decontaminated(
    problems: Sequence[Problem], scored: Sequence[Problem], on_contamination: str
) -> tuple[list[Problem], list[str]]:
    """The problems that may be used, and one line for each pair that keeps a training problem out."""
    pairs = contaminated_pairs(problems, scored)
    equal = "evaluation problems, or problems that the reference will score" if scored else "evaluation problems"
    lines = [str(pair) for pair in pairs]
    if pairs and on_contamination == "refuse":
        shown = lines[:_NUM_PAIRS_TOLD] + [f"… and {len(lines) - _NUM_PAIRS_TOLD} more"] * (
            len(lines) > _NUM_PAIRS_TOLD
        )
        raise DataError(
            f"Training problems{' of the reference' if scored else ''} equal {equal}:\n  "
            + "\n  ".join(shown)
            + "\nTake them out of the file, or set "
            "data.on_contamination to 'drop', which leaves these training problems out."
        )
    dropped = {pair.train.id for pair in pairs}
    if dropped:
        log.info("%d training problems equal %s and are left out", len(dropped), equal)
    kept = [problem for problem in problems if problem.id not in dropped]
    if dropped and not any(problem.split == "train" for problem in kept):
        raise DataError(f"All {len(dropped)} training problems equal {equal}. Give other training problems.")
    return kept, lines


def _pull_model(source: ModelSource, pin: str | None, folder: Path, access: S3Access) -> dict[str, Any]:
    folder.mkdir()
    if isinstance(source, FolderModel):
        _fetch(source, pin, folder, access) if is_remote(source.path) else _copy(source, pin, folder)
    elif isinstance(source, HubModel):
        commit = pin or commit_of(source)
        download(source, commit, folder, (*MODEL_FILES, _CARD))
        _require_whole(folder, f"{source.repo} at commit {commit}")
    else:
        from mlops_tasks.data.random_model import build

        _require_pin(pin, digest_of_model(source), "the random model")
        build(source, folder)
    card = folder / _CARD  # not a part of the model
    licence = LICENCE if isinstance(source, RandomModel) else licence_in(card)
    card.unlink(missing_ok=True)
    files = [file.name for file in model_files(folder)]
    return {"files": files, "bytes": sum((folder / file).stat().st_size for file in files), "licence": licence}


def licence_in(card: Path) -> str | None:
    """What a model's README.md declares as its licence, in the front matter that the Hugging Face hub reads; None: nothing."""
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    if not text.startswith("---\n"):
        return None
    try:
        declared = yaml.safe_load(text.removeprefix("---\n").partition("\n---")[0])
    except yaml.YAMLError:
        return None
    licence = declared.get("license") if isinstance(declared, dict) else None
    return licence if isinstance(licence, str) else None


def _copy(source: FolderModel, pin: str | None, folder: Path) -> None:
    origin = Path(source.path)
    files = model_files(origin)
    _require_whole(origin, source.path)
    for file in files:
        shutil.copyfile(file, folder / file.name)
    if (origin / _CARD).is_file():
        shutil.copyfile(origin / _CARD, folder / _CARD)
    _require_pin(pin, digest_of_files(model_files(folder)), source.path)


def _fetch(source: FolderModel, pin: str | None, folder: Path, access: S3Access) -> None:
    files = remote_model_files(source.path, access)
    _require_pin(pin, digest_of_remote_model(files), source.path)
    for file in files:
        file.fetch(folder / file.name)
    if (card := file_at(f"{source.path.rstrip('/')}/{_CARD}", access)) is not None:
        card.fetch(folder / _CARD)
    _require_whole(folder, source.path)


def _require_whole(folder: Path, where: str) -> None:
    names = {file.name for file in folder.iterdir()}
    missing = [
        *(["config.json"] if "config.json" not in names else []),
        *_missing_weights(folder, names, where),
        *([] if names & {"tokenizer.json", "tokenizer.model", "vocab.json"} else ["a tokenizer (tokenizer.json)"]),
    ]
    if missing:
        raise UserError(
            f"{where} is no whole model: {' and '.join(missing)} missing; found {', '.join(sorted(names)) or 'no file'}. "
            "Write it with model.save_pretrained(folder) and tokenizer.save_pretrained(folder)."
        )
    if "model_type" not in _json_object(folder / "config.json", where):
        raise UserError(
            f"{where}/config.json has no model_type, so transformers cannot tell what it is. Export it again."
        )
    for file in folder.glob("model*.safetensors"):
        _require_safetensors(file, where)


def _missing_weights(folder: Path, names: set[str], where: str) -> list[str]:
    if "model.safetensors" in names:
        return []
    if "model.safetensors.index.json" in names:
        index = _json_object(folder / "model.safetensors.index.json", where)
        return sorted(set(index.get("weight_map", {"": "model.safetensors"}).values()) - names)
    pickled = sorted(name for name in names if name.endswith((".bin", ".pt", ".pth")))
    hint = (
        f", for {', '.join(pickled)} is a pickle, which runs code when it is opened, and is not read" if pickled else ""
    )
    return [f"model.safetensors (weights as safetensors{hint})"]


def _json_object(file: Path, where: str) -> dict[str, Any]:
    try:
        value = json.loads(file.read_bytes())
    except ValueError as error:
        raise UserError(f"{where}/{file.name} is no JSON: {error}. Export the model again.") from error
    if not isinstance(value, dict):
        raise UserError(
            f"{where}/{file.name} holds {type(value).__name__}; expected a JSON object. Export the model again."
        )
    return value


def _require_safetensors(file: Path, where: str) -> None:
    with file.open("rb") as stream:
        head = stream.read(9)
    # Eight bytes of header length, then the header, which is JSON.
    if len(head) < 9 or head[8:] != b"{" or int.from_bytes(head[:8], "little") + 8 > file.stat().st_size:
        kind = (
            "a git-LFS pointer: run `git lfs pull` there"
            if head.startswith(b"version ")
            else "cut off or another format"
        )
        raise UserError(f"{where}/{file.name} begins with {head!r} and is no safetensors file but {kind}.")
