"""A model's card: what it is, what it was made from and measured by, and how to load it.

`promote` writes it, for it comes last and has all the facts: as README.md beside the weights in MLflow, with the front matter that the
Hugging Face hub reads, and in short on the version. It is in no artifact of the store: `generate` is keyed by the model's files, so a
card among them would make another model of the same weights, and evaluate it anew. All is read from the spec and the manifests; what
nobody recorded is not said. Nothing in it depends on the clock: a repeated `promote` writes the same card.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mlops_tasks.config.settings import Settings
from mlops_tasks.config.sources import DataSource, FolderModel, GeneratedData, HubModel
from mlops_tasks.data.protocols import protocol_named
from mlops_tasks.ledger import Amount
from mlops_tasks.pipeline import EVALUATIONS
from mlops_tasks.stage import Run
from mlops_tasks.store import Artifact
from mlops_tasks.tracking import Logged

_SHORT = 12
_NUM_SHOWN = 3
# Known by the SHA-256 of the file as it was published (`data.sources.mbpp`).
_HUB_NAMES = {"mbpp": "google-research-datasets/mbpp", "mbpp-sanitized": "google-research-datasets/mbpp"}


@dataclass(frozen=True)
class Card:
    """Of one version."""

    run: Run
    """The night that registers it, or evaluates it again."""
    train: Artifact
    version: str
    """Its number; empty: it is not registered yet."""
    compared: str
    """The gate's sentence on candidate and baseline."""

    def readme(self) -> str:
        """The whole card, in Markdown behind its front matter."""
        sections = {
            "Data": self._data(),
            "Training": self._training(),
            "Evaluation": self._evaluation(),
            "Limits": self._limits(),
            "How to load it": self._loading(),
            "Lineage": self._lineage(),
            "Cost": self._cost(),
        }
        text = [f"# {self._name}, version {self.version}", self._summary(), _sections(sections)]
        return f"---\n{self._front_matter()}\n---\n\n" + "\n\n".join(text) + "\n"

    def of_candidate(self) -> str:
        """What whoever decides on a candidate should know, in Markdown."""
        sections = {
            "Evaluation": self._evaluation(),
            "Training": self._training(),
            "Data": self._data(),
            "Cost": self._cost(),
        }
        return f"{self._summary()}\n\n{_sections(sections)}"

    def description(self, logged: Logged) -> str:
        """The card in short, with links into MLflow.

        Args:
            logged: where the training lies there.
        """
        place = f"#/experiments/{logged.experiment_id}"
        rows = [(part, *_measured(scores)) for (who, part), scores in self._scores.items() if who == "candidate"]
        links = [
            f"[training run]({place}/runs/{logged.run_id})",
            f"[model and its card, artifacts/model/README.md]({place}/models/{logged.model_id})",
            f"report and spec: `{self.run.store.uri}/{self.run.prefix}`",
            f"artifact: `{self.train.uri}`",
        ]
        text = [
            self._summary(),
            self.compared,
            _table(("set", *_MEASURED), rows),
            "\n".join(f"- {one}" for one in links),
        ]
        return "\n\n".join(text)

    @property
    def _name(self) -> str:
        return self.run.spec.recipe.model.name

    @cached_property
    def _pulled(self) -> Mapping[str, Artifact]:
        """What was pulled, by task."""
        found = {task: self.run.artifact(task) for task in self.run.spec.pins}
        return {task: artifact for task, artifact in found.items() if artifact is not None}

    @cached_property
    def _scores(self) -> Mapping[tuple[str, str], Mapping[str, Any]]:
        """Metrics of `judge`, by whose they are and on which set."""
        judged = {one: self.run.artifact("judge", index) for index, one in enumerate(EVALUATIONS)}
        return {one: artifact.metrics for one, artifact in judged.items() if artifact is not None}

    @cached_property
    def _made_from(self) -> Sequence[Artifact]:
        """The model, and all that it was made from, each once; what is not in the store any more is left out."""
        waiting, found = [self.train], dict[str, Artifact]()
        while waiting:
            one = waiting.pop(0)
            if one.prefix not in found:
                found[one.prefix] = one
                given = one.manifest["inputs"].values()
                inputs = [one.store.version_at(each["artifact"], each["digest"], each["files"]) for each in given]
                waiting += [each for each in inputs if each is not None]
        return list(found.values())

    def _front_matter(self) -> str:
        from huggingface_hub import ModelCardData

        source = self.run.spec.recipe.model.source
        licence = self._pulled["pull_model"].metrics["licence"]
        hub_names = {_HUB_NAMES[one["source"]] for one in self._origins("pull_data") if one["source"] in _HUB_NAMES}
        data = ModelCardData(
            model_name=self._name,
            base_model=source.repo if isinstance(source, HubModel) else None,
            license=licence.lower() if licence else None,
            datasets=sorted(hub_names) or None,
            library_name="transformers",
            pipeline_tag="text-generation",
            tags=["code", "python", "multi-token-prediction", f"token-weights-{algorithm_of(self.run)}"],
            eval_results=list(self._results()),
        )
        return str(data.to_yaml()).strip()

    def _results(self) -> Iterator[Any]:
        from huggingface_hub import EvalResult

        recipe = self.run.spec.recipe
        sources = [_HUB_NAMES.get(one["source"], one["source"]) for one in self._origins("pull_data")[:_NUM_SHOWN]]
        for (who, part), scores in self._scores.items():
            asked = {name: scores[name] for name in _ASKED} | {"max_new_tokens": recipe.evaluation.max_new_tokens}
            for k, share in scores["pass_at_k"].items() if who == "candidate" else ():
                yield EvalResult(
                    task_type="text-generation",
                    dataset_type=" + ".join(sources),
                    dataset_name=f"{recipe.name}, {part} set",
                    dataset_split=getattr(recipe.evaluation, part).split,
                    metric_type=f"pass@{k}",
                    metric_name=f"pass@{k}",
                    metric_value=round(share, 4),
                    metric_args={**asked, "interval_95": [round(end, 4) for end in scores["pass_at_k_interval"][k]]},
                )

    def _origins(self, task: str) -> list[dict[str, Any]]:
        """Where a snapshot's problems come from, the largest part first; empty where it is a model."""
        found: list[dict[str, Any]] = self._pulled[task].metrics.get("origins", [])
        return sorted(found, key=lambda one: -int(one["num_problems"]))

    def _summary(self) -> str:
        recipe, metrics = self.run.spec.recipe, self.train.metrics
        origins = self._origins("pull_data")
        sources = ", ".join(f"{one['source']} ({one['licence']})" for one in origins[:_NUM_SHOWN])
        others = f" and {len(origins) - _NUM_SHOWN} other sources" if len(origins) > _NUM_SHOWN else ""
        heads = recipe.train.num_heads
        return (
            f"A causal language model that writes Python: {self._base()}, trained for {metrics['steps']:,} steps on "
            f"{metrics['num_examples']:,} problems of {sources}{others} with `{algorithm_of(self.run)}` token weights and "
            f"{f'{heads} heads that predict 1 to {heads} tokens ahead' if heads > 1 else 'one head'}."
        )

    def _base(self) -> str:
        source, pin = self.run.spec.recipe.model.source, self.run.spec.pins["pull_model"]
        if isinstance(source, HubModel):
            return f"[{source.repo}](https://huggingface.co/{source.repo}) at commit `{pin[:_SHORT]}`"
        if isinstance(source, FolderModel):
            return f"the model `{Path(source.path).name}` (digest `{pin[:_SHORT]}`)"
        return f"a small model with random weights ({_settings(source)})"

    def _data(self) -> str:
        rows = [
            (use, one["source"], one["licence"], f"{one['num_problems']:,}")
            for task, use in (("pull_data", "train and evaluate"), ("pull_reference", "train the reference"))
            if task in self._pulled
            for one in self._origins(task)
        ]
        counts = self._pulled["pull_data"].metrics
        splits = ", ".join(f"{counts[f'num_{split}']:,} {split}" for split in ("train", "validation", "test", "prompt"))
        licence = self._pulled["pull_model"].metrics["licence"]
        return "\n\n".join(
            [
                _table(("for", "source", "licence", "problems"), rows),
                f"Splits: {splits}. Left out: {counts['num_dropped']:,} training problems that equal an evaluation problem in text or "
                f"code, {counts['num_unsupported']:,} that no program could be judged by.",
                f"Base model: {self._base()}; its licence: {licence or 'not declared beside its weights'}.",
                *(self._drawn(task) for task in self._pulled if task != "pull_model"),
            ]
        )

    def _drawn(self, task: str) -> str:
        recipe = self.run.spec.recipe
        reference = recipe.reference
        source: DataSource | None = recipe.data.source if task == "pull_data" else getattr(reference, "data", None)
        made = (
            f" Made up by `mlops_tasks.data.generated`: {_settings(source)}."
            if isinstance(source, GeneratedData)
            else ""
        )
        return f"`{task}` pinned its source at `{self.run.spec.pins[task][:_SHORT]}`.{made}"

    def _training(self) -> str:
        recipe, metrics = self.run.spec.recipe, self.train.metrics
        train, num_ranks = recipe.train, self.train.manifest["environment"]["train"]["num_ranks"]
        is_uniform, verdict = algorithm_of(self.run) == "uniform", _critic(self.run).get("critic_verdict")
        early = ", stopped early" if metrics["stopped_early"] else ""
        before, after = (_number(metrics[f"validation_nats_{when}"]) for when in ("before", "after"))
        reference = f", reference {recipe.reference.kind}" if recipe.reference else ""
        heads_rate = (
            "" if train.new_head_learning_rate is None else f", of heads 2 and up {train.new_head_learning_rate:g}"
        )
        rows = [
            ("algorithm", f"{_settings(recipe.scoring)}{reference}"),
            ("token weights", "all 1" if is_uniform else _settings(recipe.weighting)),
            *([("critic", verdict)] if verdict else []),
            ("heads", f"{train.num_heads}, {train.head_kind}, {train.head_balance}"),
            ("trainable", f"{_settings(train.method)}{_trainable(metrics)}"),
            ("steps", f"{metrics['steps']:,} of {train.batch_size} problems{early}"),
            ("examples", f"{metrics['num_examples']:,}; {metrics['num_too_long']:,} of more than {recipe.text.max_length} tokens left out"),
            ("tokens", f"{metrics['train_tokens']:,}, prompts among them"),
            ("optimiser", f"AdamW, peak rate {train.learning_rate:g}{heads_rate}, {train.precision}, seed {recipe.seed}"),
            ("devices", f"{num_ranks} ranks, {self.train.manifest['device_seconds']:,.0f} device-seconds"),
            ("prompt", f"`{recipe.text.prompt}`"),
            ("validation loss of head 1, nats a token", f"{before} before, {after} after"),
        ]  # fmt: skip
        return _table(("", ""), rows)

    def _evaluation(self) -> str:
        evaluation = self.run.spec.recipe.evaluation
        names = {"candidate": "this model", "baseline": self._baseline}
        rows = [(part, names[who], *_measured(scores)) for (who, part), scores in self._scores.items()]
        asked = dict.fromkeys(
            f"Protocol `{one['protocol']}` ({one['num_samples']} programs a problem, temperature {one['temperature']}, top-p {one['top_p']}, "
            f"at most {evaluation.max_new_tokens} tokens, {evaluation.precision})."
            for one in self._scores.values()
        )  # fmt: skip
        hashes = {part: str(scores["prompt_sha256"])[:_SHORT] for (_, part), scores in self._scores.items()}
        prompts = (
            "SHA-256 of the prompts: " + ", ".join(f"{part} set `{value}`" for part, value in hashes.items()) + "."
        )
        text = (
            "A problem counts as solved if the program passes all its tests. The gate set decides, the report set is only shown; intervals are "
            "Wilson's at 95 %."
        )  # fmt: skip
        head = ("set", "model", *_MEASURED)
        return "\n\n".join(
            [f"{' '.join(asked)} {prompts} {text}", _table(head, rows), f"On the gate set: {self.compared}"]
        )

    @property
    def _baseline(self) -> str:
        champion = self.run.spec.champion
        return f"version {champion.version}, the champion then" if champion else "the base model"

    def _limits(self) -> str:
        read_off = {
            part: one.get("num_passed_reading_answer")
            for (who, part), one in self._scores.items()
            if who == "candidate"
        }
        known = [f"{number} on the {part} set" for part, number in read_off.items() if number is not None]
        lines = [
            "It was measured on the problems above in that form of prompt, and on nothing else: other tasks, languages and prompts are unknown.",
            "What it writes is unreviewed code. Run it where it can do no harm.",
            "Training problems were held against evaluation problems by equal text and equal code only; near copies, and what the base model has "
            "seen, were not looked for.",
            *([f"Programs that pass and only repeat an answer that stands in the prompt: {', '.join(known)}."] if known else []),
            f"It has learnt from texts of at most {self.run.spec.recipe.text.max_length} tokens.",
        ]  # fmt: skip
        return "\n".join(f"- {line}" for line in lines)

    def _loading(self) -> str:
        recipe = self.run.spec.recipe
        uri = f"models:/{self._name}/{self.version}"
        stops = list(protocol_named(recipe.evaluation.protocol).stops)
        params = json.dumps({"stop": stops})
        heads = (
            "\n# All heads: needs mlops-tasks, and heads.safetensors, which lies beside this folder.\n"
            "from mlops_tasks.model import MtpModel\n"
            'mtp = MtpModel.with_saved_heads(model, Path("../heads.safetensors"))\n'
        )
        return (
            "```python\n# This folder, as the plain model (head 1).\n"
            "from pathlib import Path\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n"
            'model, tokenizer = AutoModelForCausalLM.from_pretrained("."), AutoTokenizer.from_pretrained(".")\n'
            f"{heads if recipe.train.num_heads > 1 else ''}"
            f'\n# From the registry: text in, text out.\nimport mlflow, pandas\nserved = mlflow.pyfunc.load_model("{uri}")\n'
            f'served.predict(pandas.DataFrame({{"prompt": ["…"]}}), params={params})\n```\n\n'
            f"`mlflow models serve -m {uri} --env-manager local` answers over HTTP. The prompt is that of `{recipe.text.prompt}`; the registered "
            "model has an example."
        )  # fmt: skip

    def _lineage(self) -> str:
        rows = [(f"`{one.prefix}`", f"`{one.digest[:_SHORT]}`", _code(one)) for one in self._made_from]
        packages = {name: value for name, value in self.train.manifest["versions"].items() if name != "mlops-tasks"}
        return "\n\n".join(
            [
                "What it was made from, itself first: where it lies in the store (the last part is its key), the SHA-256 of its files, and the code.",
                _table(("artifact", "digest", "mlops-tasks"), rows),
                f"Packages of the training: {', '.join(f'{name} {value}' for name, value in packages.items()) or 'not recorded'}. "
                f"Evaluated by the run `{self.run.name}`; its spec has the SHA-256 `{self.run.spec.digest}`.",
            ]
        )  # fmt: skip

    def _cost(self) -> str:
        asked = [self.run.artifact(task, index) for task in ("generate", "judge") for index, (who, _) in enumerate(EVALUATIONS) if who == "candidate"]  # fmt: skip
        measured = [one for one in asked if one is not None]
        parts: dict[str, list[Mapping[str, Any]]] = {
            "all that it was made from": [one.manifest for one in self._made_from],
            "its evaluation": [one.manifest for one in measured],
            "attempts of these that failed or were stopped": list(_failures([*self._made_from, *measured])),
        }
        currency = self.run.environment.currency
        rows = [(what, str(len(records)), *_priced(_spent(records), currency)) for what, records in parts.items()]
        killed = "An attempt that was killed outright left no record, and is not in it."
        return f"{_table(('what', 'number', 'device-seconds', 'price'), rows)}\n\n{killed}"


