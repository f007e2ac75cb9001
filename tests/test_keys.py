"""What changes a key and what does not."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mlops_tasks import keys
from mlops_tasks.errors import UserError
from mlops_tasks.keys import (
    code_digests,
    differences,
    key_components,
    key_of,
    locked_versions,
    require_locked,
    without_paths,
)


@pytest.fixture(autouse=True)
def _fresh_digests() -> None:
    code_digests.cache_clear()


def digest_after(path: Path, old: str, new: str) -> dict[str, str]:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    code_digests.cache_clear()
    importlib.invalidate_caches()
    return dict(code_digests("toy.stages"))


def key(**changes: Any) -> str:
    parts: dict[str, Any] = {
        "stage": "make",
        "generation": 1,
        "function": "toy.stages:make",
        "config": {"seed": 1},
        "inputs": {"a": "d1"},
        "packages": ["torch"],
    }
    return key_of(key_components(**parts | changes))


def test_code_is_followed_through_imports_but_not_through_the_runtime(toy: Path) -> None:
    assert list(dict(code_digests("toy.stages"))) == ["toy", "toy.stages", "toy.words"]


def test_docstrings_comments_and_layout_are_not_code(toy: Path) -> None:
    before = dict(code_digests("toy.stages"))
    assert digest_after(toy / "stages.py", '"""Shout what `make` made."""', '"""Other words."""  # and why') == before
    assert digest_after(toy / "words.py", "    return text.upper()", "\n    return (text\n        .upper())") == before


def test_a_changed_line_of_a_reached_module_changes_that_module_only(toy: Path) -> None:
    before = dict(code_digests("toy.stages"))
    after = digest_after(toy / "words.py", "upper", "title")
    assert differences(before, after) and {name for name in before if before[name] != after[name]} == {"toy.words"}


def test_every_component_changes_the_key(toy: Path) -> None:
    base = key()
    changes: list[dict[str, Any]] = [
        {"stage": "other"}, {"generation": 2}, {"config": {"seed": 2}}, {"config": {"seed": 1.0}}, {"inputs": {"a": "d2"}},
        {"inputs": {"b": "d1"}}, {"packages": ["torch", "numpy"]},
    ]  # fmt: skip
    assert len({base, *(key(**change) for change in changes)}) == len(changes) + 1
    assert key() == base


def test_pythons_minor_version_is_keyed(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = key()
    monkeypatch.setattr(keys.sys, "version_info", type("V", (), {"major": 3, "minor": 99}))
    assert key() != before


def test_paths_are_not_keyed(toy: Path) -> None:
    assert key(config={"seed": 1, "path": "/a", "deep": [{"path": "/b", "x": 1}]}) == key(
        config={"seed": 1, "deep": [{"path": "/c", "x": 1}]}
    )
    assert without_paths({"path": 1, "paths": 2}) == {"paths": 2}


def test_differences_name_the_leaf() -> None:
    old = {"config": {"seed": 1, "gone": True}, "inputs": {"data": "a" * 64}}
    new = {"config": {"seed": 2}, "inputs": {"data": "b" * 64}}
    assert differences(old, new) == [
        "config.gone: True → nothing",
        "config.seed: 1 → 2",
        f"inputs.data: {'a' * 12}… → {'b' * 12}…",
    ]


def test_the_lock_names_versions_without_local_suffix() -> None:
    versions = locked_versions()
    assert versions["torch"] == "2.13.0"
    assert not [version for version in versions.values() if "+" in version]


def test_another_version_than_the_locked_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    require_locked(["pyarrow"])
    monkeypatch.setattr(keys.metadata, "version", lambda name: "0.1+cpu")
    with pytest.raises(UserError, match=r"pyarrow 0\.1 runs here, but the lock .* says"):
        require_locked(["pyarrow"])


def test_the_key_code_loads_nothing_heavy() -> None:
    code = "import sys, mlops_tasks.forecast, mlops_tasks.planning; print(sorted({'torch','transformers','mlflow','optuna','boto3','airflow','pyarrow','numpy'} & set(sys.modules)))"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def test_a_module_that_a_setting_names_is_keyed_though_nothing_imports_it(toy: Path) -> None:
    (toy / "chosen.py").write_text("x = 1\n")
    (toy / "other.py").write_text("x = 1\n")
    with_one = key(modules=["toy.chosen"])
    assert with_one != key() and with_one != key(modules=["toy.other"])
    (toy / "other.py").write_text("x = 2\n")
    code_digests.cache_clear()
    assert key(modules=["toy.chosen"]) == with_one
    (toy / "chosen.py").write_text("x = 2\n")
    code_digests.cache_clear()
    assert key(modules=["toy.chosen"]) != with_one


THREADS = """
import gc, threading, time
from mlops_tasks import keys
gc.set_threshold(200)
class Litter:
    def __init__(self):
        self.me = self
    def __del__(self):
        time.sleep(0)  # in the midst of whatever is collected in, another thread goes on
done = threading.Event()
def litter():
    while not done.is_set():
        [Litter() for _ in range(20)]
        time.sleep(0.002)
def digest():
    try:
        for _ in range(2):
            keys.code_digests.__wrapped__("mlops_tasks.scoring.weights")
    except SystemError as error:
        print(error)
threads = [threading.Thread(target=digest) for _ in range(3)]
beside = threading.Thread(target=litter)
for thread in (beside, *threads):
    thread.start()
for thread in threads:
    thread.join()
done.set()
"""


def test_code_may_be_digested_in_several_threads_at_one_time() -> None:
    done = subprocess.run([sys.executable, "-c", THREADS], capture_output=True, text=True, check=True)
    assert done.stdout == ""
