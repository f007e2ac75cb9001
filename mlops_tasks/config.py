"""Every setting, in two frozen models: a `Recipe` says what to learn, an `Environment` says where to run.

All of a recipe that can change a result is in the keys of the stages that it can change; nothing of an environment is in
any key. Unknown keys are refused, and closed choices are unions of small models, so that no accepted key is without effect.
A relative path in a file is relative to that file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from mlops_tasks.errors import UserError

M = TypeVar("M", bound=BaseModel)
Price = Annotated[float, Field(ge=0)]
Priced = Literal[
    "default", "pull", "train", "reward", "fit_critic", "score_shard", "score", "generate", "judge", "select"
]
Split = Literal["prompt", "train", "validation", "test"]
Quantity = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?(m|k|Ki|[MGTPE]i?)?$")]
TaskId = Literal[
    "pull_data", "pull_model", "pull_reference", "reference", "reward", "fit_critic", "score_shard", "score", "train",
    "generate", "judge", "promote", "report", "watch", "contrast", "search", "select", "conclude",
]  # fmt: skip
ProblemKind = Literal["asserts", "completion", "stdio"]
"""`asserts`: write a function that asserts call; `completion`: go on with code; `stdio`: write a script."""

PROTOCOLS = tuple(
    sorted(file.stem.replace("_", "-") for file in Path(__file__).parent.glob("data/protocols/[a-z]*.py"))
)
"""Each module of `data.protocols` is a choice; to add one is to add a file."""
if TYPE_CHECKING:
    ProtocolId = str
else:
    ProtocolId = Literal[PROTOCOLS]


class Settings(BaseModel):
    """Base of all models here: frozen, and nothing unknown is accepted."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


# Where problems and models come from. `path` is where they lie now; a key holds the digest of what lies there instead.


class MbppData(Settings):
    """MBPP as published: `mbpp.jsonl`, `sanitized-mbpp.json`, or one's own problems in the same format."""

    asks_for: ClassVar[ProblemKind] = "asserts"
    kind: Literal["mbpp"]
    path: str
    """The .jsonl or .json file: a path, or `s3://bucket/key`."""


class HumanEvalData(Settings):
    """Problems in HumanEval's format, JSON lines or Parquet with `task_id`, `prompt`, `entry_point`, `canonical_solution`, `test`."""

    asks_for: ClassVar[ProblemKind] = "completion"
    kind: Literal["humaneval"]
    path: str
    """The .jsonl or .parquet file: a path, or `s3://bucket/key`."""
    split: Split | None = "test"
    """What its problems are for; None: of ten, by the digest of their ids, six are learnt from, two each are for validation and test."""


class CodeContestsData(Settings):
    """Contest problems as JSON lines or Parquet with the fields of DeepMind's CodeContests: scripts from standard input to standard output.

    Problems whose statement accepts several answers, and those without a Python 3 solution, are left out, listed and counted.
    """

    asks_for: ClassVar[ProblemKind] = "stdio"
    kind: Literal["codecontests"]
    path: str
    """The .jsonl or .parquet file: a path, or `s3://bucket/key`."""
    split: Split | None = "test"
    """What its problems are for; None: of ten, by the digest of their ids, six are learnt from, two each are for validation and test."""


class Columns(Settings):
    """What the columns of a table are called."""

    id: str | None = None
    """A text or a number, unique; None: rows are counted from 1."""
    prompt: str = "prompt"
    """The task in words, or the code that the solution begins with."""
    solution: str = "solution"
    """A program that passes."""
    tests: str | None = None
    """Asserts, as a list or as one text. Exactly one of `tests` and `inputs` is given."""
    inputs: str | None = None
    """A list of texts for standard input."""
    outputs: str | None = None
    """The list of texts that belong on standard output; wanted with `inputs`."""
    setup: str | None = None
    """Code to run between the program and the tests; None: none."""
    split: str | None = None
    """`prompt`, `train`, `validation` or `test`; None: as the source's `split` says."""

    @model_validator(mode="after")
    def _one_kind_of_tests(self) -> Self:
        if (self.tests is None) == (self.inputs is None) or (self.inputs is None) != (self.outputs is None):
            raise ValueError(
                f"either tests, or inputs and outputs, must name a column; got tests={self.tests}, inputs={self.inputs}, "
                f"outputs={self.outputs}"
            )
        return self


class TableData(Settings):
    """Any JSON lines, JSON list or Parquet table of problems."""

    kind: Literal["table"]
    path: str
    """The file: a path, or `s3://bucket/key`."""
    columns: Columns
    """Which column is what."""
    split: Split | None = "test"
    """What its problems are for; None: of ten, by the digest of their ids, six are learnt from, two each are for validation and test."""

    @property
    def asks_for(self) -> ProblemKind | None:
        """None: whether the prompts are words or code is seen when they are read."""
        return None if self.columns.inputs is None else "stdio"


class GeneratedData(Settings):
    """Made-up problems in MBPP's format: small list, string and number functions (see `mlops_tasks.data.generated`)."""

    asks_for: ClassVar[ProblemKind] = "asserts"
    kind: Literal["generated"]
    num_train: int = Field(4000, ge=1)
    """Problems to train on."""
    num_validation: int = Field(100, ge=1)
    """Held-out problems for validation loss and the gate."""
    num_test: int = Field(100, ge=1)
    """Held-out problems for the report."""
    seed: int = Field(0, ge=0)
    """Another seed gives other problems; the held-out ones of every seed differ from the training ones of every seed."""
    noise: float = Field(0.0, ge=0, le=1)
    """Share of the training solutions that carry an irrelevant comment: something for a scorer to see through."""


FileData = MbppData | HumanEvalData | CodeContestsData | TableData
DataSource = Annotated[FileData | GeneratedData, Field(discriminator="kind")]


class FolderModel(Settings):
    """A causal language model with its tokenizer, as `save_pretrained` writes it."""

    kind: Literal["folder"]
    path: str
    """The folder: a path, or `s3://bucket/prefix`."""


class HubModel(Settings):
    """A model on the Hugging Face hub. `plan` turns the revision into a commit, and only that commit is pulled."""

    kind: Literal["hub"]
    repo: str
    """For example `HuggingFaceTB/SmolLM2-135M`."""
    revision: str = "main"
    """Branch, tag or commit."""


class RandomModel(Settings):
    """A small Llama with random weights and a byte-level BPE of generated problems: something to learn on in a minute."""

    kind: Literal["random"]
    hidden_size: int = Field(128, ge=32, multiple_of=32)
    """Width D; a multiple of 32."""
    num_layers: int = Field(3, ge=1)
    """Decoder layers."""
    vocab_size: int = Field(640, ge=320)
    """Tokens of the BPE, its 256 bytes among them."""
    seed: int = Field(0, ge=0)
    """Seed of the weights."""


ModelSource = Annotated[FolderModel | HubModel | RandomModel, Field(discriminator="kind")]


class Data(Settings):
    """What is learnt and what is held out."""

    source: DataSource
    on_contamination: Literal["refuse", "drop"] = "refuse"
    """A training problem that equals an evaluation problem in text or code, or a problem that a reference would be trained on
    and that the data holds too: end with 65, or leave it out and say so."""


