"""Settings: where problems and the model come from, and how a problem becomes tokens.

A `path` is where they lie now; a key holds the digest of what lies there instead.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from mlops_tasks.config.settings import Settings

Split = Literal["prompt", "train", "validation", "test"]
ProblemKind = Literal["asserts", "completion", "stdio"]
"""`asserts`: write a function that asserts call; `completion`: go on with code; `stdio`: write a script."""

PROTOCOLS = tuple(
    sorted(file.stem.replace("_", "-") for file in Path(__file__).parents[1].glob("data/protocols/[a-z]*.py"))
)
"""Each module of `data.protocols` is a choice; to add one is to add a file."""
if TYPE_CHECKING:
    ProtocolId = str
else:
    ProtocolId = Literal[PROTOCOLS]


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
