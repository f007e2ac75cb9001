"""What a stage's result is named by: a digest of everything that can change it, and of nothing else.

A key covers the stage's name and generation, its part of the spec, the content digests of its inputs, the code that it
reaches, the versions of the packages that it declares, and Python's minor version. Never in it: paths, run ids, clocks,
hosts, devices, workers, ranks. Nothing heavy is imported: the scheduler computes keys too.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import re
import sys
import threading
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from mlops_tasks.errors import Unavailable, UserError
from mlops_tasks.store import canonical_json

SCHEMA = 1
PACKAGE = "mlops_tasks"

# How a result is found, kept, told and shown; none of it changes what the result is, so it is neither followed nor digested.
RUNTIME = frozenset(
    {
        f"{PACKAGE}.{name}"
        for name in (
            "config",
            "errors",
            "forecast",
            "housekeeping",
            "keys",
            "lease",
            "ledger",
            "logs",
            "machine",
            "parts",
            "pipeline",
            "planning",
            "registry",
            "report",
            "stage",
            "store",
            "summary",
            "tracking",
            "tuning.asks",
        )
    }
)


BUILD = ("code", "packages", "python")
"""The components of a key that a build decides."""
# Before 3.12 Python counts the depth of all threads' syntax trees together, and is wrong where one is made in the midst of another.
_PARSING = threading.Lock()


def key_components(
    *,
    stage: str,
    generation: int,
    function: str,
    config: Mapping[str, Any],
    inputs: Mapping[str, str],
    packages: Iterable[str],
    modules: Iterable[str] = (),
) -> dict[str, Any]:
    """Everything that goes into a key, readable, so that two keys can be compared part by part.

    Args:
        stage: the stage's name.
        generation: bumped by hand when a change of meaning escapes the code digest.
        function: `module:name` of the stage's function; its module is where the code digest starts.
        config: the stage's part of the spec; leaves named `path` are left out.
        inputs: content digest of each input, by name.
        packages: distributions whose version can change the result.
        modules: those that a setting chooses by name, which no import tells of.
    """
    locked = locked_versions()
    return {
        "schema": SCHEMA,
        "stage": stage,
        "generation": generation,
        "config": without_paths(config),
        "inputs": dict(inputs),
        "code": dict(pair for module in (function.partition(":")[0], *modules) for pair in code_digests(module)),
        "packages": {name: locked[name] for name in sorted(packages)},
        "python": _python(),
    }


def _python() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def key_of(components: Mapping[str, Any]) -> str:
    """The key: SHA-256 of the components' canonical JSON."""
    return hashlib.sha256(canonical_json(components)).hexdigest()


def without_paths(value: Any) -> Any:
    """The value without its leaves named `path`: a path says where something lies, and its digest is keyed instead."""
    if isinstance(value, Mapping):
        return {name: without_paths(child) for name, child in value.items() if name != "path"}
    if isinstance(value, list | tuple):
        return [without_paths(child) for child in value]
    return value


def differences(old: Mapping[str, Any], new: Mapping[str, Any], *, place: str = "") -> list[str]:
    """One line for each leaf in which two sets of components differ.

    >>> differences({"config": {"steps": 1}}, {"config": {"steps": 2}})
    ['config.steps: 1 → 2']
    """
    lines: list[str] = []
    for name in sorted({*old, *new}):
        here = f"{place}.{name}" if place else name
        before, after = old.get(name, "nothing"), new.get(name, "nothing")
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            lines += differences(before, after, place=here)
        elif before != after:
            lines.append(f"{here}: {_short(before)} → {_short(after)}")
    return lines


def _short(value: Any) -> str:
    text = str(value)
    return f"{text[:12]}…" if re.fullmatch(r"[0-9a-f]{64}", text) else text


