"""From a problem to the text that a model is given, and from what it wrote to a program.

Owns every character between a problem and the tokenizer, by the form that a recipe names; the forms are in `protocols`. Training
and evaluation both come here, so what is learnt is what is asked for. The end-of-sequence token is the tokenizer's affair, see
`tokens`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from mlops_tasks.config.sources import PROTOCOLS, ProblemKind, ProtocolId
from mlops_tasks.data.problems import Problem
from mlops_tasks.data.protocols import protocol_named
from mlops_tasks.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def shots_of(problems: Sequence[Problem], protocol: ProtocolId) -> tuple[Problem, ...]:
    """The solved problems that a protocol shows first.

    Args:
        problems: all problems of the split `prompt`.

    Raises:
        UserError: the protocol wants shots and the data set does not have them.
    """
    wanted = protocol_named(protocol).shot_ids
    by_id = {problem.id: problem for problem in problems}
    missing = [shot for shot in wanted if shot not in by_id]
    if missing:
        raise UserError(
            f"The protocol {protocol} shows the problems {', '.join(wanted)} of the split 'prompt', and the data has no "
            f"{', '.join(missing)} there (it has {', '.join(by_id) or 'none'}). "
            "Add them to the data, or use the protocol docstring-0shot."
        )
    return tuple(by_id[shot] for shot in wanted)


def require_kind(problems: Iterable[Problem], protocol: ProtocolId) -> None:
    """Refuse problems that a protocol has no words for.

    Raises:
        UserError: one of them asks for something else than the protocol can ask for.
    """
    kinds = protocol_named(protocol).kinds
    other = next((problem for problem in problems if problem.kind not in kinds), None)
    if other is not None:
        raise mismatch(protocol, other.kind, f"problem {other.id}")


def mismatch(protocol: ProtocolId, kind: ProblemKind, where: str) -> UserError:
    """What is said of a protocol that cannot ask for problems of a kind."""
    fitting = [one for one in PROTOCOLS if kind in protocol_named(one).kinds]
    return UserError(
        f"The protocol {protocol} asks for {' or '.join(protocol_named(protocol).kinds)} problems, and {where} is of the kind {kind}. "
        f"For that set text.prompt and evaluation.protocol to {' or '.join(fitting)}."
    )


def render_prompt(
    problem: Problem,
    protocol: ProtocolId,
    shots: Sequence[Problem] = (),
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> str:
    """The text that a model is given.

    Args:
        shots: what `shots_of` returned.
        tokenizer: whose chat template is used; only a chat protocol needs it.

    Raises:
        UserError: a chat protocol, and the tokenizer has no chat template.
    """
    form = protocol_named(protocol)
    assert len(shots) == len(form.shot_ids), f"{protocol} shows {len(form.shot_ids)} problems, got {len(shots)}"
    text = form.render(problem, shots)
    if not form.is_chat:
        return text
    assert tokenizer is not None, f"{protocol} needs a tokenizer"
    if not tokenizer.chat_template:
        raise UserError(
            f"The protocol {protocol} needs a chat template, and the tokenizer {tokenizer.name_or_path!r} has none. Take an "
            "instruction-tuned model, or another protocol."
        )
    said = tokenizer.apply_chat_template(
        [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
    )
    assert isinstance(said, str)
    return said


def is_chat(protocol: ProtocolId) -> bool:
    """Whether special tokens in a prompt of this protocol are the chat template's own and mean what they say."""
    return protocol_named(protocol).is_chat


def completion_text(problem: Problem, protocol: ProtocolId) -> str:
    """The text that is learnt after the prompt, without the end-of-sequence token."""
    return protocol_named(protocol).answer(problem)


def cut_at_stop(completion: str, protocol: ProtocolId) -> tuple[str, bool]:
    """What a model wrote up to where it is done, and whether it is."""
    form = protocol_named(protocol)
    places = [place for stop in form.stops if (place := completion.find(stop)) >= 0]
    if not places:
        return completion, False
    end = form.end_of(completion) if form.end_of else min(places)
    return completion[:end], end is not None


def program_of(problem: Problem, completion: str, protocol: ProtocolId) -> str:
    """The program in a completion."""
    return protocol_named(protocol).program_of(problem, completion)


def prompts_sha256(prompts: Sequence[str]) -> str:
    """Identify what was asked: two scores with the same hash were given the same prompts in the same order."""
    return hashlib.sha256(json.dumps(list(prompts)).encode()).hexdigest()
