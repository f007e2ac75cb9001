"""The published forms of a prompt, one small module each; the module's name is the form's id, with `_` for `-`.

Owns what every form has to say (`Protocol`), and the lookup by id. To add one is to add a module with a `PROTOCOL`: the setting's
choices are the modules that are there, and a key covers only those that its recipe names. Putting a form to use, for training and
evaluation alike, is `prompts`'.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mlops_tasks.config.sources import ProblemKind, ProtocolId
from mlops_tasks.data.problems import Problem


@dataclass(frozen=True)
class Protocol:
    """How a problem is asked and an answer is read. Line ends are \\n throughout."""

    kinds: tuple[ProblemKind, ...]
    """What it can ask for."""
    render: Callable[[Problem, Sequence[Problem]], str]
    """The prompt for a problem, after the shots."""
    answer: Callable[[Problem], str]
    """What a model that knows the solution writes after the prompt, without the end of sequence."""
    stops: tuple[str, ...] = ()
    """A completion ends before the first of these, unless `end_of` says otherwise."""
    end_of: Callable[[str], int | None] | None = None
    """Where a completion that holds a stop string ends; None: not yet."""
    program_of: Callable[[Problem, str], str] = lambda problem, completion: completion
    """The program in a completion."""
    shot_ids: tuple[str, ...] = ()
    """Problems of the split `prompt` that are shown first, solved."""
    is_chat: bool = False
    """The prompt is what a user says; the tokenizer's chat template goes around it."""


def module_of(protocol: ProtocolId) -> str:
    """The module that a key has to cover where a setting names this protocol."""
    return f"{__name__}.{protocol.replace('-', '_')}"


def protocol_named(protocol: ProtocolId) -> Protocol:
    """The form with this id, one of `config.PROTOCOLS`."""
    found: Protocol = importlib.import_module(module_of(protocol)).PROTOCOL
    return found
