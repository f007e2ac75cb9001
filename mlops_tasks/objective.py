"""What a micro-batch adds to the loss of a step: model, weights and loss as one module.

Owns how the weights of a micro-batch come about, from fixed scores or from the running student. The maths of a loss is `loss`'s,
from scores to weights `scoring.weights`'; sums over micro-batches and ranks are `training`'s.

Shape letters: H head, B packed rows, S position, D width.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from mlops_tasks.calibration import bin_sums
from mlops_tasks.corpus import Lesson, MicroBatch
from mlops_tasks.dropout import dropouts_of
from mlops_tasks.loss import at_tokens, head_balance, mtp_loss, shifted_weights, token_losses
from mlops_tasks.model import MtpModel, States
from mlops_tasks.scoring.scorers import excess
from mlops_tasks.scoring.weights import batch_weights, spread_sums


class StepSums(NamedTuple):
    """What a micro-batch adds to a step; sums add up over micro-batches and ranks."""

    loss: Tensor
    """Scalar with gradient."""
    head_nats_H: Tensor
    weight_sums: Tensor
    """`spread_sums` of the targets of head 1."""


class WeightedLoss(nn.Module):
    """Model, weights and loss as one module, which is what DistributedDataParallel wraps."""

    def __init__(self, model: MtpModel, lesson: Lesson, *, chunk_rows: int) -> None:
        super().__init__()
        self.model = model
        self.lesson = lesson
        self.chunk_rows = chunk_rows
        self.balance_H = head_balance(lesson.train.head_balance, lesson.train.num_heads)
        self._dropouts = dropouts_of(model)

    def forward(self, micro: MicroBatch, num_targets_H: Tensor, scale: float = 1.0) -> StepSums:
        """The loss of a micro-batch.

        Args:
            micro: on the model's device.
            num_targets_H: N_k over all micro-batches and ranks of the step.
            scale: what the loss is multiplied by; here, because `mtp_loss` takes its gradients before anybody can scale them.
        """
        hidden_BSD, call = self.states(micro)
        weights_BS = self.weights(micro, hidden_BSD)
        weights_HBS = shifted_weights(weights_BS, targets_HBS=micro.targets_HBS)
        found = mtp_loss(
            self.model,
            hidden_BSD,
            call=call,
            targets_HBS=micro.targets_HBS,
            weights_HBS=weights_HBS,
            balance_H=scale * self.balance_H.to(hidden_BSD.device),
            num_targets_H=num_targets_H,
            chunk_rows=self.chunk_rows,
        )
        return StepSums(found.loss, found.head_nats_H, spread_sums(weights_HBS[0]))

    def probe(self, name: str) -> None:
        """`MtpModel.probe`, of a model that is spread too."""
        self.model.probe(name)

    def weights_of(self, micro: MicroBatch) -> Tensor:
        """`weights` of a micro-batch alone."""
        return self.weights(micro, self.states(micro).hidden_BSD)

    def sureness_of(self, micro: MicroBatch) -> Tensor:
        """How sure each head is of a micro-batch, and how often right: see `calibration.bin_sums`."""
        return bin_sums(self.model, self.states(micro), targets_HBS=micro.targets_HBS, chunk_rows=self.chunk_rows)

    def states(self, micro: MicroBatch) -> States:
        """What the trunk makes of a micro-batch."""
        for dropout in self._dropouts:
            dropout.tokens_BS = micro.numbers_BS
        return self.model.states(micro.batch.input_ids, micro.batch.position_ids)

    def weights(self, micro: MicroBatch, hidden_BSD: Tensor) -> Tensor:
        """w_BS: the weight of each target token at its own column, 0 elsewhere."""
        if micro.values_BS is None:
            return micro.batch.is_target.float()
        scoring, weighting, scores_BS = self.lesson.scoring, self.lesson.weighting, micro.values_BS
        assert weighting is not None, f"{scoring.scorer} needs a weighting"
        if scoring.is_dynamic:
            nats_BS = token_losses(self.model, hidden_BSD, targets_BS=micro.targets_HBS[0], chunk_rows=self.chunk_rows)
            scores_BS = excess(at_tokens(nats_BS), micro.values_BS, scoring.excess, self.lesson.train.precision)
        return batch_weights(
            scores_BS,
            is_target_BS=micro.batch.is_target,
            document_ids_BS=micro.batch.document_ids,
            weighting=weighting,
        )
