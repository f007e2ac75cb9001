"""Decoding many prompts at once: a batch from which finished rows leave and which waiting prompts join.

Owns the loop, the batch and the choice of a token; which prompts there are and what becomes of the text is `generation`'s, keys
and values are `cache`'s, what sees what is `attention`'s, and whether heads 2..H guess ahead is `speculation`'s. Any model that
`model` takes apart and whose layers all are attention (full or sliding) can be decoded.

Whatever is asked of the model is one forward of J columns a row: J is the length of a prompt behind the prefix that all prompts
share, 1 in a plain step, and H where J - 1 guesses are checked. What a row becomes is a function of the model, the seed and its
request, up to floating-point order: a token is drawn from head 1's distribution with a number that belongs to its place in the
row, and a guess only says whether the distribution of the place behind it is known already.

Shape letters: B rows, J columns of a forward, N some of their hidden states, D width, V vocabulary.
"""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from mlops_tasks.errors import UserError
from mlops_tasks.evaluation.attention import Masks, grouped_attention
from mlops_tasks.evaluation.cache import RowCache
from mlops_tasks.evaluation.speculation import Speculation
from mlops_tasks.model import PROBE_TOLERANCE, MtpModel

_ATTENTION = (DynamicLayer, DynamicSlidingWindowLayer)
_MAX_TOKENS = 16_384  # of several prompts that are read in one forward, for what it keeps in memory
_JOIN_SHARE = 8  # rows join and leave when this part of the batch is free


