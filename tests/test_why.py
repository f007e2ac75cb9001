"""`why` names what changed a key: the setting, the file, the module of the code, the package; and nothing for a docstring."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest

from mlops_tasks import keys
from mlops_tasks.config.environment import Environment
from mlops_tasks.forecast import changes
from mlops_tasks.keys import code_digests
from mlops_tasks.stage import Run, decide, execute
from mlops_tasks.store import Artifact, Store


@pytest.fixture
def stages(toy: Path) -> ModuleType:
    code_digests.cache_clear()
    return importlib.import_module("toy.stages")


def planned(environment: Environment, stages: ModuleType, name: str, **spec: object) -> Run:
    prefix = Run.prefix_of(environment, "toy", name)
    Store.of(environment).create_json(f"{prefix}/spec.json", stages.spec(**spec).model_dump(mode="json"))
    return Run.open(environment, prefix)


@pytest.fixture
def first(environment: Environment, stages: ModuleType) -> dict[str, Artifact]:
    return results(planned(environment, stages, "first"), stages)


def results(run: Run, stages: ModuleType) -> dict[str, Artifact]:
    found = {}
    for name in ("make", "loud"):
        execute(run, stages.TASKS[name], tasks=stages.TASKS)
        artifact = run.artifact(name)
        assert artifact is not None
        found[name] = artifact
    return found


def why(run: Run, stages: ModuleType, last: Artifact, task: str) -> list[str]:
    decision = decide(run, stages.TASKS[task], tasks=stages.TASKS)
    return changes(last, decision.components, decision.inputs)


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    code_digests.cache_clear()


def test_a_setting_is_named(environment: Environment, stages: ModuleType, first: dict[str, Artifact]) -> None:
    now = planned(environment, stages, "now", seed=4)
    assert why(now, stages, first["make"], "make") == ["config.seed: 3 → 4"]


def test_the_files_of_a_changed_input_are_named(
    environment: Environment, stages: ModuleType, first: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = stages.make

    def more(attempt: object) -> object:
        (attempt.folder / "lines-more.txt").write_text("more")  # type: ignore[attr-defined]
        return real(attempt)

    monkeypatch.setattr(stages, "make", more)
    now = planned(environment, stages, "now", seed=4)
    again = results(now, stages)
    # deep/notes.txt is no input of `loud`, and lines.txt has another line.
    assert why(now, stages, first["loud"], "loud") == ["inputs.made: lines-more.txt new, lines.txt changed"]
    earlier = planned(environment, stages, "first")
    assert why(earlier, stages, again["loud"], "loud") == ["inputs.made: lines-more.txt gone, lines.txt changed"]


def test_files_are_named_of_an_input_that_was_replaced_under_its_key(
    environment: Environment, stages: ModuleType, first: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        stages, "make", lambda attempt: (attempt.folder / "lines.txt").write_text("no line\n") and {"lines": 1}
    )
    now = planned(environment, stages, "now", force=("make",))
    results(now, stages)
    assert why(now, stages, first["loud"], "loud") == ["inputs.made: lines.txt changed"]


def test_digests_are_told_where_the_old_input_is_gone(
    environment: Environment, stages: ModuleType, first: dict[str, Artifact]
) -> None:
    old = first["make"].digest_of("lines*")
    now = planned(environment, stages, "now", seed=4)
    new = results(now, stages)["make"].digest_of("lines*")
    now.store.remove(first["make"].prefix)
    assert why(now, stages, first["loud"], "loud") == [f"inputs.made: {old[:12]}… → {new[:12]}…"]


def test_a_package_is_named_with_both_versions(
    environment: Environment, stages: ModuleType, first: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = keys.locked_versions()
    monkeypatch.setattr(keys, "locked_versions", lambda: {**before, "pyarrow": "99.0"})
    now = planned(environment, stages, "now")
    assert why(now, stages, first["make"], "make") == [f"packages.pyarrow: {before['pyarrow']} → 99.0"]


def test_a_source_line_names_the_module_of_the_code(
    environment: Environment, stages: ModuleType, first: dict[str, Artifact], toy: Path
) -> None:
    edit(toy / "words.py", "upper", "title")
    now = planned(environment, stages, "now")
    execute(now, stages.TASKS["make"], tasks=stages.TASKS)
    (line,) = why(now, stages, first["loud"], "loud")
    assert line.startswith("code.toy.words: ")


def test_a_docstring_changes_nothing(
    environment: Environment, stages: ModuleType, first: dict[str, Artifact], toy: Path
) -> None:
    edit(toy / "words.py", '"""Louder."""', '"""Much louder."""')
    now = planned(environment, stages, "now")
    assert execute(now, stages.TASKS["make"], tasks=stages.TASKS).outcome == "hit"
    assert why(now, stages, first["loud"], "loud") == why(now, stages, first["make"], "make") == []
