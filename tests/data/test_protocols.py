"""Every protocol there is: what it asks for, where a reply ends, which program is in it, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from mlops_tasks.config.environment import Environment
from mlops_tasks.config.sources import PROTOCOLS, RandomModel, Text
from mlops_tasks.data import protocols
from mlops_tasks.data.problems import IoTest, Problem
from mlops_tasks.data.prompts import completion_text, cut_at_stop, program_of, render_prompt, require_kind
from mlops_tasks.data.protocols import Protocol, module_of, protocol_named
from mlops_tasks.data.random_model import build
from mlops_tasks.data.tokens import encode, encode_prompts
from mlops_tasks.errors import UserError
from mlops_tasks.planning import resolve

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
STUB = 'def add(a: int, b: int) -> int:\n    """Add two numbers."""\n'
BODY = "    return a + b\n"


def problem(**changes: Any) -> Problem:
    values = {
        "id": "7", "prompt": "Write a function to add two numbers.", "solution": "def add(a, b):\n    return a + b",
        "tests": ("assert add(1, 2) == 3", "assert add(0, 0) == 0"), "entry_point": "add", "split": "test", "source": "own",
        "licence": "unknown",
    }  # fmt: skip
    return Problem.model_validate(values | changes)


ASSERTS = problem()
COMPLETION = problem(prompt=STUB, solution=STUB + BODY, tests=("def check(f):\n    assert f(1, 2) == 3\n\ncheck(add)",))
STDIO = problem(
    prompt="Print the sum of two integers.", solution="print(sum(map(int, input().split())))\n", tests=(),
    io_tests=(IoTest(input="1 2\n", output="3\n"),), entry_point="",
)  # fmt: skip
KINDS = {"asserts": ASSERTS, "completion": COMPLETION, "stdio": STDIO}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    folder = tmp_path_factory.mktemp("model")
    build(RandomModel(kind="random", hidden_size=32, num_layers=1, vocab_size=320), folder)
    loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    loaded.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return loaded


@pytest.fixture
def chatty(tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch) -> PreTrainedTokenizerBase:
    monkeypatch.setattr(tokenizer, "chat_template", TEMPLATE)
    return tokenizer


def test_each_module_is_a_choice_of_the_setting_and_has_a_protocol() -> None:
    folder = Path(protocols.__file__).parent
    assert {file.name for file in folder.glob("*.py")} == {
        "__init__.py",
        *(module_of(one).rpartition(".")[2] + ".py" for one in PROTOCOLS),
    }
    assert all(isinstance(protocol_named(one), Protocol) for one in PROTOCOLS)
    assert {kind for one in PROTOCOLS for kind in protocol_named(one).kinds} == {"asserts", "completion", "stdio"}


@pytest.mark.parametrize("kind", KINDS)
def test_the_kind_of_a_problem_is_seen_from_it(kind: str) -> None:
    assert KINDS[kind].kind == kind


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_learnt_answer_is_read_back_as_the_solution(protocol: str) -> None:
    for kind in protocol_named(protocol).kinds:
        asked = KINDS[kind]
        written, _ = cut_at_stop(completion_text(asked, protocol) + "\n", protocol)
        assert program_of(asked, written, protocol).rstrip() == asked.solution.rstrip(), kind


def test_a_humaneval_prompt_is_the_problems_own_and_the_program_begins_with_it() -> None:
    assert render_prompt(COMPLETION, "humaneval-completion") == STUB
    assert completion_text(COMPLETION, "humaneval-completion") == BODY
    written, is_done = cut_at_stop(BODY + "\ndef other():\n", "humaneval-completion")
    assert is_done and program_of(COMPLETION, written, "humaneval-completion") == STUB + BODY


def test_a_contest_is_asked_in_the_form_of_apps_and_a_script_may_print_at_column_0() -> None:
    assert render_prompt(STDIO, "codecontests-stdio") == (
        "\nQUESTION:\nPrint the sum of two integers.\nUse Standard Input format\nANSWER:\n"
    )
    script = "n = int(input())\nif n:\n    print(n)\nprint(0)\n"
    assert cut_at_stop(script, "codecontests-stdio") == (script, False)
    assert cut_at_stop(script + "\nQUESTION:\nAnother", "codecontests-stdio") == (script, True)


def test_a_chat_prompt_goes_through_the_template(chatty: PreTrainedTokenizerBase) -> None:
    said = render_prompt(ASSERTS, "chat", (), chatty)
    assert said == (
        "<|im_start|>user\nYou are an expert Python programmer, and here is your task:\nWrite a function to add two numbers.\n"
        "Your code should pass these tests:\nassert add(1, 2) == 3\nassert add(0, 0) == 0<|im_end|>\n<|im_start|>assistant\n"
    )
    assert f"```python\n{STUB.rstrip()}\n```" in render_prompt(COMPLETION, "chat", (), chatty)
    assert "reads standard input" in render_prompt(STDIO, "chat", (), chatty)


def test_the_templates_special_tokens_count_as_such_and_a_programs_do_not(chatty: PreTrainedTokenizerBase) -> None:
    special = chatty.convert_tokens_to_ids("<|im_start|>")
    said = render_prompt(ASSERTS, "chat", (), chatty)
    [ids] = encode_prompts([said], chatty, is_chat=True)
    assert ids.count(special) == 2 and chatty.decode(ids) == said
    assert special not in encode_prompts([said], chatty)[0]
    [example], _ = encode([ASSERTS], chatty, Text(prompt="chat", max_length=900))
    assert list(example.token_ids[: len(ids)]) == ids and example.is_target[len(ids) :].all()


def test_a_chat_without_a_template_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(UserError, match=r"protocol chat needs a chat template, and the tokenizer .* has none"):
        render_prompt(ASSERTS, "chat", (), tokenizer)


@pytest.mark.parametrize(
    ("reply", "program", "is_done"),
    [
        ("Sure:\n```python\nx = 1\n```\nHope it helps: ```y```", "x = 1\n", True),
        ("```\nx = 1\n```", "x = 1\n", True),
        ("```py\ns = '''a ``` b'''\n```\n", "s = '''a ``` b'''\n", True),
        ("```python\nx = 1\n", "x = 1\n", False),
        ("x = 1\n", "x = 1\n", False),
        ("Call ``` it", "Call ``` it", False),
    ],
)
def test_the_first_fenced_block_of_a_reply_is_the_program(reply: str, program: str, is_done: bool) -> None:
    written, done = cut_at_stop(reply, "chat")
    assert (program_of(ASSERTS, written, "chat"), done) == (program, is_done)


def test_a_reply_that_only_goes_on_with_the_code_is_put_behind_it() -> None:
    assert program_of(COMPLETION, f"```python\n{BODY}```", "chat") == STUB + BODY
    assert program_of(COMPLETION, f"```python\n{STUB}{BODY}```", "chat") == STUB + BODY


@pytest.mark.parametrize(
    ("protocol", "asked", "fitting"),
    [
        ("docstring-0shot", STDIO, "chat or codecontests-stdio"),
        ("codecontests-stdio", ASSERTS, "begin-done-3shot or chat or docstring-0shot"),
        ("begin-done-3shot", COMPLETION, "chat or humaneval-completion"),
        ("humaneval-completion", ASSERTS, "begin-done-3shot or chat or docstring-0shot"),
    ],
)
def test_problems_of_another_kind_are_refused_with_what_would_fit(
    protocol: str, asked: Problem, fitting: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    message = rf"protocol {protocol} asks for .*, and problem 7 is of the kind {asked.kind}\. .* to {fitting}\."
    with pytest.raises(UserError, match=message):
        require_kind([asked], protocol)
    with pytest.raises(UserError, match=message):
        encode([asked], tokenizer, Text(prompt=protocol))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["evaluation.protocol=codecontests-stdio"], "codecontests-stdio asks for stdio .* evaluation.protocol"),
        (["text.prompt=humaneval-completion"], "humaneval-completion asks for completion .* text.prompt"),
    ],
)
def test_plan_refuses_a_protocol_that_does_not_fit_the_source(
    environment: Environment, changes: list[str], message: str
) -> None:
    recipe = Path(__file__).parents[2] / "configs" / "recipes" / "demo.yaml"
    with pytest.raises(UserError, match=message):
        resolve(environment, recipe=recipe, overrides=changes)