@dataclass(frozen=True)
class Request:
    """One completion to make."""

    problem_id: str
    sample: int
    prompt_ids: tuple[int, ...]
    max_new_tokens: int


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen."""

    temperature: float
    """0: the most likely one."""
    top_p: float = 1.0
    """Only the likeliest tokens that together have this probability."""
    seed: int = 0


@dataclass
class Completed:
    """A request and the tokens that were made for it, without the end of sequence."""

    request: Request
    token_ids: list[int] = field(default_factory=list)
    is_ended: bool = False
    """By an end-of-sequence token."""


def decode(
    model: MtpModel,
    requests: Sequence[Request],
    *,
    sampling: Sampling,
    end_ids: frozenset[int],
    batch_size: int,
    is_enough: Callable[[list[int]], bool] = lambda token_ids: False,
    speculation: Speculation | None = None,
) -> Iterator[Completed]:
    """Complete requests, in the order in which they are done.

    Args:
        end_ids: tokens that end a completion.
        batch_size: rows decoded at one time.
        is_enough: asked after each token with the row's tokens; True ends the row.
        speculation: when to let heads 2..H guess, and what came of it; None: never. Like `batch_size`, it changes no completion.

    Raises:
        UserError: the model keeps a state other than attention's, rows of different lengths cannot be put side by side, or its heads
            are to guess and cannot.
    """
    # The longest first: rows of like length share a prefill, and no long straggler is left at the end.
    waiting = deque(sorted(requests, key=lambda one: len(one.prompt_ids), reverse=True))
    batch = _Batch(model, sampling, end_ids, is_enough, speculation or Speculation("never"))
    batch.read_prefix([request.prompt_ids for request in requests])
    least = max(1, batch_size // _JOIN_SHARE)
    while waiting or batch.num_alive:
        room = batch_size - batch.num_alive
        if waiting and room >= least:
            yield from batch.admit([waiting.popleft() for _ in range(min(room, len(waiting)))])
        elif not waiting and batch.num_rows - batch.num_alive >= least:
            batch.drop_finished()
        if batch.num_alive:
            yield from batch.step()


class _Row:
    """A request under way."""

    def __init__(self, request: Request, sampling: Sampling) -> None:
        self.completed = Completed(request)
        self.is_alive = True
        self.guesses: list[int] = []
        # A stream of its own: what is drawn for a row depends on nothing else in the batch.
        name = f"{sampling.seed}:{request.problem_id}:{request.sample}"
        self._stream = np.random.Generator(np.random.PCG64(int.from_bytes(hashlib.sha256(name.encode()).digest())))
        self._draws: list[float] = []

    @property
    def newest_token(self) -> int:
        """It is not read yet; a finished row has nothing to read."""
        return self.completed.token_ids[-1] if self.is_alive else 0

    @property
    def position(self) -> int:
        """Of the newest token."""
        return len(self.completed.request.prompt_ids) + len(self.completed.token_ids) - 1 if self.is_alive else 0

    @property
    def last_position(self) -> int:
        """Of the last token that there can be. It is never read, so whatever is beyond may be written there."""
        return len(self.completed.request.prompt_ids) + self.completed.request.max_new_tokens - 1

    def draws(self, count: int) -> list[float]:
        """The numbers of the next tokens: each place has its own, however often it is asked for."""
        first = len(self.completed.token_ids)
        while len(self._draws) < first + count:
            self._draws.append(self._stream.random())
        return self._draws[first : first + count]

    def accept(self, tokens: Sequence[int], end_ids: frozenset[int], is_enough: Callable[[list[int]], bool]) -> int:
        """Append tokens as far as each was made behind the right ones, or to the end; returns how many were made.

        Args:
            tokens: chosen behind the newest token, behind it and the first guess, and so on.
        """
        for count, (token, guess) in enumerate(zip(tokens, [*self.guesses, None], strict=True), start=1):
            self._append(token, end_ids, is_enough)
            if not self.is_alive or token != guess:
                return count
        raise AssertionError("no guess is None")

    def _append(self, token: int, end_ids: frozenset[int], is_enough: Callable[[list[int]], bool]) -> None:
        if token in end_ids:
            self.completed.is_ended = True
            self.is_alive = False
            return
        made = self.completed.token_ids
        made.append(token)
        self.is_alive = len(made) < self.completed.request.max_new_tokens and not is_enough(made)


class _Batch:
    """Rows that are decoded together, with their cache. A finished row keeps its place until another takes it."""

    def __init__(
        self,
        model: MtpModel,
        sampling: Sampling,
        end_ids: frozenset[int],
        is_enough: Callable[[list[int]], bool],
        speculation: Speculation,
    ) -> None:
        self.reader = _Reader(model)
        self.reader.require_exact()
        self.model, self.sampling, self.end_ids, self.is_enough = model, sampling, end_ids, is_enough
        self.speculation = _possible(speculation, model)
        self.rows: list[_Row] = []
        self.size = 0  # of the next step, in rows
        self.cache, self.prefix_cache = self.reader.new_cache(), self.reader.new_cache()
        self.prefix_length = 0

    @property
    def num_rows(self) -> int:
        return len(self.rows)

    @property
    def num_alive(self) -> int:
        return sum(row.is_alive for row in self.rows)

    @torch.inference_mode()
    def read_prefix(self, prompts: Sequence[tuple[int, ...]]) -> None:
        """Read once what all prompts start with, such as the solved problems that a protocol shows first."""
        if len(set(prompts)) < 2:
            return
        # The last token of a prompt is left, for a token is chosen behind it.
        first, last = min(prompts)[:-1], max(prompts)[:-1]  # what these two share, all that lie between them share
        differing = (place for place, (a, b) in enumerate(zip(first, last, strict=False)) if a != b)
        shared = first[: next(differing, min(len(first), len(last)))]
        if shared:
            self.reader.read([list(shared)], [range(len(shared))], self.prefix_cache)
            self.prefix_length = len(shared)

    @torch.inference_mode()
    def admit(self, requests: Sequence[Request]) -> list[Completed]:
        """Take requests in, the longest first; returns those that their first token ends."""
        self.size = max(self.num_rows, self.num_alive + len(requests))
        of_prompt: dict[tuple[int, ...], list[_Row]] = {}
        for request in requests:
            of_prompt.setdefault(request.prompt_ids, []).append(_Row(request, self.sampling))
        for prompts in self._alike(list(of_prompt)):
            cache, hidden_BD = self._prefill(prompts)
            # Samples of one prompt share its prefill.
            joining = [(index, row) for index, prompt in enumerate(prompts) for row in of_prompt[prompt]]
            self._join(cache, hidden_BD, [index for index, _ in joining], [row for _, row in joining])
        return [row.completed for rows in of_prompt.values() for row in rows if not row.is_alive]

    def _alike(self, prompts: Sequence[tuple[int, ...]]) -> list[list[tuple[int, ...]]]:
        """Prompts that are read side by side: padding is less than a quarter of each, and all together are not too long."""
        groups: list[list[tuple[int, ...]]] = []
        for prompt in prompts:
            group = groups[-1] if groups else [prompt]
            length, longest = (len(one) - self.prefix_length for one in (prompt, group[0]))
            if groups and 4 * length > 3 * longest and (1 + len(group)) * longest <= _MAX_TOKENS:
                group.append(prompt)
            else:
                groups.append([prompt])
        return groups

    def _join(self, cache: RowCache, hidden_BD: Tensor, of_prompt: Sequence[int], rows: Sequence[_Row]) -> None:
        """Choose the first token of rows, and put them in the places of finished ones or behind all."""
        self._extend(rows, hidden_BD[of_prompt][:, None])
        free = [index for index, row in enumerate(self.rows) if not row.is_alive]
        places = [*free, *range(self.num_rows, self.num_rows + len(rows))][: len(rows)]
        self.cache.put(places, cache, of_prompt)
        self.rows += rows[len(free) :]
        for index, row in zip(places, rows, strict=True):
            self.rows[index] = row

    @torch.inference_mode()
    def drop_finished(self) -> None:
        """Take finished rows out of the cache."""
        staying = [index for index, row in enumerate(self.rows) if row.is_alive]
        self.rows = [self.rows[index] for index in staying]
        self.size = self.num_rows
        self.cache = self.cache.rows(staying, max(row.position for row in self.rows))

    @torch.inference_mode()
    def step(self) -> list[Completed]:
        """A token or more for each row; returns the rows that it ends."""
        started = time.perf_counter()
        alive = [row for row in self.rows if row.is_alive]
        num_guesses = max(len(row.guesses) for row in alive)
        for row in self.rows:
            # A row that joined while nobody guessed has none, and any token is a valid guess.
            row.guesses = (row.guesses + [0] * num_guesses)[:num_guesses]
        ids = [[row.newest_token, *row.guesses] for row in self.rows]
        ahead = range(num_guesses + 1)
        positions = [[min(row.position + one, row.last_position) for one in ahead] for row in self.rows]
        counts = self._extend(self.rows, self.reader.read(ids, positions, self.cache))
        self.speculation.record(
            self.size, has_guesses=num_guesses > 0, counts=counts, seconds=time.perf_counter() - started
        )
        return [row.completed for row in alive if not row.is_alive]

    def _prefill(self, prompts: Sequence[tuple[int, ...]]) -> tuple[RowCache, Tensor]:
        """The cache of prompts, and the hidden state [B, D] of the last token of each."""
        behind = [list(prompt[self.prefix_length :]) for prompt in prompts]
        width = max(map(len, behind))
        cache = self.prefix_cache.rows([0] * len(prompts), self.prefix_length)
        positions = range(self.prefix_length, self.prefix_length + width)
        ids = [tokens + [0] * (width - len(tokens)) for tokens in behind]
        hidden_BJD = self.reader.read(ids, [positions] * len(prompts), cache)
        last_B = torch.tensor([len(tokens) - 1 for tokens in behind], device=hidden_BJD.device)
        return cache, _at(hidden_BJD, last_B)

    def _extend(self, rows: Sequence[_Row], hidden_BJD: Tensor) -> list[int]:
        """Choose tokens for rows, and guess the next where it is worth it; returns how many each row that was alive got.

        Args:
            hidden_BJD: of a row's newest token and of its J - 1 guesses.
        """
        num_rows, num_columns, width = hidden_BJD.shape
        logits_NV = self.model.head_logits(hidden_BJD.reshape(-1, width), 1).float()
        draws = [draw for row in rows for draw in row.draws(num_columns)] if self.sampling.temperature else []
        tokens_BJ = choose(logits_NV, draws=draws, sampling=self.sampling).view(num_rows, num_columns)
        parts = [tokens_BJ]
        if self.speculation.is_wanted(self.size):
            guesses_BG = torch.tensor([row.guesses for row in rows], device=hidden_BJD.device)
            num_right_B = (tokens_BJ[:, :-1] == guesses_BG).cumprod(dim=1).sum(dim=1)
            parts.append(self.model.guess(_at(hidden_BJD, num_right_B)))
        counts = []
        found = torch.cat(parts, dim=1).tolist()  # the only wait for a GPU in a step
        for row, values in zip(rows, found, strict=True):
            if row.is_alive:
                counts.append(row.accept(values[:num_columns], self.end_ids, self.is_enough))
            row.guesses = values[num_columns:]
        return counts


def _possible(speculation: Speculation, model: MtpModel) -> Speculation:
    if speculation.mode == "always" and model.num_heads > 1 and not model.can_guess:
        raise UserError(
            f"generate.speculation is always, but heads 2 to {model.num_heads} of the model are whole layers, which cannot guess ahead here: each "
            "would need keys and values of its own. Set it to auto or never in the environment file."
        )
    return speculation if model.can_guess else Speculation("never")


class _Reader:
    """Reads tokens with the trunk, each row at its own positions."""

    def __init__(self, model: MtpModel) -> None:
        self.model = model
        layers = DynamicCache(config=model.base.config).layers
        other = sorted({type(layer).__name__ for layer in layers if type(layer) not in _ATTENTION})
        if other:
            raise self._refusal(f"it keeps {', '.join(other)} between tokens")
        self.num_layers = len(layers)
        try:
            self.masks = Masks([getattr(layer, "sliding_window", None) for layer in layers])
        except ValueError as error:
            raise self._refusal(str(error)) from None

    def new_cache(self) -> RowCache:
        return RowCache(self.num_layers)

    def read(self, ids: Sequence[Sequence[int]], positions: Sequence[Sequence[int]], cache: RowCache) -> Tensor:
        """Hidden states [B, J, D] of tokens, which are put into the cache at their positions."""
        device = self.model.base.device
        ids_BJ, positions_BJ = torch.tensor([ids, [list(row) for row in positions]]).to(device)
        num_columns = 1 + max(max(row) for row in positions)
        cache.aim(positions_BJ, num_columns)
        mask = self.masks(positions_BJ, num_columns, self.model.base.dtype)
        with grouped_attention(self.model.base.config):
            return self.model.hidden_behind(ids_BJ, positions_BJ, mask=mask, cache=cache)

    @torch.inference_mode()
    def require_exact(self) -> None:
        """Prove on a few tokens that a row of a batch is read as it is alone.

        Raises:
            UserError: it is not, or the architecture cannot be called in this way.
        """
        device = self.model.base.device
        ids_S = torch.arange(8, device=device) % self.model.base.config.get_text_config().vocab_size
        ids, places = ids_S.tolist(), range(8)
        cache = self.new_cache()
        try:
            alone_SD = self.model.hidden(ids_S[None], torch.arange(8, device=device)[None])[0]
            self.read([ids[:6], ids[:6]], [places[:6], places[:6]], cache)
            # The second row writes over three of its columns, as one does whose guesses were wrong.
            found_BJD = self.read([ids[6:8], ids[3:5]], [places[6:8], places[3:5]], cache)
        # Whatever a foreign architecture raises here means one thing to the user: it cannot be used.
        except (TypeError, ValueError, AttributeError, KeyError, IndexError, RuntimeError) as error:
            raise self._refusal(f"it fails on eight tokens: {type(error).__name__}: {error}") from error
        expected_BJD = torch.stack([alone_SD[6:8], alone_SD[3:5]])
        tolerance = max(PROBE_TOLERANCE, 8 * torch.finfo(alone_SD.dtype).eps)
        if (found_BJD - expected_BJD).abs().max() > tolerance * alone_SD.abs().max():
            raise self._refusal("rows of different lengths are not read as each is alone")

    def _refusal(self, fault: str) -> UserError:
        base = self.model.base
        return UserError(
            f"The model {base.name_or_path} ({base.config.model_type}) cannot be decoded in batches here: {fault}. Evaluate a model "
            "whose layers are all attention and that takes positions, such as a Llama, Qwen2, Gemma or GPT-2."
        )


def _at(values_BJD: Tensor, index_B: Tensor) -> Tensor:
    """One column of each row: [B, D]."""
    return values_BJD[torch.arange(len(values_BJD), device=values_BJD.device), index_B]


def choose(logits_NV: Tensor, *, draws: Sequence[float], sampling: Sampling) -> Tensor:
    """One token for each distribution.

    Args:
        logits_NV: float32 [N, V].
        draws: N numbers in [0, 1); a token is where the cumulative probability, in order of token id, passes its number. Not
            looked at where the likeliest is taken.

    Returns:
        int64 [N].

    Example:
        probabilities 0.5, 0.3, 0.2 and top_p 0.7 leave tokens 0 and 1 with 0.625 and 0.375; the draw 0.7 gives token 1.
    """
    if sampling.temperature == 0:
        return logits_NV.argmax(dim=-1)
    # In float64, or the tail of a large vocabulary is lost in the sum; Apple's GPUs have none.
    device = logits_NV.device
    logits_NV = logits_NV.cpu() if device.type == "mps" else logits_NV
    p_NV = torch.softmax(logits_NV.double() / sampling.temperature, dim=-1)
    if sampling.top_p < 1:
        sorted_NV, order_NV = p_NV.sort(dim=-1, descending=True, stable=True)
        is_out_NV = sorted_NV.cumsum(dim=-1) - sorted_NV >= sampling.top_p  # what came before was enough
        p_NV = p_NV.masked_fill(torch.zeros_like(is_out_NV).scatter(1, order_NV, is_out_NV), 0.0)
    cumulative_NV = p_NV.cumsum(dim=-1)
    marks_N1 = torch.tensor(draws, dtype=torch.float64, device=p_NV.device)[:, None] * cumulative_NV[:, -1:]
    return torch.searchsorted(cumulative_NV, marks_N1, right=True)[:, 0].to(device)
