"""Files that are written a tensor at a time are those that transformers and safetensors write."""

from __future__ import annotations

import logging
import weakref
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from test_model import ARCHITECTURES, SHAPE, tiny
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from mlops_tasks import distributed, export
from mlops_tasks.export import Tensors, save_pretrained, write_tensors


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def weights(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """What is tied once."""
    kept = {name for name, _ in (*model.named_parameters(), *model.named_buffers())}
    return {name: value for name, value in model.state_dict().items() if name in kept}


@pytest.mark.parametrize("form", [None, "pt"])
def test_a_file_is_the_one_that_safetensors_writes(tmp_path: Path, form: str | None) -> None:
    torch.manual_seed(0)
    tensors = {
        "c": torch.randn(3, 5),
        "a.ä": torch.randn(2, 3).to(torch.bfloat16),
        "b": torch.arange(7),
        "z": torch.tensor([True, False]),
        "scalar": torch.tensor(1.5),
        "d": torch.randn(4, 6).T,
        "half": torch.randn(3).half(),
        "none": torch.empty(0, 4),
    }
    metadata = {} if form is None else {"metadata": {"format": form}}
    safetensors.torch.save_file(
        {name: value.contiguous() for name, value in tensors.items()}, tmp_path / "other", **metadata
    )
    write_tensors(tmp_path / "mine", tensors, tensors, form=form)
    assert (tmp_path / "mine").read_bytes() == (tmp_path / "other").read_bytes()


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize(("kind", "shape"), ARCHITECTURES)
def test_a_folder_is_the_one_that_transformers_writes(
    kind: str, shape: dict[str, Any], tied: bool, tmp_path: Path
) -> None:
    model = tiny(kind, shape, tied=tied)
    model.save_pretrained(tmp_path / "other")
    save_pretrained(model, tmp_path / "mine", weights(model), weights(model))
    assert files(tmp_path / "mine") == files(tmp_path / "other")


def test_a_large_model_is_parted_and_indexed_as_transformers_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny("llama", SHAPE, tied=False)
    model.save_pretrained(tmp_path / "other", max_shard_size=8000)
    monkeypatch.setattr(export, "MAX_FILE_BYTES", 8000)
    save_pretrained(model, tmp_path / "mine", weights(model), weights(model))
    assert len(files(tmp_path / "mine")) > 4
    assert files(tmp_path / "mine") == files(tmp_path / "other")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "mine").state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in weights(model).items())


def test_one_tensor_is_there_at_a_time(tmp_path: Path) -> None:
    model = tiny("llama", SHAPE, tied=False)
    made: dict[str, weakref.ref[torch.Tensor]] = {}

    def make(name: str) -> torch.Tensor:
        assert not [other for other, ref in made.items() if ref() is not None]
        value = weights(model)[name].clone()
        made[name] = weakref.ref(value)
        return value

    save_pretrained(model, tmp_path, weights(model), Tensors(weights(model), make))
    assert made.keys() == weights(model).keys()


def test_experts_are_written_under_the_names_of_their_files_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    models: Any = AutoModelForCausalLM
    model = models.from_config(experts())
    model.save_pretrained(tmp_path / "other")
    with caplog.at_level(logging.WARNING):
        save_pretrained(model, tmp_path / "mine", weights(model), weights(model))
    assert "rank 0 puts the whole model together" in caplog.text
    assert files(tmp_path / "mine") == files(tmp_path / "other")


def test_only_rank_0_keeps_what_has_to_be_put_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models: Any = AutoModelForCausalLM
    model = models.from_config(experts())
    made: list[weakref.ref[torch.Tensor]] = []

    def make(name: str) -> torch.Tensor:
        assert sum(ref() is not None for ref in made) <= 1
        value = weights(model)[name].clone()
        made.append(weakref.ref(value))
        return value

    monkeypatch.setattr(distributed, "rank", lambda: 1)
    save_pretrained(model, tmp_path / "mine", weights(model), Tensors(weights(model), make))
    assert len(made) == len(weights(model)) and not (tmp_path / "mine").exists()


def experts() -> PretrainedConfig:
    return AutoConfig.for_model("qwen3_moe", **SHAPE, num_experts=4, moe_intermediate_size=8, num_experts_per_tok=2)


def test_a_tensor_of_another_shape_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"a is \(torch\.Size\(\[3\]\)"):
        write_tensors(tmp_path / "mine", {"a": torch.zeros(2)}, {"a": torch.zeros(3)})
