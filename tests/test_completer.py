"""Claims about the model as MLflow serves it: in this process, and by `mlflow models serve` where our package is not to be had."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mlflow_server import serving, serving_model, without_this_package
from nights import NAME, STRONG, WEAK, Night
from tiny_models import CONFIGS, model_of
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from mlops_tasks import tracking
from mlops_tasks.config.environment import Environment
from mlops_tasks.data.tokens import encode_prompts
from mlops_tasks.model import HEADS_FILE, MtpModel
from mlops_tasks.pretrained import load_model
from mlops_tasks.registry.promotion import promote
from mlops_tasks.tracking import connection

# MLflow's own use of SQLAlchemy, and of pydantic.
pytestmark = pytest.mark.filterwarnings(
    "ignore:The ``noload`` loader strategy is deprecated", "ignore:.*Any type hint is inferred"
)

BEGIN, END = 256, 257
PROMPTS = ["def add(a, b):\n", "x = ", 'print("<s>', "a" * 40]
PLAIN: dict[str, Any] = {"max_new_tokens": 12, "stop": [], "temperature": 0.0, "top_p": 1.0, "seed": None}


def letters() -> PreTrainedTokenizerFast:
    """A token for each byte, `<s>` before every text, `</s>` as its end, nothing to pad with."""
    vocab = {letter: place for place, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    characters = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    characters.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    characters.decoder = decoders.ByteLevel()
    characters.add_special_tokens(["<s>", "</s>"])
    characters.post_processor = processors.TemplateProcessing(single="<s> $0", special_tokens=[("<s>", BEGIN)])
    return PreTrainedTokenizerFast(tokenizer_object=characters, bos_token="<s>", eos_token="</s>")


def config_of(architecture: str) -> PretrainedConfig:
    config = CONFIGS[architecture]()
    config.vocab_size, config.bos_token_id, config.pad_token_id = 258, BEGIN, None
    return config


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two layers and 128 positions with three heads, as `MtpModel.save` writes it, and its tokenizer."""
    folder = tmp_path_factory.mktemp("saved")
    model = model_of(config_of("llama"), num_heads=3)
    for head in model.heads:
        torch.nn.init.normal_(head.outer.weight)
    model.save(folder)
    letters().save_pretrained(folder / "model")
    return folder


def completer_of(folder: Path, **model_config: bool) -> Any:
    from mlops_tasks.completer import Completer

    completer = Completer()
    completer.load_context(SimpleNamespace(artifacts={"model": str(folder)}, model_config=model_config))
    return completer


@pytest.fixture(scope="module")
def completer(saved: Path) -> Any:
    return completer_of(saved / "model")


def ask(completer: Any, *prompts: Any, **params: Any) -> list[tuple[str, str]]:
    """Completion and finish reason of each prompt."""
    import pandas as pd

    answer = completer.predict(None, pd.DataFrame({"prompt": list(prompts)}), PLAIN | params)
    return list(answer.itertuples(index=False, name=None))


def greedy(model: PreTrainedModel, prompt: str, num_tokens: int) -> list[int]:
    """The tokens after a prompt, chosen one by one without padding or cache."""
    ids = [BEGIN, *letters()(prompt, add_special_tokens=False, split_special_tokens=True)["input_ids"]]
    start = len(ids)
    while len(ids) < start + num_tokens and ids[-1] != END:
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[start:]


def text_of(ids: Sequence[int]) -> str:
    return str(letters().decode([one for one in ids if one < BEGIN]))


@pytest.mark.parametrize("architecture", CONFIGS)
def test_prompts_of_several_lengths_are_completed_together_as_one_by_one(architecture: str, tmp_path: Path) -> None:
    model = model_of(config_of(architecture)).base
    model.save_pretrained(tmp_path)
    letters().save_pretrained(tmp_path)

    together = ask(completer_of(tmp_path), *PROMPTS)

    assert [text for text, _ in together] == [text_of(greedy(model, prompt, 12)) for prompt in PROMPTS]
    assert {reason for _, reason in together} == {"length"}


@pytest.mark.parametrize("is_chat", [False, True])
def test_a_prompt_becomes_the_tokens_that_the_model_was_trained_behind(saved: Path, is_chat: bool) -> None:
    given = ["<s>a</s>b", "def f(x):\n"]
    completer = completer_of(saved / "model", is_chat=is_chat)
    assert completer._encoded(given) == encode_prompts(given, letters(), is_chat=is_chat)


