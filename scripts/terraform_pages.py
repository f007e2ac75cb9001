"""Write the tables of terraform's READMEs: inputs and outputs of each module, and what a month costs.

    python -m scripts.terraform_pages

Owns how variables are read out of HCL in the form that `terraform fmt` gives, and the sum of the costs. Prices are
`terraform/prices.json`'s, which `scripts.refresh_prices` renews.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from scripts.infra_step import CHECKOUT

AWS = "AWS price list"  # where a price comes from that `scripts.refresh_prices` has asked for
_BLOCK = r'^{kind} "(?P<name>\w+)" \{{\n(?P<body>.*?)^\}}'
_ARGUMENT = r"^  {name}\s*= (?P<value>.*?)(?=^  \w|^\n|\Z)"


def pages(root: Path) -> dict[Path, str]:
    """Every page with tables, as it should read."""
    terraform = root / "terraform"
    found = {
        page: _filled(page.read_text(), {"module": module_tables(page.parent)})
        for page in sorted([*terraform.glob("modules/*/README.md"), terraform / "bootstrap/README.md"])
    }
    page = terraform / "README.md"
    return {
        **found,
        page: _filled(page.read_text(), {"costs": cost_table(json.loads((terraform / "prices.json").read_text()))}),
    }


def _filled(text: str, tables: dict[str, str]) -> str:
    for name, table in tables.items():
        text = re.sub(
            rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)",
            lambda match, table=table: f"{match[1]}{table}{match[2]}",  # type: ignore[misc]
            text,
            flags=re.DOTALL,
        )
    return text


def module_tables(module: Path) -> str:
    """Markdown tables of a module's variables and outputs."""
    inputs = [
        f"| `{name}` | {_text(body)} | `{_type(body)}` | {_default(body)} |"
        for name, body in blocks(module, "variable")
    ]
    outputs = [f"| `{name}` | {_text(body)} |" for name, body in blocks(module, "output")]
    return "\n".join(
        [
            "",
            "| input | what it is | type | default |",
            "|---|---|---|---|",
            *inputs,
            "",
            "| output | what it is |",
            "|---|---|",
            *outputs,
            "",
            "",
        ]
    )


def blocks(module: Path, kind: str) -> list[tuple[str, str]]:
    """Name and body of each variable or output of a module, in the order of the file."""
    text = (module / f"{kind}s.tf").read_text()
    return [(match["name"], match["body"]) for match in re.finditer(_BLOCK.format(kind=kind), text, re.M | re.S)]


def argument(body: str, name: str) -> str | None:
    """An argument of a block as it is written; None where it is not there."""
    match = re.search(_ARGUMENT.format(name=name), body, re.M | re.S)
    return match["value"].strip() if match else None


def _text(body: str) -> str:
    said = " ".join((argument(body, "description") or "").removeprefix("<<-EOT").split())
    return said.strip('"').replace('\\"', '"').replace("|", "\\|")


def _type(body: str) -> str:
    fields = re.sub(r"\n\s+(?=\w+\s*=)", ", ", argument(body, "type") or "")
    return re.sub(r"\s+", " ", fields).replace("{, ", "{").replace(" }", "}")


def _default(body: str) -> str:
    default = argument(body, "default")
    return "" if default is None else f"`{' '.join(default.split())}`"


def cost_table(prices: dict[str, Any]) -> str:
    """Markdown table of a month of each preset, a line for each kind of cost, with where the price comes from."""
    sums = dict.fromkeys(("dev", "prod"), 0.0)
    lines = []
    for item in prices["items"]:
        costs = {preset: item["usd"] * item[preset] for preset in sums}
        for preset, cost in costs.items():
            sums[preset] += cost
        amounts = " | ".join(f"{item[preset]:g} | {costs[preset]:.0f}" for preset in sums)
        what = item["what"] + (" (assumed)" if item.get("is_assumed") else "")
        lines.append(f"| {what} | {item['usd']:g} / {item['unit']} | {amounts} | {item['source']}, {item['date']} |")
    total = " | ".join(f" | **{sum_:.0f}**" for sum_ in sums.values())
    asked = sum(item["source"] == AWS for item in prices["items"])
    head = ["", f"USD in {prices['region']}, {prices['hours']} hours a month, without tax and free tiers."]
    head += [
        f"**Checked against AWS: {asked} of {len(prices['items'])} prices**; the others are as old as their date says.",
        "",
    ]
    head += [
        "| what | price | dev: amount | dev: USD | prod: amount | prod: USD | price from |",
        "|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*head, *lines, f"| **a month** | | {total} | |", "", ""])


def main() -> int:
    """Write every page."""
    for page, text in pages(CHECKOUT).items():
        page.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
