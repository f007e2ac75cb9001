"""What pins a source: the digest by which `plan` names what lies at a path, on S3 or on a hub now.

Owns the digests and which files make a model. The scheduler plans too, so nothing heavy is imported here. The same bytes on disk and
on S3 have two digests; that costs one `pull`, whose own bytes are equal.
"""

from __future__ import annotations

import fnmatch
import hashlib
from pathlib import Path

from mlops_tasks.config.environment import S3Access
from mlops_tasks.config.sources import DataSource, FolderModel, GeneratedData, HubModel, ModelSource
from mlops_tasks.data import remote
from mlops_tasks.data.hub import commit_of
from mlops_tasks.errors import UserError
from mlops_tasks.store import canonical_json, sha256_of_file

MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "heads.safetensors",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "chat_template.jinja",
)
"""Globs of the files that are pulled. Weights as safetensors only: a pickle runs code when it is opened."""


def digest_of_source(source: DataSource, access: S3Access | None = None) -> str:
    """SHA-256 of the file, of what S3 says of the object, or of the settings of generated problems.

    Raises:
        UserError: there is no such file.
        Unavailable: S3 does not answer.
    """
    if isinstance(source, GeneratedData):
        return hashlib.sha256(canonical_json(source.model_dump(mode="json"))).hexdigest()
    if remote.is_remote(source.path):
        return digest_of_remote_file(remote_file(source.path, access))
    return sha256_of_file(existing_file(Path(source.path)))


def digest_of_model(source: ModelSource, access: S3Access | None = None) -> str:
    """SHA-256 over the names and contents of a folder's files, over their names and what S3 says of them, the commit on a hub, or
    SHA-256 of a random model's settings.

    Raises:
        UserError: no such folder, repository or revision.
        Unavailable: S3 or the hub does not answer.
    """
    if isinstance(source, FolderModel):
        if remote.is_remote(source.path):
            return digest_of_remote_model(remote_model_files(source.path, access))
        return digest_of_files(model_files(Path(source.path)))
    if isinstance(source, HubModel):
        return commit_of(source)
    return hashlib.sha256(canonical_json(source.model_dump(mode="json"))).hexdigest()


def digest_of_remote_file(file: remote.RemoteFile) -> str:
    """The pin of a data file on S3."""
    return remote.digest_of_objects([file], is_named=False)


def digest_of_remote_model(files: list[remote.RemoteFile]) -> str:
    """The pin of a model on S3."""
    return remote.digest_of_objects(files, is_named=True)


def digest_of_files(files: list[Path]) -> str:
    """SHA-256 over names and contents."""
    return hashlib.sha256(canonical_json([[file.name, sha256_of_file(file)] for file in files])).hexdigest()


def model_files(folder: Path) -> list[Path]:
    """The files of a folder that are pulled, sorted by name; whatever else lies there is not part of the model.

    Raises:
        UserError: there is no such folder.
    """
    if not folder.is_dir():
        raise _no_folder(folder)
    return sorted(
        (file for file in folder.iterdir() if file.is_file() and _is_of_model(file.name)),
        key=lambda file: file.name,
    )


def remote_model_files(uri: str, access: S3Access | None) -> list[remote.RemoteFile]:
    """The same for a prefix on S3.

    Raises:
        UserError: nothing of a model lies below it.
    """
    files = remote.files_in(uri, access, _is_of_model)
    if not files:
        raise _no_folder(uri)
    return files


def _is_of_model(name: str) -> bool:
    return any(fnmatch.fnmatchcase(name, glob) for glob in MODEL_FILES)


def _no_folder(folder: Path | str) -> UserError:
    return UserError(
        f"There is no model folder {folder}. Set the model's path to a folder that model.save_pretrained and "
        "tokenizer.save_pretrained wrote."
    )


def existing_file(path: Path) -> Path:
    """The same path, if a file is there.

    Raises:
        UserError: none is.
    """
    if not path.is_file():
        raise _no_file(path, [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else [])
    return path


def remote_file(uri: str, access: S3Access | None) -> remote.RemoteFile:
    """The object at a URI.

    Raises:
        UserError: none is.
    """
    file = remote.file_at(uri, access)
    if file is None:
        raise _no_file(uri, remote.names_beside(uri, access))
    return file


def _no_file(path: Path | str, names: list[str]) -> UserError:
    near = ", ".join(sorted(name for name in names if ".json" in name or name.endswith(".parquet")))
    return UserError(
        f"There is no data file {path}. Beside it: {near or 'no .jsonl or .json file'}. "
        "Set the source's path to the file (see docs/data.md)."
    )
