"""Sources on S3: pinned without their bytes, pulled exactly as pinned, and below them everything as if they lay on disk."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from s3_server import BUCKET, S3Server

from mlops_tasks.__main__ import main
from mlops_tasks.config.environment import Environment, S3Access
from mlops_tasks.config.loading import load_recipe
from mlops_tasks.config.sources import FolderModel, MbppData
from mlops_tasks.data.pins import digest_of_model, digest_of_source
from mlops_tasks.data.problems import read_problems
from mlops_tasks.data.pull import pull
from mlops_tasks.errors import DataError, Unavailable, UserError
from mlops_tasks.pipeline import TASKS
from mlops_tasks.planning import plan
from mlops_tasks.recommendation import config_of
from mlops_tasks.stage import Attempt, decide, execute
from mlops_tasks.store import Store
from mlops_tasks.store.s3 import S3Backend


def lines(*task_ids: int) -> bytes:
    records = [
        {
            "task_id": task_id,
            "text": f"Write f{task_id}.",
            "code": f"def f{task_id}(x):\n    return x + {task_id}",
            "test_list": [f"assert f{task_id}(0) == {task_id}"],
        }
        for task_id in task_ids
    ]
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def safetensors(size: int) -> bytes:
    header = json.dumps({"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(size)


PROBLEMS = lines(1, 11, 511, 601, 602)
MODEL = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": safetensors(10),
    "tokenizer.json": b"{}",
    "README.md": b"unread",
}


@dataclass(frozen=True)
class Bucket:
    """A place of a test's own in the bucket."""

    backend: S3Backend

    @property
    def access(self) -> S3Access:
        return self.backend.access

    def uri(self, name: str) -> str:
        return f"{self.backend.uri}/{name}"

    def data(self, name: str) -> MbppData:
        return MbppData(kind="mbpp", path=self.uri(name))

    def model(self, name: str) -> FolderModel:
        return FolderModel(kind="folder", path=self.uri(name))


@pytest.fixture
def bucket(s3: S3Server, tmp_path: Path) -> Bucket:
    access = S3Access.model_validate(s3.access(tmp_path / "cache"))
    bucket = Bucket(S3Backend(BUCKET, f"sources/{tmp_path.name}", access))
    bucket.backend.write("data/problems.jsonl", PROBLEMS)
    for name, data in MODEL.items():
        bucket.backend.write(f"models/base/{name}", data)
    return bucket


def attempt(folder: Path, access: S3Access, **config: Any) -> Attempt:
    out = folder / "attempt"
    out.mkdir()
    environment = Environment(store=str(folder / "store"), mlflow_uri="sqlite:///unused.db", s3=access)
    store = Store.of(environment)
    return Attempt(config=config, inputs={}, folder=out, environment=environment, store=store, key="k", prefix="pull/k")


def pull_data(tmp_path: Path, bucket: Bucket, source: MbppData, pin: str | None) -> Attempt:
    made = attempt(tmp_path, bucket.access, data=source.model_dump(), on_contamination="refuse", pin=pin)
    pull(made)
    return made


def test_problems_are_pulled_from_an_object(tmp_path: Path, bucket: Bucket) -> None:
    source = bucket.data("data/problems.jsonl")
    made = pull_data(tmp_path, bucket, source, digest_of_source(source, bucket.access))
    assert [problem.id for problem in read_problems(made.folder / "train.parquet")] == ["601", "602"]
    assert sorted(file.name for file in made.folder.iterdir()) == [
        f"{split}.parquet" for split in ("prompt", "test", "train", "validation")
    ]


def test_a_model_is_pulled_from_a_prefix_in_parts_and_without_what_is_no_part_of_it(
    tmp_path: Path, bucket: Bucket
) -> None:
    weights = safetensors(40 * 2**20)
    (tmp_path / "model.safetensors").write_bytes(weights)
    bucket.backend.publish("models/base", tmp_path, ["model.safetensors"])
    bucket.backend.write("models/base/tokenizer_config.json", b"")
    bucket.backend.write("models/base/onnx/config.json", b"below")
    bucket.backend.write("models/base/README.md", b"---\nlicense: mit\n---\n")
    source = bucket.model("models/base")
    made = attempt(tmp_path, bucket.access, model=source.model_dump(), pin=digest_of_model(source, bucket.access))
    metrics = pull(made)
    assert metrics["files"] == ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    assert metrics["licence"] == "mit" and not (made.folder / "model" / "README.md").exists()
    assert (made.folder / "model" / "model.safetensors").read_bytes() == weights
    assert (made.folder / "model" / "tokenizer_config.json").read_bytes() == b""


