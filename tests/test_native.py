"""Published checkpoints with heads of their own, against a Llama of that layout that is written down here."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import bytes_tokenizer
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from mlops_tasks.__main__ import main
from mlops_tasks.data.pins import model_files
from mlops_tasks.errors import UserError
from mlops_tasks.model import HEADS_FILE, MtpModel
from mlops_tasks.native import convert
from mlops_tasks.pretrained import load_model, load_tokenizer

# Three layers of trunk with head 1, and two more heads.
PARAMS: dict[str, Any] = {
    "dim": 24, "n_layers": 5, "n_heads": 4, "n_kv_heads": 2, "n_future_tokens": 3, "norm_eps": 1e-4, "rope_theta": 500.0,
}  # fmt: skip
NUM_TOKENS, HEAD_DIM, INNER = 258, 6, 40


def published(folder: Path, **changes: Any) -> dict[str, Tensor]:
    """Write a checkpoint in the layout; returns its tensors."""
    params = PARAMS | changes
    width, keys = params["dim"], HEAD_DIM * (params["n_kv_heads"] or params["n_heads"])
    shapes = {
        "attention.wq": (width, width), "attention.wk": (keys, width), "attention.wv": (keys, width), "attention.wo": (width, width),
        "feed_forward.w1": (INNER, width), "feed_forward.w2": (width, INNER), "feed_forward.w3": (INNER, width),
        "attention_norm": (width,), "ffn_norm": (width,),
    }  # fmt: skip
    num_extra = params["n_future_tokens"] - 1
    places = [f"layers.{place}" for place in range(params["n_layers"] - num_extra)]
    places += [f"extra_heads.{place}" for place in range(num_extra)]
    named = {f"{place}.{name}.weight": shape for place in places for name, shape in shapes.items()}
    named |= {
        "tok_embeddings.weight": (NUM_TOKENS, width),
        "norm.weight": (width,),
        "output.weight": (NUM_TOKENS, width),
    }
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(shape, generator=generator) * 0.4 for name, shape in named.items()}
    folder.mkdir()
    torch.save(tensors | {"rope.freqs": torch.ones(3)}, folder / "consolidated.pth")
    (folder / "params.json").write_text(json.dumps(params))
    bytes_tokenizer().save_pretrained(folder)
    return tensors


class Published:
    """The published model's forward, one document of S tokens at a time: logits [S, H, V]."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors = tensors

    def norm(self, x: Tensor, name: str) -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + PARAMS["norm_eps"]).rsqrt() * self.tensors[f"{name}.weight"]

    def linear(self, x: Tensor, name: str) -> Tensor:
        return x @ self.tensors[f"{name}.weight"].T

    def rotated(self, x_SND: Tensor) -> Tensor:
        """Neighbours are one complex number, turned by its position."""
        frequencies = PARAMS["rope_theta"] ** (-torch.arange(0, HEAD_DIM, 2) / HEAD_DIM)
        angles = torch.arange(len(x_SND))[:, None] * frequencies
        turned = (
            torch.view_as_complex(x_SND.unflatten(-1, (-1, 2))) * torch.polar(torch.ones_like(angles), angles)[:, None]
        )
        return torch.view_as_real(turned).flatten(-2)

    def layer(self, x: Tensor, place: str) -> Tensor:
        seen = self.norm(x, f"{place}.attention_norm")
        q, k, v = (
            self.linear(seen, f"{place}.attention.{name}").unflatten(-1, (-1, HEAD_DIM)) for name in ("wq", "wk", "wv")
        )
        groups = q.shape[1] // k.shape[1]
        q, k, v = self.rotated(q), self.rotated(k).repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        scores = torch.einsum("snd,tnd->nst", q, k) / math.sqrt(HEAD_DIM)
        future = torch.ones(len(x), len(x)).triu(1).bool()
        mixed = torch.einsum("nst,tnd->snd", scores.masked_fill(future, -math.inf).softmax(-1), v)
        x = x + self.linear(mixed.flatten(1), f"{place}.attention.wo")
        seen = self.norm(x, f"{place}.ffn_norm")
        gate = nn.functional.silu(self.linear(seen, f"{place}.feed_forward.w1"))
        return x + self.linear(gate * self.linear(seen, f"{place}.feed_forward.w3"), f"{place}.feed_forward.w2")

    def __call__(self, ids_S: Tensor) -> Tensor:
        x = self.tensors["tok_embeddings.weight"][ids_S]
        for place in range(2):
            x = self.layer(x, f"layers.{place}")
        latents = [self.layer(x, place) for place in ("layers.2", "extra_heads.0", "extra_heads.1")]
        return self.linear(self.norm(torch.stack(latents, -2), "norm"), "output")


