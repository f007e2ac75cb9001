"""What holds of terraform/ as text, without Terraform: no secret in a state, a boundary on every role, tables that say what is so.

What a module does is held by its own tests in `terraform/modules/*/tests`; that each of those can fail is held here too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.stub import Stubber

from mlops_tasks import pipeline
from mlops_tasks.config.kubernetes import SANDBOXED
from mlops_tasks.config.loading import load_environment
from mlops_tasks.errors import DataError
from mlops_tasks.stage import Stage
from scripts import check_infra, check_terraform, refresh_prices, seed_faults, terraform_pages
from scripts.infra_step import Fault, Skipped, Unpinned

ROOT = Path(__file__).parents[2]
TERRAFORM = ROOT / "terraform"
HCL = {file: file.read_text() for file in sorted(TERRAFORM.rglob("*.tf")) if ".terraform" not in file.parts}
STAGES = {task.run.name for task in pipeline.every().values() if isinstance(task.run, Stage)}
OWN = [folder for folder in check_terraform.modules(ROOT) if "live" not in folder.parts]


def resources(kind: str) -> list[tuple[Path, str]]:
    pattern = rf'^resource "{kind}" "\w+" \{{\n.*?^\}}'
    return [(file, block) for file, text in HCL.items() for block in re.findall(pattern, text, re.M | re.S)]


@pytest.mark.parametrize("module", OWN, ids=lambda module: module.name)
def test_a_module_says_what_it_takes_gives_and_needs(module: Path) -> None:
    names = {file.name for file in module.iterdir()}
    assert {"main.tf", "variables.tf", "outputs.tf", "versions.tf", "README.md"} <= names
    for name, body in terraform_pages.blocks(module, "variable"):
        assert terraform_pages.argument(body, "description"), name
        assert terraform_pages.argument(body, "type"), name
    for name, body in terraform_pages.blocks(module, "output"):
        assert terraform_pages.argument(body, "description"), name
    # Terraform cannot mock ephemeral values, of which `secret` is made.
    assert module.name == "secret" or list(module.glob("tests/*.tftest.hcl"))


def test_every_test_of_a_module_was_seen_to_fail() -> None:
    runs = {
        name for file in TERRAFORM.rglob("*.tftest.hcl") for name in re.findall(r'^run "(\w+)"', file.read_text(), re.M)
    }
    caught = {seed.caught_by for seed in seed_faults.seeds()}
    assert runs - caught == set()
    assert {name for name in caught - runs if not name.startswith("CKV")} == {"fmt", "validate"}


def test_faults_can_still_be_sown(tmp_path: Path) -> None:
    for seed in seed_faults.seeds():
        file = tmp_path / seed.file
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text((TERRAFORM / seed.file).read_text())
        seed.sow(tmp_path)
        assert seed.put in file.read_text()


def test_a_fault_that_cannot_be_sown_is_told(tmp_path: Path) -> None:
    (tmp_path / "modules/ecr").mkdir(parents=True)
    (tmp_path / "modules/ecr/main.tf").write_text("")
    with pytest.raises(DataError, match="does not hold 'IMMUTABLE'"):
        seed_faults.Seed("modules/ecr/main.tf", "IMMUTABLE", "MUTABLE", "x").sow(tmp_path)


@pytest.mark.skipif(not check_terraform._OFFLINE.is_file(), reason="no program that checks Terraform without network")
@pytest.mark.slow
def test_a_fault_is_found_by_the_test_that_is_named() -> None:
    [seed] = [seed for seed in seed_faults.seeds() if seed.put == '"MUTABLE"']
    said = seed_faults.what_finds(seed)
    assert seed_faults.is_caught(seed, said)
    assert not seed_faults.is_caught(seed, said.replace("fail", "pass"))


def test_no_secret_gets_into_a_state() -> None:
    for kind in ("random_password", "random_string", "tls_private_key", "aws_iam_access_key"):
        assert resources(kind) == []
    for file, text in HCL.items():
        assert not re.search(r"^\s*(secret_string|secret_binary|password|master_password)\s+=", text, re.M), file
    [(_, version)] = resources("aws_secretsmanager_secret_version")
    assert "secret_string_wo " in version and "secret_string_wo_version" in version


def test_every_role_of_a_deployment_has_the_boundary() -> None:
    roles = [(file, block) for file, block in resources("aws_iam_role") if "bootstrap" not in file.parts]
    assert len(roles) >= 6
    assert [file for file, block in roles if "permissions_boundary = var.permissions_boundary_arn" not in block] == []


def test_no_provider_needs_a_cluster() -> None:
    sources = {source for text in HCL.values() for source in re.findall(r'source\s+= "(\w+/\w+)"', text)}
    assert sources == {"hashicorp/aws", "hashicorp/random"}


@pytest.mark.parametrize("environment", ["dev", "prod"])
def test_each_environment_has_a_locked_encrypted_state_and_a_tag_of_its_own(environment: str) -> None:
    text = HCL[TERRAFORM / "live" / environment / "versions.tf"]
    assert f'key          = "live/{environment}.tfstate"' in text
    assert "use_lockfile = true" in text and "encrypt      = true" in text
    assert f'deployment = "wmtp-{environment}"' in text


def test_hcl_keeps_to_what_opentofu_has_too() -> None:
    only_terraform = r'^\s*(parallel|state_key|override_during)\s*=|^(action|list|component) "|provider::terraform::'
    files = [*HCL, *TERRAFORM.rglob("*.tftest.hcl")]
    assert [file for file in files if re.search(only_terraform, file.read_text(), re.M)] == []
    for file in TERRAFORM.rglob("*.tftest.hcl"):
        mocks = re.findall(r'^mock_provider "\w+" \{\n.*?^\}', file.read_text(), re.M | re.S)
        assert [mock for mock in mocks if "override_" in mock] == [], file
        assert not re.search(r"^\s*target\s*=.*\[", file.read_text(), re.M), file


def test_actions_of_ci_are_pinned_to_commits() -> None:
    used = [
        line
        for file in (ROOT / ".github/workflows").glob("*.yaml")
        for line in re.findall(r"uses: (.*)", file.read_text())
    ]
    assert used and [line for line in used if not re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v[0-9.]+", line)] == []


SIGNED = 'provider "registry.terraform.io/hashicorp/{}" {{\n  version = "6.66.0"\n  hashes = [\n    "h1:a",\n    "zh:b",\n  ]\n}}\n'


@pytest.fixture
def locked(tmp_path: Path) -> Path:
    """A tree whose root modules have locks."""
    for name, providers in {"bootstrap": ["aws"], "live/dev": ["aws", "random"]}.items():
        folder = tmp_path / "terraform" / name
        folder.mkdir(parents=True)
        (folder / "versions.tf").write_text("".join(f'source  = "hashicorp/{one}"\n' for one in providers))
        (folder / ".terraform.lock.hcl").write_text("".join(map(SIGNED.format, providers)))
    return tmp_path


def test_providers_are_locked_by_their_registrys_checksums(locked: Path) -> None:
    assert check_terraform.check_locks(locked) == "2 root modules have their providers locked"
    lock = locked / "terraform/live/dev/.terraform.lock.hcl"

    # As a mirror leaves it, which has no signature.
    lock.write_text(SIGNED.format("aws") + SIGNED.format("random").replace('    "zh:b",\n', ""))
    with pytest.raises(Fault, match=r"zh:….*: terraform/live/dev: random\. `make pins`"):
        check_terraform.check_locks(locked)

    lock.write_text(SIGNED.format("aws"))
    with pytest.raises(Fault, match="terraform/live/dev: random"):
        check_terraform.check_locks(locked)


def test_providers_without_a_lock_are_told(locked: Path) -> None:
    (locked / "terraform/bootstrap/.terraform.lock.hcl").unlink()
    with pytest.raises(
        Unpinned, match=r"NOT PINNED YET: no \.terraform\.lock\.hcl in terraform/bootstrap; `make pins`"
    ):
        check_terraform.check_locks(locked)


def test_prod_is_highly_available_and_protected() -> None:
    text = HCL[TERRAFORM / "live/prod/main.tf"]
    assert re.search(r"is_highly_available\s+= true", text) and re.search(r"deletion_protection\s+= true", text)


def test_the_cost_table_counts_what_the_presets_have() -> None:
    prices = json.loads((TERRAFORM / "prices.json").read_text())
    for preset in ("dev", "prod"):
        text = HCL[TERRAFORM / "live" / preset / "main.tf"]
        nodes = re.search(r'instance_types = \["([\w.]+)"\], min_size = (\d)', text)
        database = re.search(r'instance_class = "([\w.]+)"', text)
        assert nodes and database
        amounts = {item["what"]: item[preset] for item in prices["items"]}
        assert amounts[f"system nodes, {nodes[1]}"] == int(nodes[2]) * prices["hours"]
        assert [amount for what, amount in amounts.items() if what.endswith(database[1])] == [prices["hours"]]


def test_the_platform_page_names_every_service_account_that_has_a_role_and_the_one_that_has_none() -> None:
    page = (ROOT / "docs/platform.md").read_text()
    named = set(re.findall(r"^\| `[\w-]+` \| `([\w-]+)` \|", page, re.M))
    stack = HCL[TERRAFORM / "modules/stack/workloads.tf"].split("  workloads = {")[1].split("\n  }\n")[0]
    workloads = set(re.findall(r"^    ([\w-]+)\s+= \{", stack, re.M))
    controllers = {name for text in HCL.values() for name in re.findall(r'service_account\s+= "([\w-]+)"', text)}
    assert named == workloads | controllers | {"wmtp-judge"}


def test_the_chart_makes_the_accounts_that_roles_are_for_and_the_one_that_has_none() -> None:
    accounts = (ROOT / "charts/ml-platform/templates/accounts.yaml").read_text()
    [made] = re.findall(r"range \$account := list (.*?) }}", accounts)
    stages = HCL[TERRAFORM / "modules/stack/workloads.tf"].split("  stages = {")[1].split("\n  }\n")[0]
    others = {"wmtp-judge", "wmtp-housekeeping"}  # which write no stage
    assert set(re.findall(r'"([\w-]+)"', made)) == {*re.findall(r"^    ([\w-]+) = \{", stages, re.M), *others}


def test_nodes_carry_the_tag_that_the_budget_goes_by() -> None:
    assert 'tag_key     = "deployment"' in HCL[TERRAFORM / "modules/stack/main.tf"]
    nodes = (ROOT / "charts/ml-platform/templates/nodes.yaml").read_text()
    assert "deployment: {{ $.Values.name }}," in nodes


def names_in(argument: str, text: str) -> list[str]:
    """What lists with this name in a text hold."""
    return [
        name for names in re.findall(rf"{argument} +(?:=|in) \[(.*)\]", text) for name in re.findall(r'"(\w+)"', names)
    ]


def test_each_stage_and_each_task_is_written_by_one_role() -> None:
    text = HCL[TERRAFORM / "modules/stack/workloads.tf"].split("  stages = {")[1].split("\n  }\n")[0]
    # The sandbox writes nothing: its verdicts and rewards are the worker's.
    assert sorted([*names_in("folders", text), *SANDBOXED]) == sorted(STAGES)
    assert sorted([*names_in("tasks", text), *SANDBOXED]) == sorted(pipeline.every())


def test_a_study_may_write_what_its_trials_learn_and_no_verdict() -> None:
    text = HCL[TERRAFORM / "modules/stack/workloads.tf"].split("  write_trials = ")[1].split("\n  }]\n")[0]
    # What is pulled is pinned for all trials, and verdicts and rewards are asked for.
    assert {*names_in("folder", text)} == STAGES - {"pull", "select", *SANDBOXED}


def test_in_the_example_each_task_runs_as_the_account_that_may_write_for_it() -> None:
    text = HCL[TERRAFORM / "modules/stack/workloads.tf"].split("  stages = {")[1].split("\n  }\n")[0]
    may = {**dict.fromkeys(SANDBOXED, "wmtp-judge"), **dict.fromkeys(("look", "remove"), "wmtp-housekeeping")}
    for account, body in re.findall(r"^    ([\w-]+) = \{\n(.*?)^    \}", text, re.M | re.S):
        may |= dict.fromkeys(names_in("tasks", body), account)
    cluster = load_environment(ROOT / "configs/environments/eks.yaml").kubernetes
    assert cluster is not None
    accounts: dict[Any, str] = {**cluster.service_accounts}
    for task in [*pipeline.every(), "look", "remove"]:
        assert accounts.get(task, cluster.profiles[cluster.profile_of(task)].service_account) == may[task], task
    policies = (ROOT / "charts/ml-platform/templates/networkpolicies.yaml").read_text()
    reached = re.findall(r"key: wmtp.io/profile, operator: In, values: \[([^]]*)\]", policies)
    assert {*", ".join(reached).split(", ")} == {*cluster.profiles}


def test_a_pod_says_why_it_could_not_start_before_kueue_deletes_it() -> None:
    cluster = load_environment(ROOT / "configs/environments/eks.yaml").kubernetes
    values = (ROOT / "charts/upstream/kueue.values.yaml").read_text()
    (minutes,) = re.findall(r"waitForPodsReady:\n\s+timeout: (\d+)m\n", values)
    assert cluster is not None
    assert 60 * int(minutes) > max(profile.start_seconds for profile in cluster.profiles.values())


def test_pages_say_what_modules_and_prices_say() -> None:
    check_terraform.check_pages(ROOT)
    check_terraform.check_reasons(ROOT)


def test_a_skip_without_a_reason_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "terraform").mkdir()
    (tmp_path / "terraform/main.tf").write_text("# checkov:skip=CKV_AWS_18\n")
    with pytest.raises(Fault, match=r"main\.tf: # checkov:skip=CKV_AWS_18"):
        check_terraform.check_reasons(tmp_path)


def test_tables_of_a_module_are_read_out_of_its_files(tmp_path: Path) -> None:
    (tmp_path / "variables.tf").write_text(
        'variable "sizes" {\n  description = "How large, as `{a = \\"b\\"}` | or not."\n  type = object({\n    gib  = number\n'
        "    many = optional(bool, false)\n  })\n  default = null\n\n  validation {\n    condition = true\n  }\n}\n"
    )
    (tmp_path / "outputs.tf").write_text('output "arn" {\n  description = "The ARN."\n  value       = 1\n}\n')
    table = terraform_pages.module_tables(tmp_path)
    assert (
        '| `sizes` | How large, as `{a = "b"}` \\| or not. | `object({gib = number, many = optional(bool, false)})` | `null` |'
        in table
    )
    assert "| `arn` | The ARN. |" in table


def step(end: Exception | None) -> Callable[[Path], str]:
    def run(root: Path) -> str:
        if end:
            raise end
        return "seen"

    return run


@pytest.mark.parametrize(
    ("end", "asked", "code"),
    [
        (None, [], 0), (None, ["strict", "--production"], 0), (Fault("bad"), [], 1),
        (Skipped("no program"), ["--production"], 0), (Skipped("no program"), ["strict"], 1),
        (Unpinned("no digest"), ["strict"], 0), (Unpinned("no digest"), ["--production"], 1),
    ],
)  # fmt: skip
def test_a_fault_fails_the_check_and_a_skip_or_what_is_not_pinned_where_that_is_asked(
    end: Exception | None,
    asked: list[str],
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(check_infra, "STEPS", {"a step": step(end)})
    monkeypatch.setenv("CI_INFRA_STRICT", "1" if "strict" in asked else "")
    assert check_infra.main([word for word in asked if word.startswith("--")]) == code
    assert (str(end) if end else "seen") in capsys.readouterr().out


def test_a_word_that_names_no_step_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert check_infra.main(["nothing"]) == 1
    assert "terraform: checkov" in capsys.readouterr().out


def product(usd: str, begin: str = "0") -> str:
    dimension = {"pricePerUnit": {"USD": usd}, "beginRange": begin, "unit": "Hrs"}
    return json.dumps({"product": {}, "terms": {"OnDemand": {"a": {"priceDimensions": {"b": dimension}}}}})


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    def client(service: str) -> Any:
        return boto3.client(service, region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b")

    return client


ITEM = {
    "what": "node",
    "service": "AmazonEC2",
    "filters": {"instanceType": "m7i.large"},
    "usd": 1.0,
    "date": "then",
    "source": "s",
}


@pytest.mark.parametrize(
    "others", [[], [product("0.0000000000")], [product("0.0800000000", begin="100")], [product("0.1008")]]
)
def test_a_price_is_the_one_of_the_first_step_that_is_not_free(aws: Callable[[str], Any], others: list[str]) -> None:
    client = aws("pricing")
    with Stubber(client) as answers:
        answers.add_response(
            "get_products",
            {"PriceList": [product("0.1008000000"), *others]},
            {
                "ServiceCode": "AmazonEC2",
                "Filters": [
                    {"Type": "TERM_MATCH", "Field": "instanceType", "Value": "m7i.large"},
                    {"Type": "TERM_MATCH", "Field": "regionCode", "Value": "eu-central-1"},
                ],
            },
        )
        assert refresh_prices.price(client, ITEM, "eu-central-1") == 0.1008


@pytest.mark.parametrize("found", [[], [product("0.1"), product("0.2")]])
def test_a_price_that_is_not_one_stays_as_it_was_and_is_named(
    aws: Callable[[str], Any], found: list[str], tmp_path: Path
) -> None:
    file, client = tmp_path / "prices.json", aws("pricing")
    file.write_text(json.dumps({"region": "us-east-1", "hours": 730, "items": [ITEM, {**ITEM, "what": "other"}]}))
    with Stubber(client) as answers:
        answers.add_response("get_products", {"PriceList": found})
        answers.add_response("get_products", {"PriceList": [product("0.3")]})
        [kept] = refresh_prices.refresh(client, file, "eu-west-1", "2026-12-01")
    first, second = json.loads(file.read_text())["items"]
    assert kept.startswith("node: AWS's price list has ")
    assert (first["usd"], first["date"]) == (1.0, "then")
    assert (second["usd"], second["date"], second["source"]) == (0.3, "2026-12-01", "AWS price list")


def test_spot_prices_are_told_as_lowest_newest_and_highest(aws: Callable[[str], Any]) -> None:
    client, now = aws("ec2"), datetime(2026, 12, 1, tzinfo=UTC)
    history = [("0.30", 3), ("0.50", 1), ("0.20", 2)]
    with Stubber(client) as answers:
        answers.add_response(
            "describe_spot_price_history",
            {
                "SpotPriceHistory": [
                    {"InstanceType": "g6.xlarge", "SpotPrice": usd, "Timestamp": now.replace(hour=hour)}
                    for usd, hour in history
                ]
            },
        )
        assert refresh_prices.spot(client, ["g6.xlarge"], now) == {"g6.xlarge": (0.2, 0.3, 0.5)}


def test_the_cost_table_sums_amounts_times_prices() -> None:
    items = [
        {**ITEM, "unit": "hour", "usd": 0.5, "dev": 10, "prod": 30},
        {
            **ITEM,
            "what": "disk",
            "unit": "GiB-month",
            "usd": 2.0,
            "dev": 1,
            "prod": 2,
            "is_assumed": True,
            "source": "AWS price list",
        },
    ]
    table = terraform_pages.cost_table({"region": "r", "hours": 730, "items": items})
    assert "| node | 0.5 / hour | 10 | 5 | 30 | 15 | s, then |" in table
    assert "| disk (assumed) | 2 / GiB-month | 1 | 2 | 2 | 4 | AWS price list, then |" in table
    assert "**Checked against AWS: 1 of 2 prices**" in table
    assert "| **a month** | |  | **7** |  | **19** | |" in table
