"""The critic: values of states, and what each token changes of them.

Owns the value head, the states that it sees, and the maths of temporal differences and advantages. How a head learns is
`fitting`'s, whether it may be used `gate`'s.

The actions are the target tokens p..T of a solution; the state before token j is the trunk's hidden state at j - 1. All reward
comes at the end and nothing is discounted: r_j = 0 but r_T = R, and γ = 1.

Shapes: C candidates, S targets of the longest one, N states of all, D width, B rows of a forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
from torch import Tensor, nn

from mlops_tasks.data.tokens import Example, Row, to_batch
from mlops_tasks.model import MtpModel

HEADS_FILE = "value_heads.safetensors"
_WIDTH = 64


class ValueNetwork(nn.Module):
    """V: D → 64, SiLU, 64 → 1 on standardised states. The last layer starts at zero, so that every value does."""

    mean_D: Tensor
    deviation_D: Tensor

    def __init__(self, num_features: int, *, seed: int = 0) -> None:
        super().__init__()
        self.register_buffer("mean_D", torch.zeros(num_features))
        self.register_buffer("deviation_D", torch.ones(num_features))
        self.inner = nn.Linear(num_features, _WIDTH)
        self.outer = nn.Linear(_WIDTH, 1)
        generator = torch.Generator().manual_seed(seed)
        nn.init.normal_(self.inner.weight, std=num_features**-0.5, generator=generator)
        for zero in (self.inner.bias, self.outer.weight, self.outer.bias):
            nn.init.zeros_(zero)

    def standardise(self, states_ND: Tensor) -> None:
        """Take mean and deviation of each feature from these states."""
        deviation_D, mean_D = torch.std_mean(states_ND, dim=0, correction=0)
        # A few features of a language model's states are hundreds of times larger than the others.
        self.mean_D.copy_(mean_D)
        self.deviation_D.copy_(deviation_D.clamp(min=1e-6))

    def forward(self, states_ND: Tensor) -> Tensor:
        """Values of states, one each."""
        inner = self.inner((states_ND - self.mean_D) / self.deviation_D)
        return cast(Tensor, self.outer(nn.functional.silu(inner)).squeeze(-1))


def is_state(lengths: Sequence[int]) -> Tensor:
    """Bool [C, S]: which places of padded candidates are states.

    Args:
        lengths: number of targets of each candidate, one at least.
    """
    return torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


def td_errors(values_CS: Tensor, rewards_C: Tensor, *, is_state_CS: Tensor) -> Tensor:
    """δ_j = r_j + V_j - V_{j-1}: by how much each token changes the reward that is expected.

    Args:
        values_CS: V_{j-1}, the value of the state before the j-th target, at column j.
        rewards_C: R.
        is_state_CS: from `is_state`.

    Returns:
        δ_CS, at column j of the j-th target; 0 where there is no state. A row's sum is R - V of its first state.

    Example:
        Values 0.0 0.5 0.2 and R = 1 give 0.5 -0.3 0.8.

    Reference:
        Sutton and Barto, Reinforcement Learning, section 6.1; the state behind the last token has the value 0.
    """
    is_followed_CS = nn.functional.pad(is_state_CS[:, 1:], (0, 1))
    next_CS = nn.functional.pad(values_CS[:, 1:], (0, 1)) * is_followed_CS
    reward_CS = rewards_C[:, None] * (is_state_CS & ~is_followed_CS)
    return (reward_CS + next_CS - values_CS) * is_state_CS


def gae(errors_CS: Tensor, *, lam: float) -> Tensor:
    """Generalised advantages A_j = Σ_l λ^l δ_{j+l}.

    Args:
        errors_CS: from `td_errors`.
        lam: 1: what came minus what was expected; 0: δ itself.

    Reference:
        arXiv 1506.02438, equation 16, with γ = 1.
    """
    columns_S = torch.arange(errors_CS.shape[1], device=errors_CS.device)
    later_SS = columns_S[:, None] - columns_S  # l of δ in row j + l for A in column j
    powers_S = lam ** columns_S.to(errors_CS.dtype)
    return errors_CS @ powers_S[later_SS.clamp(min=0)].tril()  # with a loop over columns a pass took 1.4 times as long


@torch.no_grad()
def token_scores(head: ValueNetwork, states_ND: Tensor, reward: float) -> npt.NDArray[np.float32]:
    """The score of each target of one solution: δ_j.

    Args:
        head: that did not learn from this problem.
        states_ND: from `target_states`.
        reward: R of the solution.
    """
    values_CS = head(states_ND)[None]
    errors_CS = td_errors(values_CS, torch.tensor([reward]), is_state_CS=is_state([len(states_ND)]))
    scores: npt.NDArray[np.float32] = errors_CS[0].numpy()
    return scores


def explained_variance(values_N: Tensor, returns_N: Tensor) -> float:
    """1 - Var(G - V)/Var(G): 1 is perfect, 0 as good as a constant, and worse than that is below 0."""
    returns_N = returns_N.double()
    return 1 - float((returns_N - values_N.double()).var(correction=0) / returns_N.var(correction=0))


@torch.no_grad()
def target_states(model: MtpModel, examples: Sequence[Example], *, batch_rows: int) -> list[Tensor]:
    """States before the targets of examples, in their order.

    Args:
        model: In evaluation mode.
        examples: One a row, so that none can see another.
        batch_rows: Rows in one forward; another number changes the last bits.

    Returns:
        One float32 [n, D] an example, on the CPU.
    """
    by_length = sorted(range(len(examples)), key=lambda index: len(examples[index]))
    states: dict[int, Tensor] = {}
    for start in range(0, len(examples), batch_rows):
        chosen = by_length[start : start + batch_rows]
        batch = to_batch([Row((examples[index],)) for index in chosen], pad_id=0).to(model.base.device)
        hidden_BSD = model.hidden(batch.input_ids, batch.position_ids)
        # The state before token j lies at j - 1.
        is_before_BS = nn.functional.pad(batch.is_target[:, 1:], (0, 1))
        states |= {index: hidden_BSD[b, is_before_BS[b]].float().cpu() for b, index in enumerate(chosen)}
    return [states[index] for index in range(len(examples))]


def save_heads(path: Path, heads: Sequence[ValueNetwork]) -> None:
    """Write the heads of all folds into one file."""
    tensors = {f"{fold}.{name}": value for fold, head in enumerate(heads) for name, value in head.state_dict().items()}
    safetensors.torch.save_file(tensors, path)


def load_heads(path: Path) -> list[ValueNetwork]:
    """Read what `save_heads` wrote."""
    stored = safetensors.torch.load_file(path)
    heads = []
    for fold in range(len({name.partition(".")[0] for name in stored})):
        state = {name.partition(".")[2]: value for name, value in stored.items() if name.startswith(f"{fold}.")}
        head = ValueNetwork(len(state["mean_D"]))
        head.load_state_dict(state)
        heads.append(head.eval())
    return heads
