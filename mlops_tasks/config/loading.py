"""Files of settings: read, with overrides and absolute paths, and validated with errors that name each place.

Owns what a file only names too, a variable of the process whose value must stand nowhere.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError

from mlops_tasks.config.comparison import Comparison
from mlops_tasks.config.environment import Environment
from mlops_tasks.config.recipe import Recipe
from mlops_tasks.errors import UserError

M = TypeVar("M", bound=BaseModel)


class _Loader(yaml.SafeLoader):
    """Reads 1e-4 as a number, as YAML 1.2 does: for YAML 1.1 it is a string. In quotes it still is one."""


class _Dumper(yaml.SafeDumper):
    """Writes what `_Loader` reads: a string that looks like 1e-4 is in quotes."""


for _one in (_Loader, _Dumper):
    _one.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d{1,3}$"), list("-+.0123456789")
    )


def as_yaml(tree: Mapping[str, Any]) -> str:
    """Settings as a file, in their order."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def load_recipe(
    path: str | Path,
    overrides: Sequence[str] = (),
    *,
    settings: Mapping[str, Any] | None = None,
    fill_in: Callable[[dict[str, Any], Recipe], dict[str, Any]] | None = None,
) -> Recipe:
    """Read a recipe file and apply dotted overrides such as `train.steps=200`.

    Args:
        path: of the file.
        overrides: of single settings.
        settings: the same, by dotted name.
        fill_in: makes of `train` with settings that are `auto`, and the recipe with them left out, one without; None: `auto` is refused.

    Raises:
        UserError: no such file, no YAML, an unknown key or a bad value; the message lists each with its place.
    """
    tree = _read_yaml(Path(path))
    for override in overrides:
        _apply_override(tree, override)
    for dotted, value in (settings or {}).items():
        _set(tree, dotted, value, f"{dotted}={value}")
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


def value_of(setting: str, reference: str, *, form: str) -> str:
    """What a setting holds, or of `env:NAME` what that variable of the process holds; it may hold a password.

    Args:
        setting: its dotted name, for a message.
        reference: what stands in the file.
        form: what the variable should look like, for a message.

    Raises:
        UserError: the variable is empty.
    """
    kind, _, name = reference.partition(":")
    if kind != "env":
        return reference
    found = variable(name)
    if not found:
        raise UserError(
            f"{setting} is {reference}, but the environment variable {name} is empty. Set it to {form}; pods get it from a Secret "
            "(kubernetes.secrets in the environment file)."
        )
    return found


def variable(name: str) -> str | None:
    """What whoever started this process tells it beside its arguments; None: nothing."""
    return os.environ.get(name)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), _Loader)
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
        value = yaml.load(text, _Loader)
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
    # A change of kind starts a new part: the old kind's own settings do not fit it.
    if leaf in ("kind", "scorer") and tree.get(leaf) not in (None, value):
        tree.clear()
    tree[leaf] = value


def _with_absolute_paths(tree: Any, folder: Path) -> Any:
    if isinstance(tree, Mapping):
        return {
            name: str((folder / Path(value).expanduser()).resolve())
            if name.rpartition(".")[2] == "path" and isinstance(value, str) and "://" not in value
            else _with_absolute_paths(value, folder)
            for name, value in tree.items()
        }
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
    way_out = "; put it in quotes" if found["type"] == "string_type" and isinstance(found["input"], int | float) else ""
    return f"{place} is {found.get('input')!r}: {found['msg']}{way_out}"
