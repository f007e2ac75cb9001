"""What others publish, read with care: MBPP's two formats, and one's own problems in them; and what pins a source.

Owns the splits, the errors of bad files, and the digests by which `plan` pins data and models. Made-up problems are
`generated`'s; what is done with what was read is `pull`'s. Nothing heavy is imported: the scheduler pins sources too.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlops_tasks.config import DataSource, FolderModel, HubModel, MbppData, ModelSource, Split
from mlops_tasks.errors import DataError, Unavailable, UserError
from mlops_tasks.store import canonical_json, sha256_of_file

if TYPE_CHECKING:
    from mlops_tasks.data.problems import Problem

MAX_RECORD_BYTES = 10_000_000
"""A longer line is no problem but another kind of file."""

# Google's splits, by the first and last task id.
_OFFICIAL_SPLITS: tuple[tuple[int, int, Split], ...] = (
    (1, 10, "prompt"),
    (11, 510, "test"),
    (511, 600, "validation"),
    (601, 974, "train"),
)
_REQUIRED = {"code": str, "test_list": list, "task_id": int}
_OPTIONAL = {
    "test_setup_code": str,
    "test_imports": list,
    "challenge_test_list": list,
    "split": str,
    "source_file": str,
}
_LICENCE = "CC-BY-4.0"


def digest_of_source(source: DataSource) -> str:
    """What pins the data: SHA-256 of the file, or of the settings of made-up problems.

    Raises:
        UserError: there is no such file.
    """
    if isinstance(source, MbppData):
        return sha256_of_file(_existing_file(Path(source.path)))
    return hashlib.sha256(canonical_json(source.model_dump(mode="json"))).hexdigest()


def digest_of_model(source: ModelSource) -> str:
    """What pins a model: SHA-256 over a folder's names and contents, a hub's commit, or SHA-256 of a random model's settings.

    Raises:
        UserError: no such folder, repository or revision.
        Unavailable: the hub does not answer.
    """
    if isinstance(source, FolderModel):
        return _digest_of_folder(Path(source.path))
    if isinstance(source, HubModel):
        return _commit_on_hub(source)
    return hashlib.sha256(canonical_json(source.model_dump(mode="json"))).hexdigest()


def _digest_of_folder(folder: Path) -> str:
    if not folder.is_dir():
        raise UserError(
            f"There is no model folder {folder}. Set model.source.path to a folder written by save_pretrained."
        )
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    listed = [[path.relative_to(folder).as_posix(), sha256_of_file(path)] for path in files]
    return hashlib.sha256(canonical_json(listed)).hexdigest()


def _commit_on_hub(source: HubModel) -> str:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        commit = HfApi().model_info(source.repo, revision=source.revision).sha
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise UserError(
            f"The hub has no {source.repo} at revision {source.revision}, or it is not open to you: {error}. "
            "Check model.source, or set HF_TOKEN for a gated model."
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise Unavailable(
            f"The hub did not say what {source.repo} at {source.revision} is: {error}. Try again later."
        ) from error
    assert commit is not None
    return commit


def read_mbpp(path: Path) -> list[Problem]:
    """Read problems in MBPP's format: JSON lines, or one JSON list (the sanitized edition).

    Raises:
        UserError: there is no such file.
        DataError: with file, line (or number in the list), field, what was found and what was expected.
    """
    problems: list[Problem] = []
    seen: dict[str, str] = {}
    for where, record in _records(_existing_file(path)):
        problem = _problem(record, where, source=path.stem)
        if problem.id in seen:
            raise DataError(
                f"{where}: task_id {problem.id} is the id of {seen[problem.id]} already. Give each problem its own."
            )
        seen[problem.id] = where
        problems.append(problem)
    if not problems:
        raise DataError(f"{path} is empty; expected one problem a line. Fetch the file again.")
    return problems


def _existing_file(path: Path) -> Path:
    if not path.is_file():
        raise UserError(
            f"There is no data file {path}. Set data.source.path to the .jsonl or .json file (see docs/data.md)."
        )
    return path


def _records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each record with where it stands."""
    _refuse_other_kinds(path)
    if path.suffix == ".json":
        yield from _records_of_list(path)
        return
    with path.open("rb") as stream:
        for number in range(1, 10**9):
            line = stream.readline(MAX_RECORD_BYTES + 1)
            if not line:
                return
            where = f"{path}, line {number}"
            if len(line) > MAX_RECORD_BYTES:
                raise DataError(
                    f"{where} is longer than {MAX_RECORD_BYTES:,} bytes; expected one problem a line. Is it another kind of file?"
                )
            if line.strip():
                yield where, _record(_json(_text(line, where), where), where)


def _records_of_list(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    data = path.read_bytes()
    tree = _json(_text(data, str(path)), str(path)) if data.strip() else []
    if not isinstance(tree, list):
        raise DataError(
            f"{path} holds {_kind(tree)}; expected a list of problems (a .json file), or one problem a line (.jsonl)."
        )
    for number, record in enumerate(tree, start=1):
        where = f"{path}, problem {number}"
        yield where, _record(record, where)


def _refuse_other_kinds(path: Path) -> None:
    with path.open("rb") as stream:
        head = stream.read(512).lstrip().lower()
    if head.startswith((b"<!doctype", b"<html")):
        raise DataError(
            f"{path} is an HTML page, not data: the download answered with an error page. Fetch the file itself."
        )
    if head.startswith(b"version https://git-lfs"):
        raise DataError(f"{path} is a git-LFS pointer, not data. Run `git lfs pull` where it came from.")


def _text(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where} is not UTF-8: byte {error.start} is 0x{data[error.start]:02x}. Save the file as UTF-8."
        ) from error


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{where} is not JSON: {error.msg} at character {error.pos}, near {text[max(0, error.pos - 20) :][:40]!r}. Mend or remove it."
        ) from error