def logits_of(model: MtpModel, ids_S: Tensor) -> Tensor:
    """[S, H, V] through the converted model's own parts."""
    states = model.states(ids_S[None], torch.arange(len(ids_S))[None])
    assert states.call is not None
    hidden = [states.hidden_BSD, *(model.layer_hidden(states.call, head) for head in range(2, model.num_heads + 1))]
    return torch.stack([model.head_logits(one[0], head) for head, one in enumerate(hidden, start=1)], dim=1)


IDS = torch.randint(0, NUM_TOKENS, (17,), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_logits_of_every_head_are_those_of_the_published_layout(tmp_path: Path) -> None:
    tensors = published(tmp_path / "source")
    assert convert(tmp_path / "source", tmp_path / "model", max_positions=32) == 3
    expected = Published(tensors)(IDS)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    torch.testing.assert_close(plain(IDS[None]).logits[0], expected[:, 0], rtol=1e-4, atol=1e-4)
    for model in (
        MtpModel.load(tmp_path / "model", num_heads=3, seed=0, head_kind="layer"),
        MtpModel.with_saved_heads(load_model(tmp_path / "model"), tmp_path / "model" / HEADS_FILE),
    ):
        torch.testing.assert_close(logits_of(model, IDS), expected, rtol=1e-4, atol=1e-4)


def test_a_converted_folder_is_read_part_by_part_too_and_all_of_it_is_pulled(tmp_path: Path) -> None:
    published(tmp_path / "source")
    assert main(["convert", str(tmp_path / "source"), str(tmp_path / "model")]) == 0
    model = MtpModel.load_in_parts(tmp_path / "model", num_heads=3, seed=0, head_kind="layer")
    assert model.is_in_parts
    stored = load_file(tmp_path / "model" / HEADS_FILE)
    assert all(torch.equal(value, stored[name]) for name, value in model.heads.state_dict().items())
    pulled = {file.name for file in model_files(tmp_path / "model")}
    assert {"config.json", "model.safetensors", HEADS_FILE, "tokenizer.json"} <= pulled


def test_a_tokenizer_that_models_share_in_the_folder_above_is_taken_along(tmp_path: Path) -> None:
    published(tmp_path / "source")
    for file in (tmp_path / "source").glob("tokenizer*"):
        file.rename(tmp_path / file.name)
    convert(tmp_path / "source", tmp_path / "made/model", max_positions=32)
    assert load_tokenizer(tmp_path / "made/model")("ab").input_ids == bytes_tokenizer()("ab").input_ids


def test_only_files_of_a_tokenizer_are_taken_along(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    published(tmp_path / "source")
    for file in (tmp_path / "source").glob("tokenizer*"):
        file.rename(tmp_path / file.name)
    (tmp_path / "tokenizers").mkdir()
    (tmp_path / "tokenizer.md").write_text("about another thing")
    with caplog.at_level(logging.INFO):
        convert(tmp_path / "source", tmp_path / "made/model", max_positions=32)
    assert {file.name for file in (tmp_path / "made/model").glob("token*")} == {
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert f"tokenizer of {tmp_path}: tokenizer.json, tokenizer_config.json" in caplog.text


def test_a_tokenizer_of_another_model_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    published(tmp_path / "source")
    tokenizer = bytes_tokenizer()
    tokenizer.add_tokens(["another"])
    tokenizer.save_pretrained(tmp_path / "source")
    with pytest.raises(UserError, match=r"has 259 tokens, but tok_embeddings in consolidated\.pth has 258"):
        convert(tmp_path / "source", tmp_path / "model", max_positions=32)
    assert not (tmp_path / "model").exists()


def test_a_model_with_one_head_has_no_file_of_heads(tmp_path: Path) -> None:
    published(tmp_path / "source", n_future_tokens=1, n_layers=2, n_kv_heads=None)
    assert convert(tmp_path / "source", tmp_path / "model", max_positions=32) == 1
    assert not (tmp_path / "model" / HEADS_FILE).exists()
    assert load_model(tmp_path / "model").config.num_hidden_layers == 2


def test_other_heads_than_the_folders_are_refused(tmp_path: Path) -> None:
    published(tmp_path / "source")
    convert(tmp_path / "source", tmp_path / "model", max_positions=32)
    with pytest.raises(
        UserError, match=r"train\.head_kind is residual.* Set train\.num_heads to 3 and train\.head_kind to layer"
    ):
        MtpModel.load(tmp_path / "model", num_heads=3, seed=0)
    with pytest.raises(UserError, match=r"train\.num_heads is 2 .* holds 3 heads"):
        MtpModel.load(tmp_path / "model", num_heads=2, seed=0, head_kind="layer")
    assert MtpModel.load(tmp_path / "model", num_heads=1, seed=0).num_heads == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"n_layers": 6},
            r"6 and n_future_tokens 3, which is 4 layers and 2 extra heads, but .* differ in model\.layers\.3",
        ),
        ({"n_future_tokens": 4}, r"differ in 2, model\.layers\.2"),
        ({"n_heads": 3, "n_kv_heads": 3}, "k_proj.weight as"),
        ({"n_heads": 5}, "says n_heads 5 and n_kv_heads 2, but the width of consolidated.pth is 24"),
        ({"n_kv_heads": 3}, "n_kv_heads divides n_heads"),
        ({"use_scaled_rope": True}, r"says use_scaled_rope, and no file .* by how much"),
        ({"n_heads": None}, "does not say what model it is"),
    ],
)
def test_params_of_another_model_are_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    published(tmp_path / "source")
    (tmp_path / "source" / "params.json").write_text(json.dumps(PARAMS | changes))
    with pytest.raises(UserError, match=message):
        convert(tmp_path / "source", tmp_path / "model", max_positions=32)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("tok_embeddings.weight", None, r"lacks 1 weights of a Llama, the first is tok_embeddings\.weight"),
        ("norm.weight", None, r"the first is norm\.weight"),
        ("output.weight", None, r"the first is output\.weight\. .* with an output of its own"),
        ("tok_embeddings.weight", torch.ones(24), r"the first is tok_embeddings\.weight"),
        ("layers.0.feed_forward.w1.weight", None, r"the first is layers\.0\.feed_forward\.w1"),
        ("extra_heads.1.ffn_norm.weight", None, r"the first is extra_heads\.1\.ffn_norm"),
        ("extra_heads.0.attention.wq.weight", torch.ones(32, 24), r"extra_heads\.0\.self_attn\.q_proj\.weight as torch\.Size\(\[32, 24\]\)"),
        ("layers.1.attention.wk.weight", torch.ones(9, 24), r"layers\.1\.self_attn\.k_proj\.weight as torch\.Size\(\[9, 24\]\)"),
        ("iteration", 7, "it holds no mapping of names to tensors"),
        ("arguments", PurePosixPath("a"), r"has no consolidated\.pth that torch reads \(it holds other things than tensors\)"),
    ],
)  # fmt: skip
def test_weights_that_are_not_whole_are_refused(name: str, value: Any, message: str, tmp_path: Path) -> None:
    tensors: dict[str, Any] = published(tmp_path / "source")
    changed = {other: tensor for other, tensor in tensors.items() if other != name} | (
        {} if value is None else {name: value}
    )
    torch.save(changed, tmp_path / "source" / "consolidated.pth")
    with pytest.raises(UserError, match=message):
        convert(tmp_path / "source", tmp_path / "model", max_positions=32)
    assert not (tmp_path / "model").exists()


def test_another_layout_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "source"
    tensors = published(source)
    torch.save(tensors | {"layers.0.attention.bias.weight": torch.ones(1)}, source / "consolidated.pth")
    with pytest.raises(UserError, match=r"holds 'layers\.0\.attention\.bias\.weight', which this layout has not"):
        convert(source, tmp_path / "model", max_positions=32)
    (source / "consolidated.pth").rename(source / "consolidated.00.pth")
    with pytest.raises(UserError, match=r"has no consolidated\.pth .* there are consolidated\.00\.pth"):
        convert(source, tmp_path / "model", max_positions=32)
    with pytest.raises(UserError, match="is there already"):
        convert(source, source, max_positions=32)
