"""Settings: how a model learns, and how its tokens are scored and weighted."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from mlops_tasks.config.settings import Settings
from mlops_tasks.config.sources import DataSource, FolderModel, HubModel, ModelSource


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
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of what the matrices see that is dropped while they learn; masks hang on seed, step, problem, token and layer alone."""


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
    """ε: the least weight of a token, before `strength`."""
    max_weight: float = Field(3.0, ge=1)
    """W_max: the largest weight of a token, before `strength`."""
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
