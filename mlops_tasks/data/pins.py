"""What pins a source: the digest by which `plan` names what lies at a path or on a hub now.

Owns the digests and which files make a model. The scheduler plans too, so nothing heavy is imported here.
"""

from __future__ import annotations

import hashlib
from fnmatch import fnmatchcase
from pathlib import Path

from mlops_tasks.config import DataSource, FolderModel, HubModel, MbppData, ModelSource
from mlops_tasks.data.hub import commit_of
from mlops_tasks.errors import UserError
from mlops_tasks.store import canonical_json, sha256_of_file

MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "chat_template.jinja",
)
"""Globs of the files that are pulled. Weights as safetensors only: a pickle runs code when it is opened."""


def digest_of_source(source: DataSource) -> str:
    """SHA-256 of the file, or of the settings of generated problems.

    Raises:
        UserError: there is no such file.
    """
    if isinstance(source, MbppData):
        return sha256_of_file(existing_file(Path(source.path)))
    return hashlib.sha256(canonical_json(source.model_dump(mode="json"))).hexdigest()


def digest_of_model(source: ModelSource) -> str:
    """SHA-256 over the names and contents of a folder's files, the commit on a hub, or SHA-256 of a random model's settings.

    Raises:
        UserError: no such folder, repository or revision.
        Unavailable: the hub does not answer.
    """
    if isinstance(source, FolderModel):
        return digest_of_files(model_files(Path(source.path)))
    if isinstance(source, HubModel):
        return commit_of(source)
    return hashlib.sha256(canonical_json(source.model_dump(mode="json"))).hexdigest()


def digest_of_files(files: list[Path]) -> str:
    """SHA-256 over names and contents."""
    return hashlib.sha256(canonical_json([[file.name, sha256_of_file(file)] for file in files])).hexdigest()


def model_files(folder: Path) -> list[Path]:
    """The files of a folder that are pulled, sorted by name; whatever else lies there is not part of the model.

    Raises:
        UserError: there is no such folder.
    """
    if not folder.is_dir():
        raise UserError(
            f"There is no model folder {folder}. Set the model's path to a folder that model.save_pretrained and "
            "tokenizer.save_pretrained wrote."
        )
    return sorted(
        (
            file
            for file in folder.iterdir()
            if file.is_file() and any(fnmatchcase(file.name, glob) for glob in MODEL_FILES)
        ),
        key=lambda file: file.name,
    )


def existing_file(path: Path) -> Path:
    """The same path, if a file is there.

    Raises:
        UserError: none is.
    """
    if not path.is_file():
        near = sorted(other.name for other in path.parent.glob("*.json*")) if path.parent.is_dir() else []
        raise UserError(
            f"There is no data file {path}. Beside it: {', '.join(near) or 'no .jsonl or .json file'}. "
            "Set the source's path to the file (see docs/data.md)."
        )
    return path