class Model(Settings):
    """The model that is trained further."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$")
    """The product line: name of the registered model in MLflow."""
    source: ModelSource


class Text(Settings):
    """How a problem becomes tokens."""

    prompt: ProtocolId = "docstring-0shot"
    """The form of the prompt that the completion is learnt after."""
    max_length: int = Field(512, ge=16)
    """Longest example in tokens, and the length S of a packed row; a longer example is left out and counted."""


class FullTuning(Settings):
    """Every weight is learnt."""

    kind: Literal["full"]


class LowRank(Settings):
    """Low-rank matrices beside the decoder's linear layers are learnt, and the base stays as it is."""

    rank: int = Field(16, ge=1)
    """r: what is added to a weight has this rank."""
    alpha: float | None = Field(None, gt=0)
    """What is added is multiplied by alpha / rank; None: by 2."""
    targets: tuple[str, ...] | None = Field(None, min_length=1)
    """Last names of the linear layers that get one, such as `q_proj`; None: all in the decoder's layers."""


class Lora(LowRank):
    """LoRA (arXiv 2106.09685)."""

    kind: Literal["lora"]


class QLora(LowRank):
    """LoRA on a base whose linear layers are held in 4 bits (arXiv 2305.14314): needs a GPU and bitsandbytes."""

    kind: Literal["qlora"]


Method = Annotated[FullTuning | Lora | QLora, Field(discriminator="kind")]


class Train(Settings):
    """One training."""

    method: Method = FullTuning(kind="full")
    """What of the base is learnt; heads 2..H always are. `auto` in a recipe's `train`: as `wmtp recommend` says, resolved by `plan`."""

    num_heads: int = Field(4, ge=1, le=16)
    """H: head k predicts the token k ahead; 1 is ordinary next-token training."""
    head_kind: Literal["residual", "layer"] = "residual"
    """What heads 2..H are: `residual`, two matrices behind the trunk's output; `layer`, a whole decoder layer beside the last one, as in
    arXiv 2404.19737 (not with `qlora`, and without speculative decoding)."""
    head_balance: Literal["decaying", "equal"] = "decaying"
    """β. `decaying`: 1 for head 1 and 0.3 in all for the others, falling by 0.6 a head; `equal`: 1/H each."""
    head_warmup_steps: int = Field(0, ge=0)
    """First steps in which only heads 2..H learn (a converted next-token model wants some)."""
    epochs: float | None = Field(None, gt=0)
    """Passes over the training problems, or `auto`, as `method`. Exactly one of `epochs` and `steps` is given."""
    steps: int | None = Field(None, ge=1)
    """Optimiser steps."""
    batch_size: int = Field(64, ge=1)
    """Problems in an optimiser step, over all ranks."""
    learning_rate: float = Field(3e-4, gt=0)
    """Peak rate of AdamW, or `auto`, as `method`."""
    new_head_learning_rate: float | None = Field(None, gt=0)
    """Peak rate of heads 2..H; None: the same."""
    weight_decay: float = Field(0.01, ge=0)
    """Decoupled decay, on matrices only."""
    beta1: float = Field(0.9, ge=0, lt=1)
    """AdamW's first moment."""
    beta2: float = Field(0.95, ge=0, lt=1)
    """AdamW's second moment."""
    gradient_clip: float = Field(1.0, gt=0)
    """Largest norm of the gradient."""
    warmup_share: float = Field(0.05, ge=0, lt=1)
    """Share of the steps in which the rate rises from 0; for the base of those after `head_warmup_steps`."""
    final_rate_share: float = Field(0.1, ge=0, le=1)
    """Where the cosine ends, as a share of the peak rate."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """`bfloat16`, `float16`: autocast of the matrix products; weights, statistics and loss stay in float32. `float16` is for devices
    without bfloat16: its loss is scaled, and a step whose gradients overflow is made again with half the scale."""
    validate_every_steps: int = Field(100, ge=1)
    """Steps between two validation losses; the last step always has one."""
    skip_bad_batches: int = Field(0, ge=0)
    """How many steps whose loss or gradient is not finite may be left out; the next one ends the training."""
    patience: int | None = Field(None, ge=1)
    """Validations without a new best before training stops early; None: never."""
    keep: Literal["best", "last"] = "last"
    """Which weights are the result: of the best validation loss, or of the last step."""

    @model_validator(mode="after")
    def _one_duration(self) -> Self:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError(
                f"exactly one of epochs and steps must be given; got epochs={self.epochs}, steps={self.steps}"
            )
        return self


class GivenReference(Settings):
    """A model that is trusted already; it must have the same tokenizer."""

    kind: Literal["given"]
    model: ModelSource


class TrainedReference(Settings):
    """The base model trained on other, trusted data."""

    kind: Literal["trained"]
    data: DataSource
    train: Train


class CrossFittedReference(Settings):
    """K models of the training data, each without one fold; a problem is scored by the one that did not see it."""

    kind: Literal["cross-fitted"]
    num_folds: int = Field(2, ge=2, le=20)
    """K; fold = SHA-256(seed, id) mod K."""
    train: Train


Reference = Annotated[GivenReference | TrainedReference | CrossFittedReference, Field(discriminator="kind")]


class Uniform(Settings):
    """Every token counts the same: the baseline."""

    scorer: Literal["uniform"]


class Rho1(Settings):
    """Excess loss over a reference model (arXiv 2404.07965)."""

    scorer: Literal["rho1"]
    mode: Literal["dynamic", "static"] = "dynamic"
    """Student's losses from the running training, or of the base model once."""
    excess: Literal["signed", "abs", "relative"] = "signed"
    """a - r, |a - r|, or (a - r)/(a + r), with a the student's and r the reference's loss in nats."""
    reference: Reference


class Shuffled(Settings):
    """Placebo: static rho-1 scores, shuffled within each document."""

    scorer: Literal["shuffled"]
    reference: Reference


class Random(Settings):
    """Placebo: random scores; with `select` a random share of the tokens."""

    scorer: Literal["random"]


class Position(Settings):
    """Placebo: early tokens score highest."""

    scorer: Literal["position"]


class TestsReward(Settings):
    """The share of the problem's tests that a candidate passes."""

    kind: Literal["tests"]


class ModelReward(Settings):
    """What a reward model says of a candidate: sequence classification with one label. Nothing is run."""

    kind: Literal["model"]
    model: Annotated[FolderModel | HubModel, Field(discriminator="kind")]


Reward = Annotated[TestsReward | ModelReward, Field(discriminator="kind")]


