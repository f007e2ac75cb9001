"""Write docs/configuration.md from the models in `mlops_tasks.config`, the one place where settings are described.

python -m scripts.configuration_page > docs/configuration.md
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from mlops_tasks.config.comparison import Comparison
from mlops_tasks.config.environment import Environment
from mlops_tasks.config.recipe import Recipe

HEAD = """# Configuration

*This page is written by `make docs` from `mlops_tasks/config/`; change the descriptions there.*

A **recipe** says what to learn; all of it that can change a result is in the keys of the stages that it can change. An
**environment** says where to run; nothing of it is in a key. A **comparison** says which algorithms learn side by side.
Unknown settings are refused. A relative path is relative to the file that it stands in. Any setting of a recipe can be overridden with
its dotted name, for example `train.steps=200`; overriding a `kind` or `scorer` starts that part anew. Some settings are one of several
kinds: each kind is a table of its own.
"""


def page() -> str:
    """The whole page."""
    return "\n".join([HEAD, *_sections(Recipe), *_sections(Environment), *_sections(Comparison)])


def _sections(top: type[BaseModel]) -> Iterator[str]:
    waiting, seen = [top], set()
    while waiting:
        model = waiting.pop(0)
        if model in seen:
            continue
        seen.add(model)
        yield _section(model)
        waiting += [child for field in model.model_fields.values() for child in _models(field.annotation)]


def _section(model: type[BaseModel]) -> str:
    lines = [
        f"## {model.__name__}",
        "",
        inspect.cleandoc(model.__doc__ or ""),
        "",
        "| setting | type | default | meaning |",
        "|---|---|---|---|",
    ]
    for name, field in model.model_fields.items():
        lines.append(
            f"| `{name}` | {_type(field)} | {_default(field)} | {(field.description or '').replace(chr(10), ' ')} |"
        )
    return "\n".join([*lines, ""])


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models(argument)]


def _type(field: FieldInfo) -> str:
    bounds = [
        f"{sign} {getattr(rule, name)}"
        for rule in field.metadata
        for name, sign in _SIGNS.items()
        if getattr(rule, name, None) is not None
    ]
    return ", ".join([_name(field.annotation), *bounds]).replace("|", "\\|")


_SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def _name(annotation: Any) -> str:
    if models := _models(annotation):
        return " or ".join(f"[{model.__name__}](#{model.__name__.lower()})" for model in models)
    given = get_args(annotation)[:1] if get_origin(annotation) is Annotated else get_args(annotation)
    arguments = [one for one in given if one is not type(None)]
    if arguments and all(isinstance(one, str) for one in arguments):
        return ", ".join(f"`{one}`" for one in arguments)
    if get_origin(annotation) is dict:
        return f"map of {_name(arguments[0])} to {_name(arguments[1])}"
    if get_origin(annotation) is tuple:
        return f"list of {_name(arguments[0])}"
    if arguments:
        optional = " or null" if type(None) in get_args(annotation) else ""
        return " or ".join(_name(one) for one in arguments) + optional
    return str(getattr(annotation, "__name__", annotation))


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "required"
    if isinstance(field.default, BaseModel):
        given = field.default.model_dump(exclude_defaults=True)
        return ", ".join(f"{name} {value}" for name, value in given.items()) or "its defaults"
    return "null" if field.default is None else f"`{field.default}`"


if __name__ == "__main__":
    print(page(), end="")