def _record(tree: Any, where: str) -> dict[str, Any]:
    if not isinstance(tree, dict):
        raise DataError(
            f"{where} holds {_kind(tree)}; expected an object with {', '.join(_REQUIRED)} and text (or prompt)."
        )
    return tree


def _problem(record: dict[str, Any], where: str, *, source: str) -> Problem:
    from mlops_tasks.data.problems import Problem

    prompt = "prompt" if "prompt" in record and "text" not in record else "text"
    for name, kind in {prompt: str, **_REQUIRED}.items():
        if name not in record:
            raise DataError(f"{where}: field {name} is missing; found {', '.join(record) or 'nothing'}. Add it.")
        _require_type(record[name], kind, name, where)
    for name, kind in _OPTIONAL.items():
        if name in record:
            _require_type(record[name], kind, name, where)
    tests = _lines_of(record["test_list"], "test_list", where)
    solution = _unix(record["code"])
    setup = "\n".join(
        [*_lines_of(record.get("test_imports", []), "test_imports", where), _unix(record.get("test_setup_code", ""))]
    ).strip("\n")
    for name in (prompt, "code"):
        if not record[name].strip():
            raise DataError(f"{where}: field {name} is blank. Write it, or remove the problem.")
    if not tests:
        raise DataError(
            f"{where}: field test_list is empty; expected at least one assert. Without one nothing can be judged."
        )
    return Problem(
        id=str(record["task_id"]),
        prompt=_unix(record[prompt]).strip(),
        solution=solution,
        tests=tests,
        setup=setup,
        entry_point=_entry_point(solution, tests, where),
        split=_split(record, where),
        source=source,
        licence=_LICENCE if "split" not in record else "unknown",
    )


def _require_type(value: Any, kind: type, name: str, where: str) -> None:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise DataError(f"{where}: field {name} is {_kind(value)} ({str(value)[:60]!r}); expected {_KINDS[kind]}.")


_KINDS: dict[type, str] = {
    str: "a string",
    list: "a list",
    int: "a whole number",
    dict: "an object",
    bool: "true or false",
    float: "a number",
    type(None): "null",
}


def _kind(value: Any) -> str:
    return _KINDS.get(type(value), type(value).__name__)


def _lines_of(values: Sequence[Any], name: str, where: str) -> tuple[str, ...]:
    for value in values:
        _require_type(value, str, f"{name}[…]", where)
    return tuple(_unix(value).strip() for value in values)


def _unix(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _split(record: dict[str, Any], where: str) -> Split:
    if "split" in record:
        known = [split for _, _, split in _OFFICIAL_SPLITS]
        chosen = next((split for split in known if split == record["split"]), None)
        if chosen is None:
            raise DataError(f"{where}: field split is {record['split']!r}; expected one of {', '.join(known)}.")
        return chosen
    task = record["task_id"]
    for first, last, split in _OFFICIAL_SPLITS:
        if first <= task <= last:
            return split
    raise DataError(
        f"{where}: task_id {task} is not in MBPP's splits (1 to 974). Add a field split to problems of your own."
    )


def _entry_point(solution: str, tests: Sequence[str], where: str) -> str:
    """The first thing that the solution defines and the tests name."""
    defined = _defined_names(solution, where)
    for number, test in enumerate(tests):
        try:
            tree = ast.parse(test)
        except SyntaxError as error:
            raise DataError(
                f"{where}: test_list[{number}] does not parse: {error.msg} in {test[:60]!r}. Mend it."
            ) from error
        for node in ast.walk(tree):
            if isinstance(node, ast.Name) and node.id in defined:
                return node.id
    raise DataError(
        f"{where}: no test calls anything that the code defines ({', '.join(sorted(defined)) or 'nothing'}). Mend test_list or code."
    )


def _defined_names(solution: str, where: str) -> set[str]:
    try:
        tree = ast.parse(solution)
    except (SyntaxError, ValueError) as error:
        raise DataError(
            f"{where}: field code does not parse as Python: {error}. Mend it, or remove the problem."
        ) from error
    names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}
    return names | {
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


# Contamination: a training problem that equals an evaluation problem in what it asks or in how it is solved.


def contaminated(problems: Sequence[Problem]) -> list[tuple[Problem, Problem, str]]:
    """Pairs of a training problem and a held-out one that are equal, with `text` or `code` as what is equal.

    Texts are compared without case, punctuation at the end and spacing; code as syntax trees without docstrings.
    """
    pairs: list[tuple[Problem, Problem, str]] = []
    for what, form in (("text", _text_form), ("code", _code_form)):
        held: dict[str, Problem] = {}
        for problem in problems:
            if problem.split in ("validation", "test"):
                held.setdefault(form(problem), problem)
        pairs += [
            (problem, held[form(problem)], what)
            for problem in problems
            if problem.split == "train" and form(problem) in held
        ]
    return pairs


def _text_form(problem: Problem) -> str:
    return " ".join(problem.prompt.lower().split()).rstrip(".!? ")


def _code_form(problem: Problem) -> str:
    tree = ast.parse(problem.solution)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module):
            node.body = [
                child
                for child in node.body
                if not (isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant))
            ] or [ast.Pass()]
    return ast.dump(tree)