@cache
def code_digests(module: str) -> tuple[tuple[str, str], ...]:
    """Digest of each first-party module that `module` reaches by import, itself among them; sorted pairs.

    A digest is of the syntax tree without docstrings, comments and layout. The runtime itself is neither followed nor
    digested: an edited log line or registry rule must not retrain a model.
    """
    found: dict[str, str] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in found or _is_runtime(name):
            continue
        with _PARSING:
            tree = ast.parse(_source_file(name).read_bytes())
        found[name] = hashlib.sha256(ast.dump(_without_docstrings(tree)).encode()).hexdigest()
        waiting += _first_party_imports(tree, name)
    return tuple(sorted(found.items()))


def _is_runtime(module: str) -> bool:
    return module == PACKAGE or not RUNTIME.isdisjoint({module, module.rpartition(".")[0]})


def _source_file(module: str) -> Path:
    # Only the top package is asked for: to find a submodule, importlib would run the packages above it.
    top, *below = module.split(".")
    spec = importlib.util.find_spec(top)
    assert spec is not None and spec.submodule_search_locations, f"{top} is no package"
    stem = Path(spec.submodule_search_locations[0]).joinpath(*below)
    return stem / "__init__.py" if stem.is_dir() else stem.with_suffix(".py")


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            # A string that stands alone does nothing, be it first (a docstring) or below a field.
            node.body = [child for child in node.body if not _is_bare_string(child)] or [ast.Pass()]
    return tree


def _is_bare_string(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _first_party_imports(tree: ast.Module, module: str) -> list[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import; the code digest follows absolute ones only"
            names.add(node.module or "")
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    # Importing a.b.c runs a and a.b too.
    parents = {name.rsplit(".", cut)[0] for name in names for cut in range(name.count(".") + 1)}
    top = module.partition(".")[0]
    return sorted(name for name in parents if name.partition(".")[0] in (top, PACKAGE) and _source_file(name).is_file())


@cache
def locked_versions() -> dict[str, str]:
    """Version of each distribution in the committed lock, without local suffixes such as `+cpu`."""
    lines = Path(__file__).with_name("requirements.lock").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    # One package may have a line for each range of Python versions.
    here = [pin for pin in pins if pin.marker is None or pin.marker.evaluate()]
    return {canonicalize_name(pin.name): next(iter(pin.specifier)).version.partition("+")[0] for pin in here}


def require_build(components: Mapping[str, Any]) -> None:
    """Hold the code, the lock and the Python that are here against those that a key was made of elsewhere, and then the packages.

    Args:
        components: `code`, `packages` and `python` of `key_components`.

    Raises:
        Unavailable: another build is here; names the difference.
        UserError: as `require_locked`.
    """
    told = {part: components[part] for part in BUILD}
    code = {name: dict(code_digests(name))[name] for name in told["code"] if _source_file(name).is_file()}
    locked = locked_versions()
    packages = {name: locked[name] for name in told["packages"] if name in locked}
    changed = differences(told, {"code": code, "packages": packages, "python": _python()})
    if changed:
        raise Unavailable(
            f"Another build of this package runs here than where the task was begun: {'; '.join(changed)}. Have both images made of one build, "
            "and run the task again."
        )
    require_locked(told["packages"])


def require_locked(packages: Iterable[str]) -> None:
    """Hold the running packages against the lock that the keys name.

    Raises:
        UserError: one is not installed, or another version runs, so that the result would not be what its key says.
    """
    locked = locked_versions()
    for name in packages:
        try:
            running = metadata.version(name).partition("+")[0]
        except metadata.PackageNotFoundError:
            raise UserError(
                f"{name} {locked[name]} is wanted by this task and is not installed here. Install with `make setup`; what only a GPU needs is "
                "in the extra `gpu`."
            ) from None
        if running != locked[name]:
            raise UserError(
                f"{name} {running} runs here, but the lock that keys are made of says {locked[name]}. "
                "Install with `make setup`, or change mlops_tasks/requirements.lock with `make lock`."
            )