class Candidates(Settings):
    """Solutions of the training problems, good and bad, that the critic learns from; each problem's own is one of them."""

    num_samples: int = Field(4, ge=0)
    """Programs that the base model writes for a problem; as long as `evaluation.max_new_tokens` at most."""
    temperature: float = Field(0.8, gt=0)
    """Of these."""
    top_p: float = Field(0.95, gt=0, le=1)
    """Of these."""
    num_mutants: int = Field(4, ge=0)
    """Programs made of a problem's own solution by one mistake: an operator, a constant, a line."""
    num_problems: int | None = Field(None, ge=1)
    """The first so many training problems by id, tokens of all others weigh 1; None: all."""

    @model_validator(mode="after")
    def _several(self) -> Self:
        if self.num_samples + self.num_mutants == 0:
            raise ValueError(
                "num_samples and num_mutants are both 0: a critic needs good and bad solutions of a problem"
            )
        return self


class ValueHead(Settings):
    """How values of hidden states are learnt: by K heads, each without the fold of the problems that it then scores."""

    num_folds: int = Field(5, ge=3, le=20)
    """K; fold = SHA-256(seed, id) mod K. Each head learns from K - 2 folds and stops by another one."""
    learning_rate: float = Field(1e-3, gt=0)
    """Of AdamW."""
    max_epochs: int = Field(100, ge=1)
    """Most passes over the candidates, for each λ of the advantages."""
    patience: int = Field(5, ge=1)
    """Passes without a new best before the learning stops."""
    gae_lambda: float = Field(0.95, ge=0, le=1)
    """λ of the advantages that make the value targets, once the values have been learnt with 1."""


class Critic(Settings):
    """How much each token changes the expected reward of a solution, by a value head on the base model's hidden states."""

    scorer: Literal["critic"]
    reward: Reward = TestsReward(kind="tests")
    candidates: Candidates = Candidates()
    value_head: ValueHead = ValueHead()
    min_gain: float = Field(0.05, ge=0, le=1)
    """The gate: the values' explained variance on problems that they were not learnt from must beat that of the position alone by
    this much, or every token weighs 1."""


Scoring = Annotated[Uniform | Rho1 | Shuffled | Random | Position | Critic, Field(discriminator="scorer")]


class SoftWeights(Settings):
    """Every token counts, important ones more: softmax, boost of the top, projection to mean 1."""

    kind: Literal["soft"]
    temperature: float = Field(0.7, gt=0)
    """T of the softmax over a document's standardised scores."""
    top_share: float = Field(0.2, ge=0, le=1)
    """Share p of a document's tokens that is boosted."""
    boost: float = Field(2.0, ge=1)
    """What the top share is multiplied by before the projection."""
    min_weight: float = Field(0.05, ge=0, le=1)
    """ε."""
    max_weight: float = Field(3.0, ge=1)
    """W_max."""
    strength: float = Field(1.0, ge=0, le=1)
    """λ: 0 is uniform, 1 the weights as they are."""
    target_ess: float | None = Field(None, gt=0, le=1)
    """Smallest effective sample size, as a share of the tokens: λ is lowered for a document below it. None: never."""


class SelectWeights(Settings):
    """Only the top share of each document counts."""

    kind: Literal["select"]
    top_share: float = Field(0.6, gt=0, le=1)
    """Share p: exactly ⌈p·n⌉ tokens are kept."""
    strength: float = Field(1.0, ge=0, le=1)
    """λ: 0 is uniform, 1 the weights as they are."""


Weighting = Annotated[SoftWeights | SelectWeights, Field(discriminator="kind")]


class EvaluationSet(Settings):
    """Problems that decide or are shown."""

    split: Literal["validation", "test"]
    skip: int = Field(0, ge=0)
    """Leave out the first so many by id."""
    limit: int | None = Field(None, ge=1)
    """The first so many of the rest; None: all."""

    def shares_problems_with(self, other: EvaluationSet) -> bool:
        """Whether a problem may be in both sets."""
        first, second = sorted((self, other), key=lambda one: one.skip)
        return self.split == other.split and (first.limit is None or first.skip + first.limit > second.skip)


class Evaluation(Settings):
    """How a model is measured: by running what it writes."""

    protocol: ProtocolId = "docstring-0shot"
    """Form of the prompt."""
    num_samples: int = Field(1, ge=1)
    """n: programs per problem."""
    temperature: float = Field(0.0, ge=0)
    """0 is greedy."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus sampling."""
    k: tuple[int, ...] = (1,)
    """pass@k is reported for each k here."""
    max_new_tokens: int = Field(256, ge=1)
    """Longest program in tokens."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the weights while a model writes, candidate and baseline alike, whatever they were saved in; `bfloat16` takes half the
    memory."""
    min_seconds: float = Field(3.0, gt=0)
    """Least time limit of a program."""
    reference_factor: float = Field(5.0, ge=1)
    """The limit is this many times what the reference solution took, if that is more."""
    gate: EvaluationSet = EvaluationSet(split="validation")
    """Problems on which candidate and champion are compared."""
    report: EvaluationSet = EvaluationSet(split="test")
    """Problems that are only shown, never decided on."""

    @model_validator(mode="before")
    @classmethod
    def _splits_by_default(cls, tree: Any) -> Any:
        if not isinstance(tree, dict):
            return tree
        splits = {"gate": "validation", "report": "test"}
        sets = {name: {"split": splits[name], **tree[name]} for name in splits if isinstance(tree.get(name), dict)}
        return {**tree, **sets}

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if max(self.k, default=0) > self.num_samples or min(self.k, default=0) < 1:
            raise ValueError(f"k={list(self.k)}: each k must be from 1 to num_samples={self.num_samples}")
        if self.temperature == 0 and (self.num_samples > 1 or self.top_p < 1):
            raise ValueError("temperature 0 is greedy: it wants num_samples 1 and top_p 1")
        if self.gate.shares_problems_with(self.report):
            raise ValueError(
                f"gate and report share problems of the split {self.gate.split}: a set that decides must not be the one that "
                "is shown; take another split, or part this one with skip and limit"
            )
        return self


class NamedSet(Settings):
    """A part of the gate set on which a candidate must not be worse, however good it is on the whole."""

    ids: tuple[str, ...] = Field(min_length=1)
    """Its problems: ids, or patterns such as `strings-*`, in which `*` stands for anything."""
    max_loss: float = Field(0.05, ge=0, le=1)
    """The lower bound of the paired difference in pass@1 on these problems must be at least minus this. Few problems have a wide
    interval, and then a loss that may be chance is refused too."""


class Gate(Settings):
    """When a candidate takes the champion's place: every gate that is asked for must hold."""

    min_difference: float = Field(0.0, ge=-1, le=1)
    """The lower bound of the paired difference in pass@1 must be above this."""
    confidence: float = Field(0.95, gt=0.5, lt=1)
    """Of the one-sided lower bounds and of the intervals shown."""
    num_resamples: int = Field(10_000, ge=100)
    """Resamples of the paired bootstrap."""
    min_score: float | None = Field(None, ge=0, le=1)
    """Least pass@1 of the candidate on the gate set; None: any."""
    no_regression: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$")], NamedSet] = {}
    """Parts of the gate set by name, each with a bound of its own."""
    max_model_bytes: int | None = Field(None, ge=1)
    """Largest size of the files that a model is loaded from, without heads 2..H; None: any."""
    min_tokens_per_second: float | None = Field(None, gt=0)
    """Least speed at which `generate` saw the candidate write; None: any. Other work on the machine only slows it down, so the
    fastest of its sets decides, of those that were written in one go and have a thousand tokens. It is a speed of that machine and batch
    size: set it well below what the champion reaches there."""
    max_contamination: float | None = Field(None, ge=0, lt=1)
    """Largest share of the training problems that equalled an evaluation problem and were left out: a source with many has near
    copies too, which no comparison finds. None: any. It needs `data.on_contamination: drop`."""


