"""The Hugging Face hub: which commit a revision is, and the files of a commit.

Owns what the hub's failures mean to us. Its client is imported only when it is used, since the scheduler pins models too.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from mlops_tasks.config.sources import HubModel
from mlops_tasks.errors import Unavailable, UserError


def commit_of(source: HubModel) -> str:
    """The commit that a revision stands for now; a whole commit hash is taken as it is, without asking.

    Raises:
        UserError: no such repository or revision, or it is not open to this user.
        Unavailable: the hub does not answer.
    """
    if re.fullmatch(r"[0-9a-f]{40}", source.revision):
        return source.revision
    from huggingface_hub import HfApi

    with _understood(source.repo, source.revision):
        commit = HfApi().model_info(source.repo, revision=source.revision, timeout=30).sha
    assert commit is not None, "model_info always names the commit"
    return commit


def download(source: HubModel, commit: str, folder: Path, files: Sequence[str]) -> None:
    """Fetch the files of a commit that match one of the globs; raises as `commit_of` does."""
    from huggingface_hub import snapshot_download

    with _understood(source.repo, commit):
        snapshot_download(source.repo, revision=commit, local_dir=folder, allow_patterns=list(files))
    shutil.rmtree(folder / ".cache", ignore_errors=True)  # the client's bookkeeping


@contextmanager
def _understood(repo: str, revision: str) -> Iterator[None]:
    import httpx2
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        yield
    except HFValidationError as error:
        raise UserError(f"{repo!r} cannot be the name of a model on the hub: {_first_line(error)}") from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise UserError(
            f"The hub has no model {repo!r} at revision {revision!r}, or it is not open to you ({_first_line(error)}). "
            "Check both names; a gated model needs its licence accepted and a token in HF_TOKEN."
        ) from error
    except (httpx2.HTTPError, OSError) as error:
        raise Unavailable(
            f"The hub did not give {repo} at {revision}: {_first_line(error)}. Try again later."
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].rstrip(".")
