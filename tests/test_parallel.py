"""A model in parts on two ranks: no rank ever holds the whole of it. The cases are in `start_cases`; trainings are in `test_training`."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import CONFIGS, SHAPE, model_of
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from mlops_tasks.errors import UserError
from mlops_tasks.model import MtpModel
from mlops_tasks.pretrained import UnreadModel, load_model

WIDE = {"hidden_size": 256, "intermediate_size": 2048, "num_hidden_layers": 16, "vocab_size": 512}


@pytest.mark.skipif(sys.platform != "linux", reason="reads memory in /proc")
def test_ranks_that_read_and_save_in_parts_have_the_same_rows_and_never_the_whole_model(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    # As models are published: in float32 an untouched weight would stay a page of its file.
    model = AutoModelForCausalLM.from_config(LlamaConfig(**{**SHAPE, **WIDE}), dtype=torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="30MB")
    mebibytes = model.num_parameters() * 4 / 2**20
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("start_cases.py")), str(folder)],
        capture_output=True,
        text=True,
        timeout=300,
        # What is freed goes back at once, as larger layers do anyway: no holes are counted.
        env={**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    for rank in range(2):
        whole, parts = (torch.load(tmp_path / f"model-{way}-{rank}.pt") for way in ("at_once", "in_parts"))
        assert whole.keys() == parts.keys()
        for name, value in whole.items():
            assert torch.equal(value, parts[name]), name
    assert min(start for start, _ in told["at_once"]) > mebibytes, told
    assert max(start for start, _ in told["in_parts"]) < 0.75 * mebibytes, told
    assert max(saved for way in ("in_parts", "adapted") for _, saved in told[way]) < mebibytes / 4, told
    expected = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    for way in ("in_parts", "adapted"):  # the adapter adds nothing yet
        saved = AutoModelForCausalLM.from_pretrained(tmp_path / f"saved-{way}" / "model").state_dict()
        assert all(torch.equal(value, expected[name].float()) for name, value in saved.items()), way


@pytest.mark.parametrize("name", CONFIGS)
def test_a_model_that_is_read_part_by_part_is_the_one_that_transformers_loads(name: str, tmp_path: Path) -> None:
    model_of(CONFIGS[name]()).save(tmp_path)
    unread, loaded = UnreadModel(tmp_path / "model"), load_model(tmp_path / "model")
    require_the_same(unread, loaded, tmp_path)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_what_is_tied_is_read_once(name: str, tied: bool, tmp_path: Path) -> None:
    config = CONFIGS[name]()
    config.tie_word_embeddings = tied
    models: Any = AutoModelForCausalLM
    models.from_config(config).save_pretrained(tmp_path / "model")
    unread, loaded = UnreadModel(tmp_path / "model"), load_model(tmp_path / "model")
    require_the_same(unread, loaded, tmp_path)
    assert (unread.model.get_output_embeddings().weight is unread.model.get_input_embeddings().weight) is tied  # type: ignore[union-attr]


def require_the_same(unread: UnreadModel, loaded: PreTrainedModel, tmp_path: Path) -> None:
    assert unread.is_readable
    assert all(parameter.is_meta for parameter in unread.model.parameters())
    for module in unread.model.modules():
        unread.read(module)
    mine, other = unread.model.state_dict(), loaded.state_dict()
    assert mine.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in mine.items())
    buffers = dict(loaded.named_buffers())
    assert dict(unread.model.named_buffers()).keys() == buffers.keys()
    assert all(torch.equal(value, buffers[name]) for name, value in unread.model.named_buffers())
    ids = torch.arange(2, 20)[None]
    with torch.no_grad():
        assert torch.equal(unread.model(ids, use_cache=False).logits, loaded(ids, use_cache=False).logits)
    assert unread.model.config._attn_implementation == loaded.config._attn_implementation
    for one, folder in ((unread.model, "a"), (loaded, "b")):
        one.save_pretrained(tmp_path / folder)
    written = {path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()}
    assert {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()} == written


def test_weights_under_other_names_are_read_at_once_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model_of(CONFIGS["gpt2-absolute"]()).save(tmp_path)
    file = tmp_path / "model" / "model.safetensors"
    save_file(
        {name.removeprefix("transformer."): value for name, value in load_file(file).items()}, file, {"format": "pt"}
    )
    with caplog.at_level(logging.WARNING):
        model = MtpModel.load_in_parts(tmp_path / "model", num_heads=1, seed=0)
    assert not model.is_in_parts and "each rank reads the whole model" in caplog.text
    file.unlink()
    with pytest.raises(UserError, match="holds no causal language model"):
        MtpModel.load_in_parts(tmp_path / "model", num_heads=1, seed=0)