def test_the_configuration_of_a_model_is_read_without_its_weights(bucket: Bucket) -> None:
    bucket.backend.write("models/bare/config.json", b'{"model_type": "llama", "num_hidden_layers": 7}')
    assert config_of(bucket.model("models/bare/"), bucket.access).num_hidden_layers == 7
    with pytest.raises(UserError, match=r"^s3://\S*/models/none has no configuration that transformers can read"):
        config_of(bucket.model("models/none"), bucket.access)


def test_a_pin_is_of_the_bytes_and_not_of_the_place(bucket: Bucket) -> None:
    for name, data in {**MODEL, "README.md": b"another"}.items():
        bucket.backend.write(f"models/copy/{name}", data)
    bucket.backend.write("data/copy.jsonl", PROBLEMS)
    access = bucket.access
    data = digest_of_source(bucket.data("data/problems.jsonl"), access)
    model = digest_of_model(bucket.model("models/base"), access)
    assert digest_of_source(bucket.data("data/copy.jsonl"), access) == data
    assert digest_of_model(bucket.model("models/copy/"), access) == model
    bucket.backend.write("data/copy.jsonl", PROBLEMS.replace(b"f601", b"g601"))
    bucket.backend.write("models/copy/tokenizer.json", b"[]")
    assert digest_of_source(bucket.data("data/copy.jsonl"), access) != data
    assert digest_of_model(bucket.model("models/copy"), access) != model


def test_what_changed_since_the_plan_is_refused(tmp_path: Path, bucket: Bucket) -> None:
    source, model = bucket.data("data/problems.jsonl"), bucket.model("models/base")
    pins = digest_of_source(source, bucket.access), digest_of_model(model, bucket.access)
    bucket.backend.write("data/problems.jsonl", lines(601))
    bucket.backend.write("models/base/config.json", b'{"model_type": "gpt2"}')
    with pytest.raises(DataError, match=r"s3://.*/problems\.jsonl changed while the run was going on"):
        pull_data(tmp_path, bucket, source, pins[0])
    (tmp_path / "model").mkdir()
    with pytest.raises(DataError, match=r"s3://.*/models/base changed while the run was going on"):
        pull(attempt(tmp_path / "model", bucket.access, model=model.model_dump(), pin=pins[1]))