def test_a_completion_ends_where_the_model_ends_it_and_the_rows_beside_it_go_on(tmp_path: Path) -> None:
    model = model_of(config_of("llama")).base
    plain = [greedy(model, prompt, 12) for prompt in PROMPTS]
    ends_at = next(place for place, one in enumerate(plain[0]) if place and one not in plain[0][:place])
    # The token that the first row writes there, and the end, change places.
    swapped = [*range(258)]
    swapped[plain[0][ends_at]], swapped[END] = END, plain[0][ends_at]
    head = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight[swapped])
    model.save_pretrained(tmp_path)
    letters().save_pretrained(tmp_path)

    answers = ask(completer_of(tmp_path), *PROMPTS)

    assert answers[0] == (text_of(plain[0][:ends_at]), "stop")
    for prompt, (text, reason) in zip(PROMPTS, answers, strict=True):
        ids = greedy(model, prompt, 12)
        assert (text, reason) == (text_of(ids), "stop" if END in ids else "length")
    assert {reason for _, reason in answers} == {"stop", "length"}


def test_a_completion_ends_before_the_first_stop_string_and_the_rest_is_not_written(
    completer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = ask(completer, "x = ", max_new_tokens=30)[0][0]
    first, later = whole[3:5], whole[8:9]
    cut = min(whole.find(first), whole.find(later))
    widths: list[int] = []
    generate = completer.model.generate

    def watched(**given: Any) -> Any:
        generated = generate(**given)
        widths.append(generated.shape[1] - given["input_ids"].shape[1])
        return generated

    monkeypatch.setattr(completer.model, "generate", watched)
    assert ask(completer, "x = ", max_new_tokens=30, stop=[later, first]) == [(whole[:cut], "stop")]
    assert widths[0] < 30
    assert ask(completer, "x = " + first, max_new_tokens=1, stop=[first])[0][1] == "length", "the prompt may hold it"


def test_a_prompt_near_the_end_of_the_context_gets_what_is_left_and_takes_nothing_from_the_others(
    tmp_path: Path,
) -> None:
    model = model_of(config_of("gpt2-absolute")).base  # it has no 129th position to look up
    model.save_pretrained(tmp_path)
    letters().save_pretrained(tmp_path)
    long = "b" * 124  # with <s> 125 of 128 tokens
    completer = completer_of(tmp_path)
    assert ask(completer, long, max_new_tokens=None) == ask(completer, long), "nor does the usual limit go beyond it"
    answers = ask(completer, long, "x = ")
    assert [text for text, _ in answers] == [text_of(greedy(model, long, 3)), text_of(greedy(model, "x = ", 12))]


def test_more_prompts_than_a_batch_holds_come_back_in_their_order(
    completer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlops_tasks.completer._MAX_ROWS", 2)
    prompts = ["b" * 120, *PROMPTS, "c" * 121]
    assert ask(completer, *prompts) == [ask(completer, prompt)[0] for prompt in prompts]


def test_a_seed_gives_the_same_draw_again_and_none_gives_another(completer: Any) -> None:
    def drawn(seed: int | None, **how: float) -> list[tuple[str, str]]:
        return ask(completer, *PROMPTS, seed=seed, max_new_tokens=30, **{"temperature": 5.0, **how})

    first = drawn(7)
    torch.manual_seed(0)
    assert drawn(7) == first
    assert len({str(drawn(seed)) for seed in (7, 8)}) == 2
    torch.manual_seed(0)
    unseeded = drawn(None)
    torch.manual_seed(0)
    assert drawn(None) != unseeded, "a server that has just started must not repeat what another one said"
    before = torch.random.get_rng_state()
    drawn(7)
    assert torch.equal(torch.random.get_rng_state(), before), (
        "who has loaded it in a program of his own goes on as before"
    )
    assert drawn(7, top_p=1e-9) == ask(completer, *PROMPTS, max_new_tokens=30), "one token is left to choose from"


def test_habits_of_the_base_are_not_served(saved: Path, completer: Any, tmp_path: Path) -> None:
    shutil.copytree(saved / "model", tmp_path / "model")
    habits = {"repetition_penalty": 9.0, "do_sample": True, "temperature": 9.0, "max_length": 3, "eos_token_id": END}
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps(habits))
    assert ask(completer_of(tmp_path / "model"), *PROMPTS) == ask(completer, *PROMPTS)


def test_what_does_not_fit_the_memory_is_refused_with_a_way_out(
    completer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.exceptions import MlflowException

    def full(**given: Any) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(completer.model, "generate", full)
    with pytest.raises(MlflowException, match=r"4 prompts of up to 41 tokens .* memory of cpu. Send fewer"):
        ask(completer, *PROMPTS)


# Served


@dataclass(frozen=True)
class Served:
    """A champion on a real server, served from there."""

    environment: Environment
    folder: Path
    uri: str

    def post(self, body: Any) -> tuple[int, Any]:
        """Status and answer of a request."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.uri}/invocations", data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.status, json.loads(response.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())


@pytest.fixture(scope="module")
def served(saved: Path, tmp_path_factory: pytest.TempPathFactory, mlflow_database: Path) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    shutil.copy(mlflow_database, folder / "mlflow.db")
    with serving(folder, f"sqlite:///{folder / 'mlflow.db'}") as server:
        environment = Environment(store=str(folder / "store"), mlflow_uri=server)
        night = Night(environment, model=saved).run(STRONG, WEAK)
        params = {"seed": 0}
        with tracking.curve_logger(
            environment, stage_key="abc", experiment="wmtp/uniform/demo", params=params
        ) as curve:
            curve.log(1, {"loss": 2.0})
        assert promote(night)["outcome"] == "promoted"
        assert promote(night)["outcome"] == "promoted", "the same, said again"
        with serving_model(folder, server, f"models:/{NAME}@champion") as uri:
            yield Served(environment, folder, uri)


def rows(*prompts: Any) -> dict[str, Any]:
    return {"dataframe_records": [{"prompt": prompt} for prompt in prompts]}


@pytest.mark.slow
def test_the_champion_answers_where_this_package_is_not_to_be_had(served: Served, saved: Path) -> None:
    variables = without_this_package(served.folder, served.environment.mlflow_uri)
    tried = subprocess.run(
        [sys.executable, "-c", "import mlops_tasks"], env=variables, cwd=served.folder, capture_output=True, check=False
    )
    assert b"mlops_tasks is not to be had here" in tried.stderr
    model = AutoModelForCausalLM.from_pretrained(saved / "model")
    expected = [text_of(greedy(model, prompt, 9)) for prompt in PROMPTS]
    status, answer = served.post({**rows(*PROMPTS), "params": {"max_new_tokens": 9}})
    assert status == 200
    assert answer == {"predictions": [{"completion": text, "finish_reason": "length"} for text in expected]}
    stop = expected[1][4]
    for body in ({"inputs": {"prompt": ["x = "]}}, {"dataframe_split": {"columns": ["prompt"], "data": [["x = "]]}}):
        status, answer = served.post({**body, "params": {"max_new_tokens": 9, "stop": [stop]}})
        cut = {"completion": expected[1].partition(stop)[0], "finish_reason": "stop"}
        assert (status, answer) == (200, {"predictions": [cut]})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"dataframe_records": [{"promt": "x = "}]}, r"missing inputs \['prompt'\]"),
        ({"dataframe_records": []}, "prompt"),
        ({"dataframe_split": {"columns": ["prompt"], "data": []}}, "The request has no prompt. Send one or more rows"),
        ({"inputs": {"prompt": []}}, "The request has no prompt"),
        (rows("x = ", None), "The prompt of row 1 is nan; it must be a text"),
        (rows(""), "The prompt of row 0 is ''"),
        (rows(5), "The prompt of row 0 is 5; it must be a text"),
        (rows(["x", "y"]), "The prompt of row 0 is .*; it must be a text"),
        (rows("x = ", "b" * 127), "prompt of row 1 has 128 tokens, and the model's context of 128 .*Shorten it to 127"),
        ({**rows("x"), "params": {"max_new_tokens": 0}}, "max_new_tokens is 0; it must be from 1 to 128"),
        ({**rows("x"), "params": {"max_new_tokens": 129}}, "max_new_tokens is 129; it must be from 1 to 128"),
        ({**rows("x"), "params": {"temperature": None}}, "temperature is None; it must be 0"),
        ({**rows("x"), "params": {"max_new_tokens": "many"}}, "max_new_tokens.*many"),
        ({**rows("x"), "params": {"stop": ""}}, "1D array.*stop"),
        ({**rows("x"), "params": {"stop": ["\n", ""]}}, "stop is .*leave out what is empty"),
        ({**rows("x"), "params": {"temperature": -1}}, "temperature is -1.0; it must be 0"),
        ({**rows("x"), "params": {"temperature": 1e-8}}, r"or from 0.01 to 10"),
        ({**rows("x"), "params": {"temperature": float("nan")}}, "temperature is nan"),
        ({**rows("x"), "params": {"top_p": 0}}, "top_p is 0.0; it must be above 0"),
        ({**rows("x"), "params": {"seed": "x"}}, "seed"),
        ({**rows("x"), "params": {"seed": 2**70}}, "seed is 1180591620717411303424; it must be from 0 to"),
        ({**rows("x"), "params": [1]}, "Parameters must be a dictionary"),
        ({"prompts": ["x"]}, "must be a JSON dictionary with exactly one of the input fields"),
        (["x"], "must be a JSON dictionary"),
        (b"{", "valid JSON"),
        (b"\xff", "valid JSON"),
    ],
)  # fmt: skip
def test_a_bad_request_is_told_what_to_do(served: Served, body: Any, message: str) -> None:
    status, answer = served.post(body)
    assert status == 400, answer
    assert re.search(message, answer["message"]), answer


@pytest.mark.slow
def test_the_server_says_that_it_is_well_after_bad_requests_too(served: Served) -> None:
    served.post({**rows("x"), "params": {"max_new_tokens": 0}})
    for path in ("health", "ping"):
        with urllib.request.urlopen(f"{served.uri}/{path}", timeout=60) as response:
            assert response.status == 200


@pytest.fixture(scope="module")
def fetched(served: Served) -> Path:
    """The served model, as MLflow gives it to anyone."""
    import mlflow.artifacts

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", served.environment.mlflow_uri)
        return Path(mlflow.artifacts.download_artifacts(f"models:/{NAME}@champion"))


@pytest.mark.slow
def test_the_registered_folder_is_the_plain_base_to_transformers_and_all_heads_to_us(
    fetched: Path, saved: Path
) -> None:
    folder = fetched / "artifacts"
    plain, notes = AutoModelForCausalLM.from_pretrained(folder / "model", output_loading_info=True)
    assert not notes["missing_keys"] and not notes["unexpected_keys"]
    ours = MtpModel.with_saved_heads(load_model(folder / "model"), folder / HEADS_FILE)
    ids_BS, positions_BS = torch.arange(20)[None], torch.arange(20)[None]
    with torch.no_grad():
        hidden_SD = ours.hidden(ids_BS, positions_BS)[0]
        torch.testing.assert_close(ours.head_logits(hidden_SD, 1), plain(ids_BS).logits[0], atol=1e-5, rtol=1e-5)
        assert not torch.allclose(ours.head_logits(hidden_SD, 2), plain(ids_BS).logits[0], atol=0.1)
    assert ours.num_heads == 3
    assert (folder / HEADS_FILE).read_bytes() == (saved / HEADS_FILE).read_bytes()


@pytest.mark.slow
def test_the_lines_of_its_card_load_it(fetched: Path, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fetched / "artifacts" / "model"
    card = (folder / "README.md").read_text()
    (lines,) = re.findall(r"^```python\n(.*?)^```$", card, re.DOTALL | re.MULTILINE)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", served.environment.mlflow_uri)
    loaded: dict[str, Any] = {}
    exec(lines, loaded)
    assert type(loaded["model"]).__name__ == "LlamaForCausalLM"
    assert loaded["mtp"].num_heads == 3
    assert loaded["served"].metadata.signature.inputs.input_names() == ["prompt"]


@pytest.mark.slow
def test_the_registered_model_asks_for_what_it_imports_and_not_for_us(fetched: Path) -> None:
    wanted = [line.partition("==") for line in (fetched / "requirements.txt").read_text().splitlines()]
    assert {name for name, _, _ in wanted} == {"mlflow", "torch", "transformers", "tokenizers", "safetensors", "pandas"}
    assert all(version and "+" not in version for _, _, version in wanted)
    code = next(fetched.glob("*.py")).read_text()
    assert "import mlops_tasks" not in code and "from mlops_tasks" not in code


@pytest.mark.slow
def test_curves_that_arrived_while_it_trained_are_there_once(served: Served) -> None:
    with connection(served.environment) as client:
        version = client.get_model_version_by_alias(NAME, "champion")
        assert [point.value for point in client.get_metric_history(version.run_id, "loss")] == [2.0]
