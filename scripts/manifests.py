"""Hold manifests against Kubernetes' schemas and custom resources against their definitions; run by .venv-infra's Python.

    .venv-infra/bin/python scripts/manifests.py --kubernetes 1.35 --definitions FOLDER --without-schema KIND … < manifests

Strict: a field that the schema does not know is an error, as it is for `kubectl apply --validate=strict`. What only the API
server knows stays unseen: CEL rules, webhooks, quantities, references between objects.
"""

from __future__ import annotations

import argparse
import copy
import gzip
import sys
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import yaml
from kubernetes_validate import utils
from referencing import Registry, Resource


def main() -> int:
    """Print each fault with its place; the exit code is 1 if there is one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kubernetes", required=True, help="minor version, as 1.35")
    parser.add_argument("--definitions", type=Path, required=True, help="folder of CRDs, *.yaml.gz")
    parser.add_argument("--without-schema", nargs="*", default=[], help="kinds that may go unchecked")
    options = parser.parse_args()
    definitions = _definitions(options.definitions)
    faults, checked, unchecked = [], 0, []
    for item in filter(None, yaml.safe_load_all(sys.stdin)):
        kind, name = (item["apiVersion"], item["kind"]), item["metadata"]["name"]
        validator = definitions.get(kind) or _builtin(*kind, options.kubernetes)
        if validator:
            checked += 1
            faults += [
                f"{kind[1]} {name}: {error.json_path}: {error.message[:300]}" for error in validator.iter_errors(item)
            ]
        elif kind[1] in options.without_schema:
            unchecked.append(kind[1])
        else:
            faults.append(f"{kind[1]} {name}: there is no schema of {'/'.join(kind)}")
    print("\n".join(faults) or f"{checked} valid, {len(unchecked)} without a schema")
    return 1 if faults or not checked else 0


def _definitions(folder: Path) -> dict[tuple[str, str], Any]:
    """The validators of every version of every definition, by API version and kind."""
    found = {}
    for file in sorted(folder.glob("*.yaml.gz")):
        spec = yaml.safe_load(gzip.decompress(file.read_bytes()))["spec"]
        for version in spec["versions"]:
            schema = _strict(copy.deepcopy(version["schema"]["openAPIV3Schema"]))
            schema["properties"].update({"apiVersion": {}, "kind": {}, "metadata": {"type": "object"}})
            key = (f"{spec['group']}/{version['name']}", spec["names"]["kind"])
            found[key] = jsonschema.Draft202012Validator(schema)
    return found


def _strict(schema: dict[str, Any]) -> dict[str, Any]:
    """Refuse unknown fields wherever the definition names its fields; read Kubernetes' own words."""
    if schema.get("x-kubernetes-int-or-string"):
        schema.pop("type", None)
    properties = schema.get("properties", {})
    if properties and "additionalProperties" not in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        schema["additionalProperties"] = False
    for nested in (*properties.values(), schema.get("items"), schema.get("additionalProperties")):
        if isinstance(nested, dict):
            _strict(nested)
    return schema


@cache
def _builtin(api_version: str, kind: str, kubernetes: str) -> Any:
    """The validator of a built-in kind; None if it is none."""
    group, _, version = api_version.rpartition("/")
    if "." in group and not group.endswith(".k8s.io"):
        return None
    full = {utils.major_minor(one): one for one in utils.all_versions()}[kubernetes]
    folder = f"kubernetes-json-schema/v{full}-local-strict"
    name = "-".join(part for part in (kind.lower(), group.split(".")[0], version) if part)
    try:
        schema = utils.schema_contents(f"{folder}/{name}.json", full)
    except FileNotFoundError:
        return None
    shared: Registry[Any] = (
        Resource.from_contents(utils.schema_contents(f"{folder}/_definitions.json", full)) @ Registry()
    )
    return jsonschema.Draft202012Validator(schema, registry=Resource.from_contents(schema) @ shared)


if __name__ == "__main__":
    sys.exit(main())
