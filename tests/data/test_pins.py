"""What pins a source, and that pinning stays light."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from mlops_tasks.config.sources import FolderModel, GeneratedData, HubModel, MbppData, RandomModel
from mlops_tasks.data.pins import digest_of_model, digest_of_source
from mlops_tasks.errors import UserError


def test_a_file_is_pinned_by_its_bytes_and_not_by_its_name(tmp_path: Path) -> None:
    for name in ("one.jsonl", "two.jsonl"):
        (tmp_path / name).write_bytes(b"{}\n")
    digests = {
        digest_of_source(MbppData(kind="mbpp", path=str(tmp_path / name))) for name in ("one.jsonl", "two.jsonl")
    }
    assert digests == {hashlib.sha256(b"{}\n").hexdigest()}


def test_a_missing_file_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"There is no data file .*none\.jsonl"):
        digest_of_source(MbppData(kind="mbpp", path=str(tmp_path / "none.jsonl")))


def test_generated_data_is_pinned_by_every_setting() -> None:
    source = GeneratedData(kind="generated")
    changes: list[dict[str, float]] = [
        {},
        {"num_train": 5},
        {"num_validation": 5},
        {"num_test": 5},
        {"seed": 1},
        {"noise": 0.1},
    ]
    assert set(GeneratedData.model_fields) - {"kind"} == {name for change in changes for name in change}
    assert len({digest_of_source(source.model_copy(update=change)) for change in changes}) == len(changes)
    assert digest_of_source(source) == digest_of_source(GeneratedData(kind="generated"))


def test_a_random_model_is_pinned_by_every_setting() -> None:
    source = RandomModel(kind="random")
    changes = [{}, {"hidden_size": 64}, {"num_layers": 1}, {"vocab_size": 500}, {"seed": 1}]
    assert set(RandomModel.model_fields) - {"kind"} == {name for change in changes for name in change}
    assert len({digest_of_model(source.model_copy(update=change)) for change in changes}) == len(changes)


def test_a_folder_is_pinned_by_the_files_that_are_pulled(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    source = FolderModel(kind="folder", path=str(tmp_path))
    before = digest_of_model(source)
    (tmp_path / "README.md").write_text("unread")
    (tmp_path / "pytorch_model.bin").write_bytes(b"unread")
    (tmp_path / "optimizer.safetensors").write_bytes(b"unread")
    assert digest_of_model(source) == before
    (tmp_path / "tokenizer.json").write_text("{}")
    with_tokenizer = digest_of_model(source)
    (tmp_path / "model.safetensors").write_bytes(b"Weights")
    assert len({before, with_tokenizer, digest_of_model(source)}) == 3


def test_a_missing_folder_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"There is no model folder .*nowhere"):
        digest_of_model(FolderModel(kind="folder", path=str(tmp_path / "nowhere")))


def test_a_whole_commit_is_its_own_pin_without_asking() -> None:
    assert digest_of_model(HubModel(kind="hub", repo="nobody/nothing", revision="a" * 40)) == "a" * 40


def test_pinning_imports_nothing_heavy() -> None:
    program = (
        "import sys, mlops_tasks.data.pins\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules} & {'torch', 'numpy', 'pyarrow', 'transformers', "
        "'tokenizers', 'huggingface_hub', 'httpx', 'httpx2'}))"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == ""
