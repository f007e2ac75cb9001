"""The stage: files of a snapshot, pins, contamination, whole models, a hub that answers or does not."""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import huggingface_hub.constants
import pytest

from mlops_tasks.config.environment import Environment, S3Access
from mlops_tasks.config.sources import FolderModel, HubModel, MbppData
from mlops_tasks.data.pins import digest_of_model, digest_of_source
from mlops_tasks.data.problems import read_problems
from mlops_tasks.data.pull import pull
from mlops_tasks.errors import DataError, Unavailable, UserError
from mlops_tasks.recommendation import config_of
from mlops_tasks.stage import Attempt
from mlops_tasks.store import Store

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def attempt(folder: Path, **config: Any) -> Attempt:
    out = folder / "attempt"
    out.mkdir()
    environment = Environment(store=str(folder / "store"), mlflow_uri="sqlite:///unused.db")
    store = Store.open(environment.store)
    return Attempt(config=config, inputs={}, folder=out, environment=environment, store=store, key="k", prefix="pull/k")


def record(task_id: int, name: str, text: str | None = None, code: str | None = None) -> dict[str, Any]:
    return {
        "task_id": task_id,
        "text": text or f"Write {name}.",
        "code": code or f"def {name}(x):\n    return x",
        "test_list": [f"assert {name}(1) == 1"],
    }


def write_data(folder: Path, *records: dict[str, Any]) -> dict[str, Any]:
    """A file of problems; the source's settings as they stand in a stage's config."""
    path = folder / "problems.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in records))
    return {"kind": "mbpp", "path": str(path)}


def data_pin(source: dict[str, Any]) -> str:
    return digest_of_source(MbppData.model_validate(source))


CLEAN = [record(1, "one"), record(11, "two"), record(511, "three"), record(602, "four"), record(601, "five")]
CONTAMINATED = [
    *CLEAN,
    record(603, "six", text="write  TWO."),
    record(604, "three", text="Write it otherwise.", code="def three(x):  # a comment\n    return (x)"),
]


def ids(folder: Path, split: str) -> list[str]:
    return [problem.id for problem in read_problems(folder / f"{split}.parquet")]


def test_problems_lie_in_a_table_a_split(tmp_path: Path) -> None:
    source = write_data(tmp_path, *CLEAN)
    made = attempt(tmp_path, data=source, on_contamination="refuse", pin=data_pin(source))
    metrics = pull(made)
    assert {split: ids(made.folder, split) for split in ("prompt", "train", "validation", "test")} == {
        "prompt": ["1"],
        "train": ["601", "602"],
        "validation": ["511"],
        "test": ["11"],
    }
    expected = {
        "num_prompt": 1,
        "num_train": 2,
        "num_validation": 1,
        "num_test": 1,
        "origins": [{"source": "own", "licence": "unknown", "num_problems": 5}],
        "num_unsupported": 0,
        "num_dropped": 0,
        "dropped": [],
    }
    assert metrics == expected


def test_an_absent_split_is_an_empty_table(tmp_path: Path) -> None:
    made = attempt(tmp_path, data=write_data(tmp_path, record(601, "one")), on_contamination="refuse")
    pull(made)
    assert ids(made.folder, "test") == [] and ids(made.folder, "train") == ["601"]


def test_the_same_file_elsewhere_gives_the_same_bytes(tmp_path: Path) -> None:
    digests = []
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        made = attempt(tmp_path / name, data=write_data(tmp_path / name, *CLEAN), on_contamination="refuse")
        pull(made)
        digests.append([hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(made.folder.iterdir())])
    assert digests[0] == digests[1]


def test_contamination_ends_the_run_with_65_and_every_pair(tmp_path: Path) -> None:
    made = attempt(tmp_path, data=write_data(tmp_path, *CONTAMINATED), on_contamination="refuse")
    with pytest.raises(
        DataError, match=r"(?s)603 \(train\) and 11 \(test\) have the same text.*604 .*same code"
    ) as caught:
        pull(made)
    assert caught.value.exit_code == 65
    assert "'drop'" in str(caught.value)
    assert list(made.folder.iterdir()) == []


def test_contaminated_training_problems_are_dropped_on_request_and_told(tmp_path: Path) -> None:
    made = attempt(tmp_path, data=write_data(tmp_path, *CONTAMINATED), on_contamination="drop")
    metrics = pull(made)
    assert ids(made.folder, "train") == ["601", "602"] and ids(made.folder, "test") == ["11"]
    assert (metrics["num_train"], metrics["num_dropped"]) == (2, 2)
    assert metrics["dropped"] == [
        "603 (train) and 11 (test) have the same text",
        "604 (train) and 511 (validation) have the same code",
    ]


