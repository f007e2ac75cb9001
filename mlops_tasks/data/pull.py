"""The stage `pull`: a snapshot of problems or of a model, exactly as pinned by `plan`.

Owns what a snapshot's files are called: `<split>.parquet` for each split (an absent one is an empty table), or `model/` as
`save_pretrained` writes it. Formats are read in `sources`, made-up problems in `generated`.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from mlops_tasks.config import DataSource, FolderModel, GeneratedData, HubModel, ModelSource
from mlops_tasks.data.generated import generate_problems
from mlops_tasks.data.problems import SPLITS, Problem, write_problems
from mlops_tasks.data.sources import contaminated, digest_of_model, digest_of_source, read_mbpp
from mlops_tasks.errors import DataError, Unavailable, UserError
from mlops_tasks.stage import Attempt

log = logging.getLogger(__name__)

# Weights as safetensors only: a pickle runs code when it is opened.
_HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
_LOOSE_SUFFIXES = (".json", ".safetensors", ".model", ".txt", ".jinja")


def pull(attempt: Attempt) -> dict[str, Any]:
    """Write the snapshot and count what is in it.

    Raises:
        UserError: something that a snapshot needs is missing.
        DataError: a bad file, contamination, or a source that changed since it was pinned.
        Unavailable: the hub does not answer.
    """
    if "data" in attempt.config:
        source: Any = TypeAdapter(DataSource).validate_python(attempt.config["data"])
        _require_pin(attempt.config["pin"], digest_of_source(source), source)
        return _pull_problems(source, attempt.folder, attempt.config["on_contamination"])
    model: Any = TypeAdapter(ModelSource).validate_python(attempt.config["model"])
    if not isinstance(model, HubModel):  # a hub's pin is the commit that is asked for
        _require_pin(attempt.config["pin"], digest_of_model(model), model)
    return _pull_model(model, attempt.folder / "model")


def _require_pin(pin: str, found: str, source: Any) -> None:
    if pin != found:
        raise DataError(
            f"{getattr(source, 'path', source)} had SHA-256 {pin[:12]}… when the run was planned and has {found[:12]}… now. "
            "Trigger a new run, and write new data to a new file."
        )


def _pull_problems(source: DataSource, folder: Path, on_contamination: str) -> dict[str, Any]:
    problems = generate_problems(source) if isinstance(source, GeneratedData) else read_mbpp(Path(source.path))
    if not any(problem.split == "train" for problem in problems):
        raise DataError(
            f"{getattr(source, 'path', source)} has no problem of the split 'train'; there is nothing to learn from."
        )
    problems, dropped = _decontaminated(problems, on_contamination)
    for split in SPLITS:
        write_problems(folder / f"{split}.parquet", [problem for problem in problems if problem.split == split])
    counts = {f"num_{split}": sum(problem.split == split for problem in problems) for split in SPLITS}
    return {**counts, "dropped_for_contamination": dropped}


def _decontaminated(problems: Sequence[Problem], on_contamination: str) -> tuple[list[Problem], list[str]]:
    pairs = contaminated(problems)
    lines = [f"{trained.id} (train) and {held.id} ({held.split}) have the same {what}" for trained, held, what in pairs]
    if pairs and on_contamination == "refuse":
        raise DataError(
            "Training problems equal evaluation problems:\n  " + "\n  ".join(lines) + "\n"
            "Remove them from the file, or set data.on_contamination to drop, which leaves these training problems out."
        )
    dropped = sorted({trained.id for trained, _, _ in pairs}, key=int)
    if dropped:
        log.warning(
            "%d training problems equal evaluation problems and are left out: %s", len(dropped), "; ".join(lines)
        )
    return [problem for problem in problems if problem.id not in dropped], dropped


def _pull_model(source: ModelSource, folder: Path) -> dict[str, Any]:
    if isinstance(source, FolderModel):
        _copy(Path(source.path), folder)
    elif isinstance(source, HubModel):
        _download(source, folder)
    else:
        from mlops_tasks.data.random_model import build

        build(source, folder)
    _require_whole(folder, str(getattr(source, "path", None) or getattr(source, "repo", "the random model")))
    return {"bytes": sum(path.stat().st_size for path in folder.iterdir())}


def _copy(source: Path, folder: Path) -> None:
    folder.mkdir()
    for path in sorted(source.iterdir()):
        if path.is_file() and path.suffix in _LOOSE_SUFFIXES:
            shutil.copyfile(path, folder / path.name)


def _download(source: HubModel, folder: Path) -> None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        cached = snapshot_download(source.repo, revision=source.revision, allow_patterns=_HUB_FILES)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise Unavailable(
            f"The hub did not give {source.repo} at commit {source.revision}: {error}. Try again later."
        ) from error
    _copy(Path(cached), folder)


def _require_whole(folder: Path, source: str) -> None:
    names = {path.name for path in folder.iterdir()}
    wanted = {
        "config.json": {"config.json"},
        "weights (*.safetensors)": {name for name in names if name.endswith(".safetensors")},
        "a tokenizer (tokenizer.json or tokenizer.model)": {"tokenizer.json", "tokenizer.model", "vocab.json"},
    }
    missing = [what for what, any_of in wanted.items() if not names & any_of]
    if missing:
        raise UserError(
            f"{source} is no whole model: {' and '.join(missing)} missing; found {', '.join(sorted(names)) or 'no file'}. "
            "Write it with model.save_pretrained and tokenizer.save_pretrained."
        )
