"""Any causal LM as trunk and heads: same logits, separate documents, plain export; and who is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from mlops_tasks.errors import UserError
from mlops_tasks.model import MtpModel

SHAPE: dict[str, Any] = {
    "vocab_size": 48,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 32,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GPT2_SHAPE = {
    name: SHAPE[name] for name in SHAPE if name not in ("intermediate_size", "num_key_value_heads", "head_dim")
}
# A window shorter than the text and a cap as small as the logits, so that both count.
GEMMA2_SHAPE = {**SHAPE, "sliding_window": 4, "final_logit_softcapping": 0.05, "attn_logit_softcapping": 0.5}
ARCHITECTURES = [("llama", SHAPE), ("gpt2", GPT2_SHAPE), ("qwen2", SHAPE), ("qwen3", SHAPE), ("gemma2", GEMMA2_SHAPE)]


def tiny(kind: str, shape: dict[str, Any], *, tied: bool) -> Any:
    torch.manual_seed(3)
    models: Any = AutoModelForCausalLM
    return models.from_config(AutoConfig.for_model(kind, **shape, tie_word_embeddings=tied)).eval()


@pytest.fixture(
    params=[(*each, tied) for each in ARCHITECTURES for tied in (True, False)], ids=lambda p: f"{p[0]}-{p[2]}"
)
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    kind, shape, tied = request.param
    tiny(kind, shape, tied=tied).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def test_hidden_and_first_head_are_the_bases_own_logits(saved: Path) -> None:
    base: Any = AutoModelForCausalLM.from_pretrained(saved)
    model = MtpModel.load(saved, num_heads=3, seed=0)
    ids = torch.arange(3, 27).view(2, 12)
    hidden = model.hidden(ids, torch.arange(12).expand(2, 12))
    logits = model.head_logits(hidden.flatten(0, 1), 1)
    torch.testing.assert_close(logits, base(input_ids=ids).logits.flatten(0, 1), rtol=1e-5, atol=1e-6)


def test_new_heads_start_exactly_as_the_first(saved: Path) -> None:
    model = MtpModel.load(saved, num_heads=3, seed=0)
    hidden = torch.randn(5, 16)
    first = model.head_logits(hidden, 1)
    assert torch.equal(model.head_logits(hidden, 2), first)
    assert torch.equal(model.head_logits(hidden, 3), first)


def test_packed_documents_do_not_see_one_another(saved: Path) -> None:
    model = MtpModel.load(saved, num_heads=1, seed=0)
    ids = torch.arange(3, 23)[None]
    positions = torch.cat([torch.arange(7), torch.arange(9), torch.arange(4)])[None]
    packed = model.hidden(ids, positions)
    for start, end in [(0, 7), (7, 16), (16, 20)]:
        alone = model.hidden(ids[:, start:end], torch.arange(end - start)[None])
        torch.testing.assert_close(packed[:, start:end], alone, rtol=1e-4, atol=1e-5)


def test_the_saved_folder_is_the_plain_base_with_the_heads_beside_it(saved: Path, tmp_path: Path) -> None:
    model: Any = MtpModel.load(saved, num_heads=2, seed=0)
    torch.nn.init.normal_(model.heads[0].outer.weight)
    model.save(tmp_path / "out")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "model").state_dict()
    before = AutoModelForCausalLM.from_pretrained(saved).state_dict()
    assert plain.keys() == before.keys()
    assert all(torch.equal(plain[name], before[name]) for name in plain)
    again = MtpModel.load(tmp_path / "out" / "model", num_heads=2, seed=5)
    again.load_heads(tmp_path / "out" / "heads.safetensors")
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())


def test_one_head_leaves_no_heads_file(tmp_path: Path) -> None:
    MtpModel(tiny("llama", SHAPE, tied=True), num_heads=1, seed=0).save(tmp_path)
    assert not (tmp_path / "heads.safetensors").exists()


def test_tied_embeddings_are_one_parameter_of_the_logits() -> None:
    tied: Any = MtpModel(tiny("llama", SHAPE, tied=True), num_heads=2, seed=0)
    assert tied.logit_parameters()[0] is tied.base.get_input_embeddings().weight
    untied: Any = MtpModel(tiny("llama", SHAPE, tied=False), num_heads=2, seed=0)
    assert untied.logit_parameters()[0] is untied.base.get_output_embeddings().weight
    # Output layer, then two matrices and two biases of the one new head.
    assert len(tied.logit_parameters()) == len(untied.logit_parameters()) == 5


def test_a_head_depends_on_seed_and_number_only() -> None:
    base = tiny("llama", SHAPE, tied=True)

    def inner(head: int, *, num_heads: int, seed: int) -> torch.Tensor:
        return MtpModel(base, num_heads=num_heads, seed=seed).heads[head - 2].get_parameter("inner.weight")

    assert torch.equal(inner(2, num_heads=2, seed=7), inner(2, num_heads=4, seed=7))
    assert not torch.equal(inner(2, num_heads=4, seed=7), inner(3, num_heads=4, seed=7))
    assert not torch.equal(inner(2, num_heads=2, seed=7), inner(2, num_heads=2, seed=8))


def test_heads_of_another_number_are_refused(tmp_path: Path) -> None:
    base = tiny("llama", SHAPE, tied=True)
    MtpModel(base, num_heads=4, seed=0).save(tmp_path)
    with pytest.raises(UserError, match=r"train\.num_heads is 3 .* holds 4 heads of width \[16\]"):
        MtpModel(base, num_heads=3, seed=0).load_heads(tmp_path / "heads.safetensors")


def test_load_keeps_the_base_in_float32(tmp_path: Path) -> None:
    tiny("llama", SHAPE, tied=True).to(torch.bfloat16).save_pretrained(tmp_path)
    model = MtpModel.load(tmp_path, num_heads=2, seed=0)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("kind", "shape", "name"),
    [
        ("bloom", {"vocab_size": 48, "hidden_size": 16, "n_layer": 2, "n_head": 2}, "BloomForCausalLM"),
        ("mamba", {"vocab_size": 48, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4}, "MambaForCausalLM"),
    ],
)
def test_an_architecture_that_mixes_packed_documents_is_refused(
    kind: str, shape: dict[str, Any], name: str, tmp_path: Path
) -> None:
    tiny(kind, shape, tied=True).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=f"{name} .*packed into one row see one another"):
        MtpModel.load(tmp_path, num_heads=2, seed=0)


def test_an_architecture_whose_logits_need_more_than_the_hidden_state_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny("llama", SHAPE, tied=True)
    model = MtpModel(base, num_heads=1, seed=0)
    monkeypatch.setattr(MtpModel, "head_logits", lambda self, hidden_ND, head: self.base.lm_head(hidden_ND) * 1.01)
    with pytest.raises(UserError, match=r"LlamaForCausalLM .*called apart, do not give its own logits"):
        model.probe("here")


def test_an_architecture_that_cannot_be_called_so_is_refused(tmp_path: Path) -> None:
    shape = {"vocab_size": 48, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 24}
    tiny("opt", {**shape, "word_embed_proj_dim": 16}, tied=True).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"OPTForCausalLM \(opt\).*fails on eight tokens"):
        MtpModel.load(tmp_path, num_heads=1, seed=0)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no causal language model"):
        MtpModel.load(tmp_path / "nothing", num_heads=1, seed=0)


def test_probing_leaves_the_mode_as_it_was() -> None:
    model = MtpModel(tiny("gpt2", GPT2_SHAPE, tied=True), num_heads=2, seed=0).train()
    model.probe("here")
    assert model.training
    assert model.base.training


def test_load_leaves_dropout_off(tmp_path: Path) -> None:
    tiny("gpt2", GPT2_SHAPE, tied=True).save_pretrained(tmp_path)
    model = MtpModel.load(tmp_path, num_heads=2, seed=0)
    assert not any(module.training for module in model.modules())


def test_a_document_longer_than_the_positions_is_refused() -> None:
    model = MtpModel(tiny("gpt2", GPT2_SHAPE, tied=True), num_heads=1, seed=0)
    model.check_length(32)
    with pytest.raises(UserError, match=r"text\.max_length is 33 but GPT2LMHeadModel has 32 positions"):
        model.check_length(33)


def test_recomputing_runs_each_layer_twice_and_gives_the_same_gradients(saved: Path) -> None:
    gradients, runs = [], []
    for is_wanted in (False, True):
        model = MtpModel.load(saved, num_heads=1, seed=0)
        if is_wanted:
            model.recompute_activations()
        counted: list[int] = []
        for layer in model.layers():
            next(layer.children()).register_forward_hook(lambda *_, counted=counted: counted.append(1))
        model.hidden(torch.arange(6)[None], torch.arange(6)[None]).sum().backward()
        gradients.append([one.grad for one in model.base.base_model.parameters()])
        runs.append(len(counted))
    assert runs[1] == 2 * runs[0] > 0
    for plain, again in zip(*gradients, strict=True):
        assert plain is not None
        assert torch.equal(plain, again)


def test_an_architecture_without_a_list_of_layers_is_told(saved: Path) -> None:
    model = MtpModel.load(saved, num_heads=1, seed=0)
    model.base.config.num_hidden_layers = 99
    with pytest.raises(UserError, match=r"no list of its 99 layers\. Set train\.parallelism to ddp"):
        model.layers()