def algorithm_of(run: Run) -> str:
    """The scorer whose weights the training had: `uniform` where the critic's gate refused its own."""
    scorer = run.spec.recipe.scoring.scorer
    return scorer if scorer != "critic" or _critic(run)["critic_is_used"] else "uniform"


def _critic(run: Run) -> Mapping[str, Any]:
    scores = run.artifact("score") if run.spec.recipe.scoring.scorer == "critic" else None
    return {} if scores is None else scores.metrics


_ASKED = ("protocol", "prompt_sha256", "num_problems", "num_samples", "temperature", "top_p")
_MEASURED = ("problems", "pass@1", "95 % interval", "tests passed", "bits per byte")


def _sections(bodies: Mapping[str, str]) -> str:
    return "\n\n".join(f"## {head}\n\n{body}" for head, body in bodies.items())


def _measured(scores: Mapping[str, Any]) -> tuple[str, ...]:
    low, high = scores["pass_at_k_interval"]["1"]
    others = (_number(scores.get(name)) for name in ("tests_passed_share", "bits_per_byte"))
    return (str(scores["num_problems"]), _number(scores["pass_at_k"]["1"]), f"{low:.3f} to {high:.3f}", *others)


def _failures(artifacts: Iterable[Artifact]) -> Iterator[Mapping[str, Any]]:
    for one in artifacts:
        place = f"{one.prefix}/failures"
        found = one.store.read_jsons([f"{place}/{name}" for name in one.store.children(place)])
        yield from (record for record in found if record and "device_seconds" in record)