class Watch(Settings):
    """When the champion is said to have decayed: judged on the gate set of the data as they are now, and beyond chance."""

    max_loss: float = Field(0.05, ge=0, le=1)
    """The interval of the difference between its pass@1 now and when it was judged last as a candidate lies below minus this. Paired
    where the problems are the same."""
    min_score: float | None = Field(None, ge=0, le=1)
    """The interval of its pass@1 lies below this; None: any score is good enough."""


Scalar = bool | int | float | str | None
When = Annotated[
    dict[str, Scalar],
    Field(description="Only tried where another parameter of the space, by dotted name, has this value."),
]


class FloatRange(Settings):
    """A number between two bounds."""

    kind: Literal["float"]
    low: float
    """Smallest value that is tried."""
    high: float
    """Largest value that is tried."""
    log: bool = False
    """Tried evenly in the logarithm, as learning rates are."""
    step: float | None = Field(None, gt=0)
    """Only `low` and whole steps above it; None: any."""
    when: When = {}

    @model_validator(mode="after")
    def _is_range(self) -> Self:
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError(f"log wants a low above 0 and no step; got low={self.low}, step={self.step}")
        _require_rising(self.low, self.high)
        return self


class IntegerRange(Settings):
    """A whole number between two bounds."""

    kind: Literal["integer"]
    low: int
    """Smallest value that is tried."""
    high: int
    """Largest value that is tried."""
    log: bool = False
    """Tried evenly in the logarithm."""
    step: int = Field(1, ge=1)
    """Only `low` and whole steps above it."""
    when: When = {}

    @model_validator(mode="after")
    def _is_range(self) -> Self:
        if self.log and (self.low <= 0 or self.step != 1):
            raise ValueError(f"log wants a low above 0 and step 1; got low={self.low}, step={self.step}")
        _require_rising(self.low, self.high)
        return self


class Choice(Settings):
    """One of some values."""

    kind: Literal["choice"]
    choices: tuple[Scalar, ...] = Field(min_length=2)
    """The values, in no order that means something."""
    when: When = {}


Parameter = Annotated[FloatRange | IntegerRange | Choice, Field(discriminator="kind")]


def _require_rising(low: float, high: float) -> None:
    if low >= high:
        raise ValueError(f"low must be below high; got low={low}, high={high}")


class Tpe(Settings):
    """The tree-structured Parzen estimator, which tries more of what did well (arXiv 2304.11127)."""

    seed: int = Field(0, ge=0)
    """Of its draws. With one worker a study comes out the same again; with several it depends on who is faster."""
    num_startup_trials: int = Field(10, ge=1)
    """Trials that are drawn at random before it learns from them."""
    num_candidates: int = Field(24, ge=1)
    """Draws of which the most promising one is tried."""
    multivariate: bool = True
    """Parameters are drawn together, so that it sees what goes well with what."""
    group: bool = True
    """Parameters that are only tried with others (`when`) are drawn together with those alone. It needs `multivariate`."""
    constant_liar: bool = True
    """Trials that are running count as bad ones, so that two workers do not try the same."""

    @model_validator(mode="after")
    def _group_of_several(self) -> Self:
        if self.group and not self.multivariate:
            raise ValueError("group draws parameters together, which needs multivariate: true")
        return self


class NoPruner(Settings):
    """Every training goes on to its end."""

    kind: Literal["none"]


class MedianPruner(Settings):
    """A training ends whose validation loss is above the median of the earlier ones at the same step."""

    kind: Literal["median"]
    num_startup_trials: int = Field(5, ge=0)
    """Trainings that go on to their end in any case."""
    warmup_steps: int = Field(0, ge=0)
    """Optimiser steps before which none is ended."""


class HyperbandPruner(Settings):
    """Brackets of successive halving: of the trainings that reach a rung the best share goes on (arXiv 1603.06560)."""

    kind: Literal["hyperband"]
    min_steps: int = Field(ge=1)
    """Optimiser steps of the first rung."""
    max_steps: int = Field(ge=2)
    """Optimiser steps of the last one."""
    reduction_factor: int = Field(3, ge=2)
    """One in so many goes on."""

    @model_validator(mode="after")
    def _is_range(self) -> Self:
        if self.min_steps >= self.max_steps:
            raise ValueError(
                f"min_steps must be below max_steps; got min_steps={self.min_steps}, max_steps={self.max_steps}"
            )
        return self


Pruner = Annotated[NoPruner | MedianPruner | HyperbandPruner, Field(discriminator="kind")]
Objective = Literal["pass_at_1", "validation_loss", "tokens_per_second"]
"""`tokens_per_second`: how fast the trained model writes, with its heads guessing ahead where that pays."""