def test_dropping_every_training_problem_is_refused(tmp_path: Path) -> None:
    source = write_data(tmp_path, record(11, "one"), record(601, "one"))
    with pytest.raises(DataError, match="All 1 training problems equal evaluation problems"):
        pull(attempt(tmp_path, data=source, on_contamination="drop"))


def test_what_a_reference_learns_is_held_against_what_it_will_score(tmp_path: Path) -> None:
    snapshot = attempt(tmp_path, data=write_data(tmp_path, *CLEAN), on_contamination="refuse")
    pull(snapshot)
    draft = snapshot.store.begin("pull/data")
    for file in snapshot.folder.iterdir():
        shutil.copy(file, draft.folder)
    scored = snapshot.store.commit(draft, {"metrics": {}})
    (tmp_path / "reference").mkdir()
    others = [record(701, "six"), record(702, "other", text="WRITE four."), record(703, "three", text="Another text.")]
    source = write_data(tmp_path / "reference", *others)

    refusing = attempt(tmp_path / "reference", data=source, on_contamination="refuse")
    with pytest.raises(
        DataError,
        match=r"(?s)Training problems of the reference equal .* problems that the reference will score.*702 .* and 602 ",
    ) as caught:
        pull(replace(refusing, inputs={"data": scored}))
    assert caught.value.exit_code == 65

    metrics = pull(replace(refusing, inputs={"data": scored}, config={"data": source, "on_contamination": "drop"}))
    assert ids(refusing.folder, "train") == ["701"]
    assert metrics["dropped"] == [
        "702 (train) and 602 (train) have the same text",
        "703 (train) and 511 (validation) have the same code",
    ]


def test_published_mbpp_drops_five_training_problems(mbpp_folder: Path, tmp_path: Path) -> None:
    source = {"kind": "mbpp", "path": str(mbpp_folder / "mbpp.jsonl")}
    metrics = pull(attempt(tmp_path, data=source, on_contamination="drop"))
    assert (metrics["num_train"], metrics["num_dropped"], len(metrics["dropped"])) == (369, 5, 6)


def test_data_that_changed_since_the_plan_is_refused(tmp_path: Path) -> None:
    source = write_data(tmp_path, *CLEAN)
    pin = data_pin(source)
    write_data(tmp_path, *CLEAN, record(700, "seven"))
    with pytest.raises(DataError, match=rf"problems\.jsonl changed while the run was going on: .* {pin} when"):
        pull(attempt(tmp_path, data=source, on_contamination="refuse", pin=pin))


def test_generated_problems_are_pulled_like_others(tmp_path: Path) -> None:
    source = {"kind": "generated", "num_train": 7, "num_validation": 3, "num_test": 2}
    made = attempt(tmp_path, data=source, on_contamination="refuse")
    metrics = pull(made)
    assert [metrics[f"num_{split}"] for split in ("prompt", "train", "validation", "test")] == [10, 7, 3, 2]
    assert read_problems(made.folder / "train.parquet")[0].source == "generated"


# Models.


def safetensors() -> bytes:
    header = json.dumps({"w": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}).encode()
    return struct.pack("<Q", len(header)) + header + b"\0"


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    """A folder that has all that a model needs, and more."""
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "model.safetensors").write_bytes(safetensors())
    (folder / "tokenizer.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Base\n")
    (folder / "modeling_own.py").write_text("raise SystemExit")
    return folder


def pull_folder(tmp_path: Path, folder: Path) -> tuple[Path, dict[str, Any]]:
    source = FolderModel(kind="folder", path=str(folder))
    made = attempt(tmp_path, model=source.model_dump(), pin=digest_of_model(source))
    return made.folder / "model", pull(made)


def test_a_folder_is_copied_without_what_is_no_part_of_a_model(tmp_path: Path, model_folder: Path) -> None:
    folder, metrics = pull_folder(tmp_path, model_folder)
    names = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    assert sorted(file.name for file in folder.iterdir()) == metrics["files"] == names
    assert metrics["bytes"] == sum((model_folder / name).stat().st_size for name in names)
    assert metrics["licence"] == "apache-2.0"


