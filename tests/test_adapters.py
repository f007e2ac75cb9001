"""LoRA on tiny models: nothing changes at the start, nothing of the base ever, and both forms of the result give the same logits."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from tiny_models import CONFIGS, SHAPE, model_of
from transformers import AutoModelForCausalLM, LlamaConfig

from mlops_tasks.adapters import Adapter, _numbers, linear_layers, quantized
from mlops_tasks.config.learning import Lora, QLora
from mlops_tasks.errors import UserError
from mlops_tasks.model import MtpModel
from mlops_tasks.parallel import _kept
from mlops_tasks.pretrained import load_quantized

LORA = Lora(kind="lora", rank=4, alpha=12)
IDS = torch.arange(2, 22)[None]
POSITIONS = torch.arange(20)[None]
EVERY = pytest.mark.parametrize("name", CONFIGS)


def logits(model: MtpModel, head: int = 1) -> torch.Tensor:
    with torch.no_grad():
        return model.head_logits(model.hidden(IDS, POSITIONS)[0], head)


def moved(name: str, method: Lora = LORA) -> tuple[MtpModel, Adapter]:
    """A model whose adapter is no longer as it began."""
    model = model_of(CONFIGS[name](), num_heads=3)
    adapter = Adapter(model, method, seed=1)
    torch.manual_seed(2)
    with torch.no_grad():
        for one in model.parameters():
            if one.requires_grad:
                one.add_(0.1 * torch.randn_like(one))
    return model, adapter


@EVERY
def test_a_new_adapter_changes_no_logit_of_any_head(name: str) -> None:
    plain, adapted = (model_of(CONFIGS[name](), num_heads=3) for _ in range(2))
    Adapter(adapted, LORA, seed=1)
    for head in (1, 2, 3):
        assert torch.equal(logits(adapted, head), logits(plain, head))


@EVERY
def test_a_merged_model_gives_the_logits_of_the_adapted_one_to_plain_transformers(name: str, tmp_path: Path) -> None:
    model, adapter = moved(name)
    model.save(tmp_path, adapter.merged(model.state_dict()))
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    with torch.no_grad():
        found = plain(input_ids=IDS).logits[0]
    torch.testing.assert_close(found, logits(model), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found, logits(model_of(CONFIGS[name]())), atol=1e-2)
    again = MtpModel.load(tmp_path / "model", num_heads=3, seed=0)
    again.load_heads(tmp_path / "heads.safetensors")
    torch.testing.assert_close(logits(again, 3), logits(model, 3), rtol=1e-5, atol=1e-5)


@EVERY
def test_merged_tensors_are_asked_for_in_the_models_own_order_on_every_rank(name: str) -> None:
    model, adapter = moved(name)
    merged = adapter.merged(model.state_dict())
    assert list(merged) == list(model_of(CONFIGS[name](), num_heads=3).state_dict())


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # peft 0.21 with transformers 5.23
@EVERY
def test_a_saved_adapter_gives_the_same_logits_to_peft_on_the_plain_base(name: str, tmp_path: Path) -> None:
    model, adapter = moved(name)
    adapter.save(tmp_path / "adapter", model.state_dict())
    with torch.no_grad():
        found = PeftModel.from_pretrained(model_of(CONFIGS[name]()).base, tmp_path / "adapter")(input_ids=IDS).logits[0]
    torch.testing.assert_close(found, logits(model), rtol=1e-5, atol=1e-5)


def test_two_saved_adapters_of_one_seed_are_the_same_bytes(tmp_path: Path) -> None:
    for name in "ab":
        model, adapter = moved("llama")
        adapter.save(tmp_path / name, model.state_dict())
    assert {file.name for file in (tmp_path / "a").iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()
    targets = json.loads((tmp_path / "a" / "adapter_config.json").read_text())["target_modules"]
    assert targets == sorted(targets)


def test_targets_are_the_linear_layers_of_the_decoder_unless_said_otherwise() -> None:
    model = model_of(CONFIGS["llama"]())
    attention, mlp = {"q_proj", "k_proj", "v_proj", "o_proj"}, {"gate_proj", "up_proj", "down_proj"}
    assert linear_layers(model).keys() == attention | mlp
    Adapter(model, Lora(kind="lora", rank=2, targets=("q_proj",)), seed=0)
    learnt = {name: tuple(one.shape) for name, one in model.base.named_parameters() if one.requires_grad}
    # Two layers, 32 wide, four heads of 8.
    assert learnt == {
        f"model.layers.{layer}.self_attn.q_proj.lora_{matrix}.default.weight": shape
        for layer in range(2)
        for matrix, shape in (("A", (2, 32)), ("B", (32, 2)))
    }
    assert model.num_trainable() == 2 * 2 * (2 * 32)


def test_the_seed_is_of_the_adapter_and_moves_no_other_random_number() -> None:
    states = []
    for seed in (0, 0, 1):
        model = model_of(CONFIGS["llama"]())
        torch.manual_seed(5)
        Adapter(model, LORA, seed=seed)
        states.append((model.state_dict()["base.model.layers.0.mlp.up_proj.lora_A.default.weight"], torch.rand(1)))
    assert torch.equal(states[0][0], states[1][0]) and not torch.equal(states[0][0], states[2][0])
    assert states[0][1] == states[2][1]


def test_a_target_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(
        UserError, match=r"targets names qproj, lm_head, which is no linear layer .* down_proj, gate_proj"
    ):
        Adapter(model_of(CONFIGS["llama"]()), Lora(kind="lora", targets=("qproj", "q_proj", "lm_head")), seed=0)


# Four bits


def test_four_bits_are_refused_without_a_gpu_and_where_the_model_is_spread() -> None:
    with pytest.raises(UserError, match=r"qlora, which holds the base in 4 bits on a GPU, but the device here is cpu"):
        quantized(torch.device("cpu"), is_spread=False, precision="float32")
    with pytest.raises(UserError, match=r"whole on each rank, but train\.parallelism is fsdp"):
        quantized(torch.device("cuda"), is_spread=True, precision="float32")


def test_four_bits_become_float32_in_whatever_format_they_come() -> None:
    layer = torch.nn.Linear(2, 3, dtype=torch.bfloat16)
    found = _numbers(lambda one: one.weight, layer)  # type: ignore[arg-type, return-value]
    assert found.dtype == torch.float32 and torch.equal(found, layer.weight.float())


@pytest.mark.gpu
def test_a_merged_model_of_four_bits_is_plain_and_gives_the_logits_of_the_adapted_one(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="what only a GPU needs is in the extra `gpu`")
    require_same_logits_of_four_bits(tmp_path, torch.device("cuda"))


def require_same_logits_of_four_bits(folder: Path, device: torch.device, tolerance: float = 1e-3) -> None:
    config = LlamaConfig(**{**SHAPE, "hidden_size": 64, "intermediate_size": 128})
    plain = model_of(config)
    plain.save(folder / "given")
    model = MtpModel.load(
        folder / "given" / "model",
        num_heads=2,
        seed=0,
        read=partial(load_quantized, device=device, products_in=torch.float32),
    )
    adapter = Adapter(model, QLora(kind="qlora", rank=4, targets=("q_proj",)), seed=0)
    model.to(device)
    with torch.no_grad():
        for one in model.parameters():
            if one.requires_grad:
                one.add_(0.1 * torch.randn_like(one))
    assert model.num_parameters() - model.num_trainable() == plain.num_parameters()
    assert not [name for name in _kept(model) if "lora_" not in name and not name.startswith("heads.")]
    model.save(folder, adapter.merged(model.state_dict()))
    saved = AutoModelForCausalLM.from_pretrained(folder / "model").to(device)
    assert not hasattr(saved.config, "quantization_config")
    assert {one.dtype for one in saved.parameters()} == {torch.float32}
    ids, positions = IDS.to(device), POSITIONS.to(device)
    with torch.no_grad():
        expected = model.head_logits(model.hidden(ids, positions)[0], 1)
        found = saved(input_ids=ids).logits[0]
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    assert (found.cpu() - logits(plain)).abs().max() > 0.01