class Tuning(Settings):
    """Where a better recipe is looked for, and when one is believed to be better."""

    space: dict[str, Parameter] = Field(min_length=1)
    """By dotted name the settings of this recipe that are tried: of `train`, `weighting`, `scoring` or `text`. The recipe's own value must be
    among those that are tried, for it is the first trial."""
    num_trials: int = Field(ge=2)
    """Trials that are done in the end, pruned ones among them, whatever happens to workers."""
    num_problems: int = Field(50, ge=1)
    """Problems of the gate set, the first by id, by which trials are measured. The rest decides whether the best trial is believed. For
    `pass_at_1` and `tokens_per_second`: a `validation_loss` is of all validation problems, then as before."""
    sampler: Tpe = Tpe()
    pruner: Pruner = NoPruner(kind="none")
    """Which trainings end early, by their validation loss. Where another objective decides, `evaluation.gate` must be of other problems."""
    objectives: tuple[Objective, ...] = Field(("pass_at_1",), min_length=1, max_length=2)
    """What is looked for. With two, the trials that no other one beats in both are told, and the best of them by the first counts."""
    repeats: int = Field(3, ge=2, le=50)
    """Seeds with which the best recipe and this one learn again, side by side: measured on problems that no trial was measured by, or for
    `validation_loss` on the same ones, so that the seeds alone are new."""
    confidence: float = Field(0.95, gt=0.5, lt=1)
    """One-sided, that the best recipe is better: where it is not, it is adopted by chance in at most 1 - `confidence` of the studies."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if len({*self.objectives}) < len(self.objectives):
            raise ValueError(f"objectives={list(self.objectives)}: one is there twice")
        if len(self.objectives) > 1 and self.pruner.kind != "none":
            raise ValueError(
                f"pruner {self.pruner.kind} ends trainings by one loss, but there are two objectives: set pruner to kind none"
            )
        for name, parameter in self.space.items():
            earlier = list(self.space)[: list(self.space).index(name)]
            if unknown := [other for other in parameter.when if other not in earlier]:
                raise ValueError(
                    f"space.{name}.when names {', '.join(unknown)}, which is not in the space before it: {', '.join(earlier) or 'nothing'}"
                )
        return self


class Recipe(Settings):
    """What to learn."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$")
    """Names the dataset part of the MLflow experiment `wmtp/{scorer}/{name}`."""
    seed: int = Field(0, ge=0)
    """Of order, folds, initial heads and sampling."""
    data: Data
    model: Model
    text: Text = Text()
    scoring: Scoring
    weighting: Weighting = SoftWeights(kind="soft")
    train: Train
    evaluation: Evaluation = Evaluation()
    gate: Gate = Gate()
    watch: Watch = Watch()
    tuning: Tuning | None = None
    """Where `wmtp_tune` looks for a better recipe; None: it does not. In no key of a daily run."""

    @model_validator(mode="after")
    def _gate_of_its_own(self) -> Self:
        chooser = next(self._choosers(), None)
        if chooser and self.evaluation.gate.split == "validation":
            raise ValueError(
                f"{chooser} by the validation problems, so evaluation.gate must not decide on them too: "
                "set evaluation.gate.split to test, and part it from evaluation.report with skip and limit"
            )
        return self

    def _choosers(self) -> Iterator[str]:
        """What chooses weights, or trials that another measure decides between, by the validation problems."""
        trainings = {"train": self.train}
        if isinstance(self.reference, CrossFittedReference):
            trainings["scoring.reference.train"] = self.reference.train
        for name, train in trainings.items():
            if train.keep == "best" or train.patience is not None:
                yield f"{name}.{'keep' if train.keep == 'best' else 'patience'} chooses weights"
        if self.tuning is not None and self.tuning.objectives[0] != "validation_loss":
            if self.tuning.pruner.kind != "none":
                yield f"tuning.pruner {self.tuning.pruner.kind} chooses trials"
            if "validation_loss" in self.tuning.objectives:
                yield "tuning.objectives chooses trials"

    @model_validator(mode="after")
    def _contamination_may_be_there(self) -> Self:
        if self.gate.max_contamination is not None and self.data.on_contamination == "refuse":
            raise ValueError(
                f"gate.max_contamination is {self.gate.max_contamination}, but data.on_contamination is refuse, which ends the run at the first "
                "equal problem: set that to drop, or leave the limit out"
            )
        return self

    @model_validator(mode="after")
    def _weighting_has_an_effect(self) -> Self:
        if isinstance(self.scoring, Uniform) and self.weighting != SoftWeights(kind="soft"):
            raise ValueError(
                "weighting has no effect with scoring.scorer uniform, where every token counts the same: leave it out"
            )
        return self

    @model_validator(mode="after")
    def _enough_generated(self) -> Self:
        source = self.data.source
        if isinstance(source, GeneratedData):
            sizes = {"validation": source.num_validation, "test": source.num_test}
            for name in ("gate", "report"):
                part: EvaluationSet = getattr(self.evaluation, name)
                if part.skip >= sizes[part.split]:
                    raise ValueError(
                        f"evaluation.{name}.skip is {part.skip}, but the split {part.split} has {sizes[part.split]} problems: "
                        "none would be left"
                    )
        return self

    @model_validator(mode="after")
    def _problems_left_to_decide(self) -> Self:
        source, gate = self.data.source, self.evaluation.gate
        if self.tuning is None or self.tuning.objectives[0] == "validation_loss":
            return self
        there = None
        if isinstance(source, GeneratedData):
            there = {"validation": source.num_validation, "test": source.num_test}[gate.split] - gate.skip
        sizes = [one for one in (there, gate.limit) if one is not None]
        if sizes and self.tuning.num_problems >= min(sizes):
            raise ValueError(
                f"tuning.num_problems is {self.tuning.num_problems} of the {min(sizes)} problems of evaluation.gate: none would "
                "be left to decide by. Set it to less"
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _soft_by_default(cls, tree: Any) -> Any:
        weighting = tree.get("weighting") if isinstance(tree, dict) else None
        return {**tree, "weighting": {"kind": "soft", **weighting}} if isinstance(weighting, dict) else tree

    @property
    def reference(self) -> GivenReference | TrainedReference | CrossFittedReference | None:
        """The reference that the scorer needs, if any."""
        return self.scoring.reference if isinstance(self.scoring, Rho1 | Shuffled) else None


ReadyAlgorithm = Literal["ntp", "uniform", "rho1-soft", "rho1-select", "critic", "shuffled", "random", "position"]


class Algorithm(Settings):
    """One way to learn, as what it changes in a comparison's recipe."""

    like: ReadyAlgorithm | None = None
    """The ready one that it starts from; None: the one of its own name, or else the recipe as it is."""
    settings: dict[str, Any] = {}
    """What else it changes, by dotted name: `weighting.strength: 0.3`."""
    grid: dict[str, Annotated[tuple[Any, ...], Field(min_length=1)]] = {}
    """Values by dotted name, such as `weighting.temperature: [0.5, 0.7, 1.0]`; each combination is compared as an algorithm of its own."""


class Comparison(Settings):
    """Algorithms side by side, learning the same problems in the same order, over several seeds."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$")
    """What it is called, in MLflow too: `wmtp/comparison/{name}`."""
    recipe: str
    """The recipe that all of them start from; a path."""
    settings: dict[str, Any] = {}
    """What is changed in the recipe for all of them, by dotted name."""
    algorithms: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$")], Algorithm] = Field(min_length=2)
    """By name."""
    baseline: str
    """What the others are compared with: a name, with the values of its grid if it has one (`uniform, train.num_heads=2`)."""
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field((0, 1, 2), min_length=1)
    """Each algorithm learns once with each of these as the recipe's `seed`. With one seed nothing is known of what chance does."""

    @model_validator(mode="after")
    def _each_seed_once(self) -> Self:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds={list(self.seeds)}: one is there twice, and the same training counts once")
        return self


class S3Access(Settings):
    """How `s3://` is reached. Credentials never stand here: they come by AWS's usual chain (variables, profile, role)."""

    endpoint: str | None = Field(None, pattern=r"^[^@]*$")
    """Address of another server than Amazon's: `http://…`; None: Amazon's."""
    region: str | None = None
    """None: as AWS's own settings say."""
    addressing_style: Literal["auto", "path", "virtual"] = "auto"
    """`path` for most servers other than Amazon's."""
    cache: str | None = None
    """Folder for what is fetched; None: a temporary one of this machine."""


class LeaseTerms(Settings):
    """When two processes want one result, one works and the other waits."""

    ttl_seconds: float = Field(120.0, gt=0)
    """Without a sign of life for so long, another process takes over. It is renewed three times in that time."""
    wait_seconds: float | None = Field(None, ge=0)
    """How long to wait for another process's result before ending with 75; None: as long as it takes."""


class ScoreResources(Settings):
    """Where `score_shard` runs."""

    num_shards: int = Field(1, ge=1)
    """Mapped tasks that share the problems."""


class TrainResources(Settings):
    """Where `train` runs; nothing here changes the result beyond floating-point order."""

    num_ranks: int = Field(1, ge=1)
    """Processes on this machine, or in each pod."""
    num_pods: int = Field(1, ge=1)
    """Pods that train together; more than one only with executor `kubernetes`."""
    micro_batch_rows: int = Field(8, ge=1)
    """Packed rows in one forward."""
    loss_chunk_rows: int = Field(1024, ge=1)
    """Token positions whose logits exist at one time."""
    parallelism: Literal["ddp", "fsdp"] = "ddp"
    """Of several ranks each holds the whole model (`ddp`), or a part of weights, gradients and optimiser (`fsdp`)."""
    recompute_activations: bool = False
    """Keep each layer's input alone for the backward: far less memory for a third more time."""
    on_oom: Literal["fail", "shrink"] = "shrink"
    """Where a device's memory is too small: fail, or go on from the last checkpoint with micro-batches of half as many rows."""
    checkpoint_every_steps: int = Field(100, ge=1)
    """Optimiser steps between two checkpoints."""
    keep_last: int = Field(2, ge=1)
    """Checkpoints kept."""


class GenerateResources(Settings):
    """Where `generate` runs."""

    batch_size: int = Field(32, ge=1)
    """Sequences decoded at one time."""
    speculation: Literal["auto", "always", "never"] = "auto"
    """Heads 2..H of a trained model guess tokens ahead, which head 1 checks in one forward. Like `batch_size`, this changes a
    completion only where two tokens are equally likely up to rounding; `auto`, where it is faster, goes by the clock, so there
    two runs may differ in that; with `always` and `never` they do not."""


class JudgeResources(Settings):
    """Where `judge` runs."""

    num_workers: int | None = Field(None, ge=1)
    """Programs run at one time; None: one per core."""
    unsafe: bool = False
    """Where the system cannot confine programs (macOS), run them all the same, as your user, with limits of memory and time only."""


class TuneResources(Settings):
    """How trials are shared out."""

    storage: str | None = Field(None, pattern=r"^(sqlite:///.+|env:[A-Za-z_][A-Za-z0-9_]*)$")
    """Database of the studies: `sqlite:///…` with one worker, or `env:NAME`, the environment variable that holds the address of a PostgreSQL,
    `postgresql+psycopg2://user:password@host:5432/database`, which never stands here. None: there is no tuning."""
    num_workers: int = Field(1, ge=1)
    """Mapped tasks that take trials until none is left."""
    heartbeat_seconds: int = Field(60, ge=1)
    """Between two signs of life of a running trial."""
    grace_seconds: int = Field(300, ge=2)
    """Without one for so long, a trial counts as dead and is tried again. Too short a time kills healthy ones."""

    @model_validator(mode="after")
    def _can_be_shared(self) -> Self:
        if self.num_workers > 1 and (self.storage or "").startswith("sqlite"):
            raise ValueError(
                f"num_workers is {self.num_workers}, but {self.storage} is one file, which several workers lock for one another: "
                "set it to 1, or storage to env:NAME, a variable with the address of a PostgreSQL"
            )
        if self.grace_seconds < 2 * self.heartbeat_seconds:
            raise ValueError(
                f"grace_seconds is {self.grace_seconds}, less than two beats of {self.heartbeat_seconds} s: a healthy trial would count as dead"
            )
        return self


class Housekeeping(Settings):
    """What `wmtp gc` and the weekly DAG `housekeeping` let go."""

    keep_runs: int = Field(20, ge=0)
    """Last runs of each deployment whose artifacts are kept."""
    grace_days: float = Field(7.0, ge=1)
    """Nothing younger is touched; in a cluster, nothing younger whose run Airflow does not know."""
    mlflow_days: float | None = Field(90.0, ge=1)
    """Age from which a training's run in MLflow is deleted, if no version came of it and nothing of it is left in the store; None: never.
    MLflow keeps what is deleted until `mlflow gc`."""
    delete: bool = False
    """Whether the weekly DAG removes what it has shown; a run's form may say otherwise."""


class AutomaticApproval(Settings):
    """Nobody is asked: what the gates let pass is promoted."""

    kind: Literal["automatic"]


class PersonalApproval(Settings):
    """A person is asked in Airflow before a candidate that every gate lets pass is promoted."""

    kind: Literal["person"]
    hours: float = Field(12.0, gt=0)
    """Without an answer for so long it is rejected, and production stays as it is."""


Approval = Annotated[AutomaticApproval | PersonalApproval, Field(discriminator="kind")]


Event = Literal["failure", "refusal", "promotion", "decay", "rollback"]
"""What people may want to be told: a task failed for good, a candidate was refused or promoted, the champion has decayed or was rolled back."""
_EVERY_EVENT: tuple[Event, ...] = ("failure", "refusal", "promotion", "decay", "rollback")


class SmtpNotice(Settings):
    """Mail."""

    kind: Literal["smtp"]
    connection: str = Field("smtp_default", min_length=1)
    """Id of the Airflow connection that holds server, user and password."""
    to: tuple[str, ...] = Field(min_length=1)
    """Addresses."""
    sender: str | None = None
    """Address; None: `from_email` of the connection."""
    events: tuple[Event, ...] = Field(_EVERY_EVENT, min_length=1)
    """What is told."""


class SlackNotice(Settings):
    """A message through an incoming webhook of Slack, or of a chat that takes the same (`{"text": …}`)."""

    kind: Literal["slack"]
    connection: str = Field("slack_default", min_length=1)
    """Id of the Airflow connection whose password is what comes after https://hooks.slack.com/services/ in the webhook's address. Its
    host, if it has one, stands for that beginning."""
    events: tuple[Event, ...] = Field(_EVERY_EVENT, min_length=1)
    """What is told."""


class WebhookNotice(Settings):
    """A POST of JSON: event, title, sentence, links, dag, run, task."""

    kind: Literal["webhook"]
    connection: str = Field("wmtp_webhook", min_length=1)
    """Id of the Airflow connection whose host is the address, `https://…`; its password, if it has one, is sent as a bearer token."""
    events: tuple[Event, ...] = Field(_EVERY_EVENT, min_length=1)
    """What is told."""


Notice = Annotated[SmtpNotice | SlackNotice | WebhookNotice, Field(discriminator="kind")]


class Toleration(Settings):
    """A taint that a pod of this profile puts up with."""

    key: str
    operator: Literal["Exists", "Equal"] = "Exists"
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """None: all of them."""


class SecretKey(Settings):
    """Where a secret lies; its value is read by the kubelet alone."""

    secret: str
    """Name of a Secret in the namespace of the pods."""
    key: str
    """Which of its entries."""


class Profile(Settings):
    """What a pod gets, and where it may run."""

    image: str
    """With the first-party sources and the locked packages that its stages need; best by digest."""
    service_account: str = "default"
    """Whose role in AWS the pod has (EKS Pod Identity); no token of the API server is ever mounted."""
    requests: dict[str, Quantity]
    """By resource: cpu, memory, and what a node plugin offers, such as nvidia.com/gpu or vpc.amazonaws.com/efa."""
    limits: dict[str, Quantity] = {}
    """By resource; memory over its limit is exit code 137."""
    node_selector: dict[str, str] = {}
    """Labels that a node must have."""
    tolerations: tuple[Toleration, ...] = ()
    """Taints of nodes that it may run on, such as those of GPU and Spot nodes."""
    runtime_class: str | None = None
    """Such as `gvisor`; None: the cluster's own."""
    priority_class: str | None = None
    """PriorityClass of the pods; Kueue goes by it too."""
    queue: str | None = None
    """LocalQueue of Kueue that admits the pods, all of a training at once; None: no queue."""
    same_zone: bool = False
    """All pods of a training in one availability zone, which NCCL over EFA needs and traffic between zones costs."""
    shared_memory: Quantity = "64Mi"
    """Size of /dev/shm, which counts as memory of the pod."""
    scratch: Quantity = "20Gi"
    """Most that the pod may write to its disk: inputs, results before they are stored."""
    variables: dict[str, str] = {}
    """Environment variables that are no secret, such as NCCL_DEBUG."""
    pool: str | None = None
    """Pool of Airflow of which a task with this profile takes a slot, so that no more of them run than it has, of whatever runs; None:
    Airflow's default one."""
    start_seconds: float = Field(1800.0, gt=0)
    """How long a pod may wait for a node and its image before the task ends with 75; waiting in a queue does not count."""


_PROFILE_OF: dict[TaskId, str] = {
    "reference": "gpu",
    "reward": "sandbox",
    "fit_critic": "gpu",
    "score_shard": "gpu",
    "train": "gpu",
    "generate": "gpu",
    "search": "gpu",
    "select": "gpu",
    "judge": "sandbox",
}
SANDBOXED: tuple[TaskId, ...] = ("reward", "judge")
"""Tasks that run programs which a model wrote: on a cluster their pods have no credentials."""


class Kubernetes(Settings):
    """How stages become pods. Their credentials come by pod identity and from Secrets, never from here."""

    namespace: str = "wmtp"
    """Of pods, Jobs, Services and Secrets."""
    connection: str | None = None
    """Airflow's connection to the cluster; None: that of the pod that Airflow runs in, or `KUBECONFIG`."""
    max_runs: int = Field(5, ge=1)
    """Runs of `wmtp_daily` at one time, such as those of different recipes, and of `wmtp_compare`; further ones wait. A laptop has one."""
    max_tasks: int = Field(8, ge=1)
    """Tasks of one such run at one time, such as shards of the scores; a laptop has one."""
    profiles: dict[str, Profile]
    """By name; `cpu`, and each that a task is given."""
    tasks: dict[TaskId, str] = {}
    """Profile by task; those not named here have `gpu` (reference, fit_critic, score_shard, train, generate, search, select), `sandbox` (judge, reward) or `cpu`.
    A `reward` whose base model writes candidates needs one with a GPU and the trainer's image."""
    service_accounts: dict[TaskId, str] = {}
    """By task, where it is not the profile's."""
    secrets: dict[str, SecretKey] = {}
    """By environment variable, such as MLFLOW_TRACKING_PASSWORD; pods of `judge` and `reward` get none."""

    def profile_of(self, task: str) -> str:
        """Name of the profile of a task."""
        named: Mapping[Any, str] = {**_PROFILE_OF, **self.tasks}
        return named.get(task, "cpu")

    def _require_sandbox_apart(self, task: TaskId) -> None:
        if task in self.service_accounts:
            raise ValueError(f"service_accounts.{task}: generated code has no account of its own; leave it out")
        name, others = self.profile_of(task), [one for one in get_args(TaskId) if one not in SANDBOXED]
        sharing = [other for other in others if self.profile_of(other) == name]
        if sharing:
            raise ValueError(
                f"{task} and {', '.join(sharing)} have one profile, {name!r}: generated code would have their account. Give {task} its own"
            )
        account = self.profiles[name].service_account
        taken = {self.profiles[self.profile_of(other)].service_account for other in others}
        if account != "default" and account in {*taken, *self.service_accounts.values()}:
            raise ValueError(
                f"the profile {name!r} of {task} has the account {account!r} of other tasks, and generated code would have its rights"
            )

    @model_validator(mode="after")
    def _known_profiles(self) -> Self:
        for task in get_args(TaskId):
            if (name := self.profile_of(task)) not in self.profiles:
                raise ValueError(
                    f"the task {task} has the profile {name!r}, which is not among kubernetes.profiles: {', '.join(sorted(self.profiles))}. "
                    f"Add it there, or name another one in kubernetes.tasks.{task}"
                )
        for task in SANDBOXED:
            self._require_sandbox_apart(task)
        return self


class Environment(Settings):
    """Where to run."""

    scheduled_recipe: str = "demo"
    """What a scheduled run learns: a name in configs/recipes, the path of a file on the machine that runs Airflow, or `tuned:NAME`, what the
    last study of that recipe has found."""
    deployment: str = Field("laptop", pattern=r"^[A-Za-z0-9._-]+$")
    """Tells the runs of two Airflows on one store apart."""
    executor: Literal["local", "kubernetes"] = "local"
    """`local`: a stage is a process beside the Airflow task; `kubernetes`: a pod."""
    kubernetes: Kubernetes | None = None
    """For executor `kubernetes`."""
    store: str
    """Where artifacts lie: a folder, or `s3://bucket/prefix`."""
    s3: S3Access = S3Access()
    """For a store, data or models on `s3://`."""
    lease: LeaseTerms = LeaseTerms()
    mlflow_uri: str = Field(pattern=r"^[^@]*$")
    """Tracking server and registry: `http://…`, or `sqlite:///…` on a laptop. Name and password never stand here, for this
    is written into manifests and reports: they are in `MLFLOW_TRACKING_USERNAME` and `MLFLOW_TRACKING_PASSWORD`."""
    mlflow_artifacts: str | None = None
    """Where a local `sqlite` tracking store puts files; None: the server's own choice."""
    prices: dict[Priced, Price] = {}
    """Price of a device-hour by stage; `default` for the others. Without one, no cost is told."""
    currency: str = "USD"
    """Of the prices."""
    score: ScoreResources = ScoreResources()
    train: TrainResources = TrainResources()
    generate: GenerateResources = GenerateResources()
    judge: JudgeResources = JudgeResources()
    tune: TuneResources = TuneResources()
    housekeeping: Housekeeping = Housekeeping()
    approval: Approval = AutomaticApproval(kind="automatic")
    """Who lets a candidate take the champion's place after the gates."""
    notices: tuple[Notice, ...] = ()
    """Who is told what, and how. Secrets never stand here: they are in Airflow's connections."""

    @model_validator(mode="after")
    def _pods_reach_everything(self) -> Self:
        if self.executor == "local":
            if self.train.num_pods > 1:
                raise ValueError(
                    f"train.num_pods is {self.train.num_pods}, but executor is local: set it to 1, or executor to kubernetes"
                )
            return self
        if self.kubernetes is None:
            raise ValueError(
                "executor is kubernetes, but there is no part `kubernetes`: see configs/environments/eks.yaml"
            )
        if not self.store.startswith("s3://"):
            raise ValueError(f"store is {self.store}, which a pod cannot reach: with executor kubernetes it is s3://…")
        if (self.tune.storage or "").startswith("sqlite"):
            raise ValueError(
                f"tune.storage is {self.tune.storage}, which a pod cannot reach: with executor kubernetes it is env:NAME"
            )
        if not self.mlflow_uri.startswith("http"):
            raise ValueError(
                f"mlflow_uri is {self.mlflow_uri}, which a pod cannot reach: with executor kubernetes it is http(s)://…"
            )
        return self

    def cost(self, stage: str, device_seconds: float) -> float | None:
        """What device time of a stage costs, in `currency`; None where it has no price."""
        prices = {str(name): price for name, price in self.prices.items()}
        price = prices.get(stage, prices.get("default"))
        return None if price is None else device_seconds / 3600 * price


def load_recipe(
    path: str | Path,
    overrides: Sequence[str] = (),
    *,
    fill_in: Callable[[dict[str, Any], Recipe], dict[str, Any]] | None = None,
) -> Recipe:
    """Read a recipe file and apply dotted overrides such as `train.steps=200`.

    Args:
        path: of the file.
        overrides: of single settings.
        fill_in: makes of `train` with settings that are `auto`, and the recipe with them left out, one without; None: `auto` is refused.

    Raises:
        UserError: no such file, no YAML, an unknown key or a bad value; the message lists each with its place.
    """
    tree = _read_yaml(Path(path))
    for override in overrides:
        _apply_override(tree, override)
    tree = _with_absolute_paths(tree, Path(path).resolve().parent)
    train = tree.get("train")
    if fill_in is not None and isinstance(train, dict) and "auto" in train.values():
        settled = {name: value for name, value in train.items() if value != "auto"}
        duration = {} if {"steps", "epochs"} & settled.keys() else {"steps": 1}
        tree["train"] = fill_in(train, _validated(Recipe, {**tree, "train": settled | duration}, str(path)))
    return _validated(Recipe, tree, str(path))


def lacks_space(path: str | Path, environment: Environment) -> str | None:
    """Why a recipe cannot be tuned here as it stands; None: it has a space, and there is a database.

    Args:
        path: of its file; what is no file, such as `tuned:NAME`, came from a study and has a space.
    """
    if environment.tune.storage is None:
        return "tune.storage of the environment file is empty, so there is no database for a study."
    if Path(path).is_file() and not _read_yaml(Path(path)).get("tuning"):
        return f"the recipe {path} has no part `tuning`, so there is nothing to try."
    return None


def load_environment(path: str | Path) -> Environment:
    """Read an environment file; relative paths in it become absolute.

    Raises:
        UserError: as `load_recipe`.
    """
    folder = Path(path).resolve().parent
    tree = _read_yaml(Path(path))
    for name in ("store", "mlflow_artifacts"):
        if isinstance(tree.get(name), str) and "://" not in tree[name]:
            tree[name] = str((folder / Path(tree[name]).expanduser()).resolve())
    tune = tree.get("tune")
    for part, name in ((tree, "mlflow_uri"), (tune if isinstance(tune, dict) else {}, "storage")):
        uri = part.get(name)
        if isinstance(uri, str) and uri.startswith("sqlite:///"):
            part[name] = f"sqlite:///{(folder / uri.removeprefix('sqlite:///')).resolve()}"
    return _validated(Environment, tree, str(path))


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        near = sorted(str(other) for other in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        raise UserError(f"There is no file {path}. Beside it: {', '.join(near) or 'no .yaml file'}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not YAML: {error}. Mend the file.") from error
    if not isinstance(tree, dict):
        raise UserError(
            f"{path} holds {type(tree).__name__}, not a mapping of settings. Start from a file in configs/."
        )
    return tree


def load_comparison(path: str | Path) -> Comparison:
    """Read a comparison file; the path of its recipe becomes absolute.

    Raises:
        UserError: as `load_recipe`.
    """
    folder = Path(path).resolve().parent
    tree = _with_absolute_paths(_read_yaml(Path(path)), folder)
    if isinstance(tree.get("recipe"), str):
        tree["recipe"] = str((folder / Path(tree["recipe"]).expanduser()).resolve())
    return _validated(Comparison, tree, str(path))


def changed(recipe: Recipe, changes: Mapping[str, Any], where: str) -> Recipe:
    """The recipe with some settings changed.

    Args:
        changes: values by dotted name; a change of `kind` or `scorer` starts that part anew.
        where: what the changes are, for a message.

    Raises:
        UserError: an unknown setting, or a value that it refuses.
    """
    tree = recipe.model_dump(mode="json")
    for dotted, value in changes.items():
        _set(tree, dotted, value, f"{dotted}={value}")
    return _validated(Recipe, tree, where)


def _apply_override(tree: dict[str, Any], override: str) -> None:
    dotted, equals, text = override.partition("=")
    if not equals or not dotted.strip():
        raise UserError(f"The override {override!r} is not of the form a.b=value. Example: train.steps=200")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"The value of the override {override!r} is not YAML: {error}.") from error
    _set(tree, dotted.strip(), value, override)


def _set(tree: dict[str, Any], dotted: str, value: Any, override: str) -> None:
    *parents, leaf = dotted.split(".")
    for name in parents:
        child = tree.setdefault(name, {})
        if not isinstance(child, dict):
            raise UserError(f"The override {override!r} goes into {name!r}, which is {child!r} and has no parts.")
        tree = child
    if isinstance(value, str) and _is_number(value):
        value = float(value)  # YAML 1.1 reads 1e-4 as a string
    # A change of kind starts a new part: the old kind's own settings do not fit it.
    if leaf in ("kind", "scorer") and tree.get(leaf) not in (None, value):
        tree.clear()
    tree[leaf] = value


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _with_absolute_paths(tree: Any, folder: Path) -> Any:
    if isinstance(tree, Mapping):
        return {
            name: str((folder / Path(value).expanduser()).resolve())
            if name.rpartition(".")[2] == "path" and isinstance(value, str) and "://" not in value
            else _with_absolute_paths(value, folder)
            for name, value in tree.items()
        }
    if isinstance(tree, str) and _is_number(tree) and "e" in tree.lower():
        return float(tree)
    return tree


def _validated(model: type[M], tree: Any, where: str) -> M:
    try:
        return TypeAdapter(model).validate_python(tree)
    except ValidationError as error:
        problems = [_problem_text(model, dict(found)) for found in error.errors()]
        raise UserError(f"{where} does not fit:\n" + "\n".join(f"  {line}" for line in problems)) from None


def _problem_text(model: type[BaseModel], found: dict[str, Any]) -> str:
    place = ".".join(str(part) for part in found["loc"]) or "(the whole)"
    if found["type"] == "extra_forbidden":
        return f"{place} is not a setting; check its spelling against {model.__name__} in docs/configuration.md"
    return f"{place} is {found.get('input')!r}: {found['msg']}"