@pytest.mark.parametrize(
    "card",
    [None, "", "# Base\n\nlicense: mit\n", "---\ntags: [code]\n---\n", "---\nlicense: [\n---\n", "---\n- mit\n---\n", "---\nlicense: [mit, gpl]\n---\n"],
)  # fmt: skip
def test_a_licence_is_known_only_where_the_models_card_declares_one(
    tmp_path: Path, model_folder: Path, card: str | None
) -> None:
    (model_folder / "README.md").unlink()
    if card is not None:
        (model_folder / "README.md").write_text(card)
    assert pull_folder(tmp_path, model_folder)[1]["licence"] is None


def test_weights_in_pieces_are_a_whole_model_if_every_piece_is_there(tmp_path: Path, model_folder: Path) -> None:
    pieces = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    (model_folder / "model.safetensors").rename(model_folder / pieces[0])
    index = {"weight_map": {"a": pieces[0], "b": pieces[1]}}
    (model_folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"model-00002-of-00002\.safetensors missing"):
        pull_folder(tmp_path, model_folder)
    (model_folder / pieces[1]).write_bytes(safetensors())
    shutil.rmtree(tmp_path / "attempt")
    folder, _ = pull_folder(tmp_path, model_folder)
    assert all((folder / piece).is_file() for piece in pieces)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", None, r"no whole model: config\.json missing; found .*model\.safetensors"),
        ("model.safetensors", None, r"model\.safetensors \(weights as safetensors\) missing.*save_pretrained"),
        ("tokenizer.json", None, r"a tokenizer \(tokenizer\.json\) missing"),
        ("config.json", b"{", r"config\.json is no JSON"),
        ("config.json", b"[]", r"config\.json holds list; expected a JSON object"),
        ("config.json", b"{}", r"config\.json has no model_type"),
        (
            "model.safetensors",
            b"version https://git-lfs.github.com/spec/v1\n",
            r"is no safetensors file but a git-LFS pointer",
        ),
        ("model.safetensors", b"\x80\x02}q\x00", r"is no safetensors file but cut off or another format"),
        ("model.safetensors", struct.pack("<Q", 10**6) + b"{}", r"is no safetensors file but cut off"),
    ],
)
def test_a_folder_that_is_no_whole_model_is_refused_with_what_is_wrong(
    tmp_path: Path, model_folder: Path, name: str, content: bytes | None, message: str
) -> None:
    if content is None:
        (model_folder / name).unlink()
    else:
        (model_folder / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        pull_folder(tmp_path, model_folder)


def test_pickled_weights_are_refused_with_the_reason(tmp_path: Path, model_folder: Path) -> None:
    (model_folder / "model.safetensors").rename(model_folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model\.bin is a pickle, which runs code when it is opened"):
        pull_folder(tmp_path, model_folder)


def test_a_model_that_changed_since_the_plan_is_refused(tmp_path: Path, model_folder: Path) -> None:
    source = FolderModel(kind="folder", path=str(model_folder))
    pin = digest_of_model(source)
    (model_folder / "tokenizer.json").write_text('{"changed": true}')
    with pytest.raises(DataError, match="base changed while the run was going on"):
        pull(attempt(tmp_path, model=source.model_dump(), pin=pin))


def test_a_random_model_is_built_from_its_settings(tmp_path: Path) -> None:
    source = {"kind": "random", "hidden_size": 32, "num_layers": 1, "vocab_size": 400}
    made = attempt(tmp_path, model=source)
    metrics = pull(made)
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(metrics["files"])
    assert sorted(file.name for file in (made.folder / "model").iterdir()) == metrics["files"]


class HubHandler(BaseHTTPRequestHandler):
    """As much of the hub's protocol as a pull speaks."""

    files: ClassVar[dict[str, bytes]] = {}
    asked: ClassVar[list[str]] = []
    broken: ClassVar[bool] = False

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        path = self.path.partition("?")[0]
        self.asked.append(path)
        status, headers, body = self._found(path)
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def _found(self, path: str) -> tuple[int, dict[str, str], bytes]:
        if self.broken:
            return 500, {}, b"{}"
        if not path.removeprefix("/api/models").startswith("/own/coder"):
            return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"
        if path in ("/api/models/own/coder/revision/main", f"/api/models/own/coder/revision/{COMMIT}"):
            siblings = [{"rfilename": name} for name in self.files]
            answer: Any = {"id": "own/coder", "modelId": "own/coder", "sha": COMMIT, "siblings": siblings}
            return 200, {"Content-Type": "application/json"}, json.dumps(answer).encode()
        if path == f"/api/models/own/coder/tree/{COMMIT}":
            answer = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in self.files.items()
            ]
            return 200, {"Content-Type": "application/json"}, json.dumps(answer).encode()
        name = path.removeprefix(f"/own/coder/resolve/{COMMIT}/")
        if name in self.files:
            etag = hashlib.sha1(self.files[name]).hexdigest()
            return 200, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}, self.files[name]
        return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"

    def log_message(self, format: str, *args: Any) -> None:
        """Silent."""


