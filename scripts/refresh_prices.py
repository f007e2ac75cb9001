"""Renew `terraform/prices.json` from AWS, then write the READMEs' table of costs.

    python -m scripts.refresh_prices [--region eu-central-1] [--spot g6.xlarge g5.xlarge]

Asks AWS's price list, which needs credentials with `pricing:GetProducts` and costs nothing. A price that the list does not give as
one number stays as it is, keeps its old date, and is named. `--spot` prints what Spot costs now and has cost in three days; those
prices move, and no table holds them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3

from mlops_tasks.errors import DataError
from scripts import terraform_pages
from scripts.infra_step import CHECKOUT

PRICES = CHECKOUT / "terraform" / "prices.json"
_ENDPOINT_REGION = "us-east-1"  # the price list of all regions is served from here


def price(client: Any, item: dict[str, Any], region: str) -> float:
    """What one unit of an item costs on demand in a region.

    Raises:
        DataError: the price list has none, or several that differ.
    """
    filters = {**item["filters"], "regionCode": region}
    pages = client.get_paginator("get_products").paginate(
        ServiceCode=item["service"],
        Filters=[{"Type": "TERM_MATCH", "Field": name, "Value": value} for name, value in filters.items()],
    )
    found = {usd for page in pages for product in page["PriceList"] for usd in _on_demand(json.loads(product))}
    if len(found) != 1:
        raise DataError(
            f"{item['what']}: AWS's price list has {sorted(found) or 'nothing'} for {item['service']} with {filters}. "
            "Mend `filters` of this item in terraform/prices.json until one price is left."
        )
    return found.pop()


def _on_demand(product: dict[str, Any]) -> set[float]:
    """Prices of the first step of each scale; what costs nothing is a free tier."""
    dimensions = [
        dimension
        for term in product.get("terms", {}).get("OnDemand", {}).values()
        for dimension in term["priceDimensions"].values()
    ]
    first = [dimension for dimension in dimensions if dimension.get("beginRange", "0") == "0"]
    return {usd for dimension in first if (usd := float(dimension["pricePerUnit"]["USD"])) > 0}


def refresh(client: Any, path: Path, region: str, today: str) -> list[str]:
    """Renew the file; what could not be renewed, a line for each."""
    prices = json.loads(path.read_text())
    kept = []
    for item in prices["items"]:
        try:
            item.update(usd=price(client, item, region), source=terraform_pages.AWS, date=today)
        except DataError as error:
            kept.append(str(error))
    prices["region"] = region
    path.write_text(json.dumps(prices, indent=1) + "\n")
    return kept


def spot(client: Any, types: list[str], now: datetime) -> dict[str, tuple[float, float, float]]:
    """Lowest, newest and highest price of each type over all zones in three days, in USD an hour."""
    pages = client.get_paginator("describe_spot_price_history").paginate(
        InstanceTypes=types, ProductDescriptions=["Linux/UNIX"], StartTime=now - timedelta(days=3), EndTime=now
    )
    history: dict[str, list[tuple[datetime, float]]] = defaultdict(list)
    for page in pages:
        for one in page["SpotPriceHistory"]:
            history[one["InstanceType"]].append((one["Timestamp"], float(one["SpotPrice"])))
    return {
        name: (min(usd for _, usd in seen), max(seen)[1], max(usd for _, usd in seen))
        for name, seen in sorted(history.items())
    }


def main(arguments: list[str]) -> int:
    """Renew prices and pages."""
    parser = argparse.ArgumentParser(description="Renew the prices of terraform/README.md.")
    parser.add_argument("--region", help="prices of this region; without it, of the file's")
    parser.add_argument("--spot", nargs="+", metavar="TYPE", default=[], help="print Spot prices of these types too")
    given = parser.parse_args(arguments)
    now = datetime.now(UTC)
    region = given.region or json.loads(PRICES.read_text())["region"]
    kept = refresh(boto3.client("pricing", region_name=_ENDPOINT_REGION), PRICES, region, f"{now:%Y-%m-%d}")
    print("\n".join(kept) or "Every price is renewed.")
    if given.spot:
        for name, (low, newest, high) in spot(boto3.client("ec2", region_name=region), given.spot, now).items():
            print(f"{name}: {newest:.4f} now, {low:.4f} to {high:.4f} in three days")
    terraform_pages.main()
    return int(bool(kept))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