def _spent(records: Iterable[Mapping[str, Any]]) -> Amount:
    return sum((Amount(one["device_seconds"], one["cost"]) for one in records), Amount())


def _priced(amount: Amount, currency: str) -> tuple[str, str]:
    price = "no price is set" if amount.cost is None else f"{amount.cost:.2f} {currency}"
    return f"{amount.device_seconds:,.0f}", price


def _code(artifact: Artifact) -> str:
    return str(artifact.manifest["versions"]["mlops-tasks"])


def _settings(settings: Settings) -> str:
    """Settings in words, without what nests."""
    tree = settings.model_dump(mode="json")
    kind = [str(tree.pop(name)) for name in ("scorer", "kind") if name in tree]
    return ", ".join([*kind, *(f"{name} {value}" for name, value in tree.items() if not isinstance(value, Mapping))])


def _trainable(metrics: Mapping[str, Any]) -> str:
    """How much of a model was learnt; nothing where the training is older than that number."""
    number, share = metrics.get("num_trainable"), metrics.get("trainable_share")
    return "" if number is None or share is None else f": {number:,} parameters, {100 * share:.3g} % of all"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table.

    >>> print(_table(("a", "b"), [("1", "2")]))
    | a | b |
    | --- | --- |
    | 1 | 2 |
    """
    lines = [head, ["---"] * len(head), *rows]
    escaped = ([" ".join(cell.replace("|", "\\|").split()) for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped)