@pytest.fixture
def hub(tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[HubHandler]]:
    """A hub on this machine that has one model, `own/coder`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), HubHandler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
    monkeypatch.setattr(
        huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # its waits between tries
    HubHandler.files = {file.name: file.read_bytes() for file in model_folder.iterdir()}
    HubHandler.asked = []
    HubHandler.broken = False
    yield HubHandler
    server.shutdown()
    server.server_close()
    thread.join()


HUB_MODEL = HubModel(kind="hub", repo="own/coder")


def test_a_hubs_revision_is_pinned_as_a_commit_and_only_a_models_files_are_fetched(
    tmp_path: Path, hub: type[HubHandler]
) -> None:
    pin = digest_of_model(HUB_MODEL)
    assert pin == COMMIT
    made = attempt(tmp_path, model=HUB_MODEL.model_dump(), pin=pin)
    metrics = pull(made)
    names = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    assert sorted(file.name for file in (made.folder / "model").iterdir()) == metrics["files"] == names
    assert (made.folder / "model" / "model.safetensors").read_bytes() == hub.files["model.safetensors"]
    assert metrics["licence"] == "apache-2.0"
    assert not [path for path in hub.asked if path.endswith(".py")]


def test_a_repository_or_revision_that_is_not_there_is_the_users_mistake(tmp_path: Path, hub: type[HubHandler]) -> None:
    with pytest.raises(UserError, match=r"The hub has no model 'own/nothing' at revision 'main'.*HF_TOKEN"):
        digest_of_model(HubModel(kind="hub", repo="own/nothing"))
    with pytest.raises(UserError, match=r"The hub has no model 'own/coder' at revision 'v9'"):
        digest_of_model(HubModel(kind="hub", repo="own/coder", revision="v9"))
    with pytest.raises(UserError, match=r"The hub has no model 'own/coder' at revision 'aaaa"):
        pull(attempt(tmp_path, model=HUB_MODEL.model_dump(), pin="a" * 40))


def test_a_name_that_no_model_can_have_is_the_users_mistake() -> None:
    with pytest.raises(UserError, match="'a/b/c' cannot be the name of a model on the hub"):
        digest_of_model(HubModel(kind="hub", repo="a/b/c"))


def test_a_model_on_the_hub_without_safetensors_is_refused(tmp_path: Path, hub: type[HubHandler]) -> None:
    del hub.files["model.safetensors"]
    with pytest.raises(UserError, match=rf"own/coder at commit {COMMIT} is no whole model: model.safetensors"):
        pull(attempt(tmp_path, model=HUB_MODEL.model_dump(), pin=COMMIT))


def test_a_hub_that_is_broken_or_away_is_tried_again_later(
    tmp_path: Path, hub: type[HubHandler], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.broken = True
    with pytest.raises(Unavailable, match=r"did not give own/coder at main: .*Try again later"):
        digest_of_model(HUB_MODEL)
    with pytest.raises(Unavailable, match=rf"did not give own/coder at {COMMIT}: .*Try again later"):
        pull(attempt(tmp_path, model=HUB_MODEL.model_dump(), pin=COMMIT))
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    for ask in (digest_of_model, lambda model: config_of(model, S3Access())):
        with pytest.raises(Unavailable, match=r"did not give own/coder at main: .*refused"):
            ask(HUB_MODEL)


def test_the_configuration_of_a_hubs_model_is_fetched_alone(hub: type[HubHandler]) -> None:
    assert config_of(HUB_MODEL, S3Access()).model_type == json.loads(hub.files["config.json"])["model_type"]
    assert {path.rpartition("/")[2] for path in hub.asked if "/resolve/" in path} == {"config.json"}
    del hub.files["config.json"]
    with pytest.raises(UserError, match=r"^own/coder has no configuration .* Name a model with a config\.json"):
        config_of(HUB_MODEL, S3Access())