def test_an_object_that_is_replaced_while_it_is_fetched_is_refused(
    tmp_path: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = S3Backend.fetch

    def late(self: S3Backend, *arguments: Any) -> bool:
        bucket.backend.write("data/problems.jsonl", lines(601))
        return real(self, *arguments)

    monkeypatch.setattr(S3Backend, "fetch", late)
    source = bucket.data("data/problems.jsonl")
    with pytest.raises(
        DataError, match=r"s3://.*/problems\.jsonl changed while it was fetched: .*a name of its own"
    ) as caught:
        pull_data(tmp_path, bucket, source, digest_of_source(source, bucket.access))
    assert caught.value.exit_code == 65


def test_what_is_not_there_is_told_with_what_lies_beside_it(bucket: Bucket) -> None:
    with pytest.raises(UserError, match=r"no data file s3://.*/data/none\.jsonl\. Beside it: problems\.jsonl\. Set"):
        digest_of_source(bucket.data("data/none.jsonl"), bucket.access)
    with pytest.raises(UserError, match=r"no data file s3://.*Beside it: no \.jsonl or \.json file"):
        digest_of_source(bucket.data("elsewhere/none.jsonl"), bucket.access)
    with pytest.raises(UserError, match=r"There is no data file s3://wmtp\. Beside it"):
        digest_of_source(MbppData(kind="mbpp", path="s3://wmtp"), bucket.access)
    with pytest.raises(UserError, match=r"no model folder s3://.*/models/none\. .*save_pretrained"):
        digest_of_model(bucket.model("models/none"), bucket.access)
    with pytest.raises(UserError, match=r"s3://nowhere.* refuses us: .*NoSuchBucket"):
        digest_of_source(MbppData(kind="mbpp", path="s3://nowhere/a.jsonl"), bucket.access)


def test_a_scheme_that_nobody_knows_is_refused(bucket: Bucket) -> None:
    with pytest.raises(
        UserError, match=r"gs://b/a\.jsonl has the scheme gs; known are s3://bucket/key and plain paths"
    ):
        digest_of_source(MbppData(kind="mbpp", path="gs://b/a.jsonl"), bucket.access)
    with pytest.raises(UserError, match="has the scheme https"):
        digest_of_model(FolderModel(kind="folder", path="https://b/model"), bucket.access)


def test_a_server_that_is_away_is_tried_again_later(bucket: Bucket) -> None:
    access = bucket.access.model_copy(update={"endpoint": "http://127.0.0.1:9"})
    with pytest.raises(Unavailable, match=r"s3://wmtp \(http://127\.0\.0\.1:9\) does not answer"):
        digest_of_source(bucket.data("data/problems.jsonl"), access)


def test_messages_about_bad_content_name_the_uri(tmp_path: Path, bucket: Bucket) -> None:
    bucket.backend.write("data/bad.jsonl", PROBLEMS + b"{")
    with pytest.raises(UserError, match=r"^s3://\S*/data/bad\.jsonl, line 6: broken JSON"):
        pull_data(tmp_path, bucket, bucket.data("data/bad.jsonl"), None)
    bucket.backend.write("models/base/config.json", b"{}")
    (tmp_path / "model").mkdir()
    with pytest.raises(UserError, match=r"^s3://\S*/models/base/config\.json has no model_type"):
        pull(attempt(tmp_path / "model", bucket.access, model=bucket.model("models/base").model_dump()))


def test_a_uri_in_a_recipe_stays_as_it_is(tmp_path: Path) -> None:
    write_recipe(tmp_path, data="s3://b/data/p.jsonl", model="models/base")
    recipe = load_recipe(tmp_path / "recipe.yaml")
    assert recipe.data.source.path == "s3://b/data/p.jsonl"  # type: ignore[union-attr]
    assert recipe.model.source.path == str(tmp_path / "models" / "base")  # type: ignore[union-attr]


def write_recipe(folder: Path, *, data: str, model: str) -> Path:
    recipe = {
        "name": "tiny",
        "data": {"source": {"kind": "mbpp", "path": data}},
        "model": {"name": "tiny", "source": {"kind": "folder", "path": model}},
        "scoring": {"scorer": "uniform"},
        "train": {"steps": 1},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder / "recipe.yaml"


@pytest.mark.parametrize("store", ["folder", "s3"])
def test_the_same_bytes_from_disk_and_from_s3_give_everything_below_the_same_key(
    tmp_path: Path, bucket: Bucket, store: str
) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "problems.jsonl").write_bytes(PROBLEMS)
    for name, data in MODEL.items():
        (tmp_path / "base" / name).write_bytes(data)
    environment = Environment(
        store=str(tmp_path / "store") if store == "folder" else bucket.uri("store"),
        s3=bucket.access,
        mlflow_uri=f"sqlite:///{tmp_path / 'none.db'}",
    )
    places = {
        "local": {"data": str(tmp_path / "problems.jsonl"), "model": str(tmp_path / "base")},
        "remote": {"data": bucket.uri("data/problems.jsonl"), "model": bucket.uri("models/base")},
        "mixed": {"data": bucket.uri("data/problems.jsonl"), "model": str(tmp_path / "base")},
    }
    outcomes, keys = {}, set()
    for name, paths in places.items():
        run = plan(environment, f"runs/laptop/dag/{name}", recipe=write_recipe(tmp_path, **paths))
        outcomes[name] = [
            execute(run, TASKS[task], tasks=TASKS).outcome for task in ("pull_data", "pull_model", "score")
        ]
        keys.add(decide(run, TASKS["train"], tasks=TASKS).key)
    # Another pin runs `pull` once more; what it yields is the same, so there is one training.
    assert outcomes == {
        "local": ["run", "run", "skipped"],
        "remote": ["run", "run", "skipped"],
        "mixed": ["hit", "hit", "skipped"],
    }
    assert len(keys) == 1


def test_check_data_reads_a_file_on_s3(tmp_path: Path, bucket: Bucket, capsys: pytest.CaptureFixture[str]) -> None:
    environment = tmp_path / "environment.yaml"
    tree = {"store": "store", "mlflow_uri": "sqlite:///mlflow.db", "s3": bucket.access.model_dump(mode="json")}
    environment.write_text(yaml.safe_dump(tree))
    assert main(["check-data", bucket.uri("data/problems.jsonl"), "--env", str(environment)]) == 0
    assert "5 of 5 reference solutions pass their tests" in capsys.readouterr().out
