"""All benchmarks of training and scoring at small sizes, one table and one picture: `make bench`.

python -m benchmarks.run_all                what is measured goes to .wmtp/bench
python -m benchmarks.run_all --accept       and its ratios are what `pytest -m perf` holds later ones to
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks import loss_memory, rank_speed, scoring_speed, training_speed
from benchmarks.pairs import RESULTS, Result, write
from benchmarks.small_training import sized

ACCEPTED = Path(__file__).with_name("accepted.json")


def runs(rounds: int) -> dict[str, Callable[[], list[Result]]]:
    """By name; each some minutes at most."""
    given = ["--rounds", str(rounds)]
    return {
        "loss_memory": lambda: loss_memory.results(loss_memory.arguments(given)),
        "training_speed": lambda: training_speed.results(sized(None, given)),
        "scoring_speed": lambda: scoring_speed.results(sized(None, given)),
        "rank_speed": lambda: rank_speed.results(sized(None, given)),
    }


def table(results: list[Result]) -> str:
    """Markdown."""
    rows = [
        f"| {one.name} | {one.ours:.4g} | {one.peer:.4g} | {one.unit} | {one.ratio:.3f} | {_aim(one)} | {one.peer_is} |"
        for one in results
    ]
    return "\n".join(["| | ours | peer | | ours / peer | aim | the peer is |", "|---|---|---|---|---|---|---|", *rows])


def _aim(one: Result) -> str:
    if one.aim is None:
        return ""
    return f"{'≥' if one.is_more_better else '≤'} {one.aim:g}, {'reached' if one.is_reached else 'missed'}"


def picture(results: list[Result], path: Path) -> None:
    """Each ratio as a bar on a logarithmic axis; green is ours better, and a tick is the aim."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "wmtp"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 0.4 * len(results) + 1))
    for place, one in enumerate(reversed(results)):
        is_better = (one.ratio > 1) == one.is_more_better
        axes.barh(place, one.ratio - 1, left=1, color="#2a7f4f" if is_better else "#b5651d")
        axes.text(
            one.ratio, place, f" {one.ratio:.2f} ", va="center", ha="left" if one.ratio > 1 else "right", fontsize=8
        )
        if one.aim is not None:
            axes.plot([one.aim, one.aim], [place - 0.4, place + 0.4], color="black")
    axes.set_yticks(range(len(results)), [one.name for one in reversed(results)], fontsize=8)
    axes.set_xscale("log")
    axes.margins(x=0.2)
    axes.axvline(1, color="gray", linewidth=0.8)
    axes.set_xlabel("ours / peer (green: ours is better; tick: the aim)")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--accept", action="store_true")
    parser.add_argument("--only", nargs="*", choices=list(runs(1)), help="of the others the last results are taken")
    options = parser.parse_args()
    for name, run in runs(options.rounds).items():
        if options.only is None or name in options.only:
            write(name, run())
    results = [one for name in runs(1) for one in read(name)]
    (RESULTS / "table.md").write_text(f"{table(results)}\n", encoding="utf-8")
    picture(results, RESULTS / "ratios.svg")
    print(f"\n{table(results)}\n\n{RESULTS}/table.md, {RESULTS}/ratios.svg")
    if options.accept:
        ACCEPTED.write_text(json.dumps({one.name: round(one.ratio, 3) for one in results}, indent=1) + "\n")


def read(name: str) -> list[Result]:
    """What was measured last."""
    path = RESULTS / f"{name}.json"
    if not path.exists():
        sys.exit(f"There is no {path} yet. Run it without --only.")
    return [Result(**one) for one in json.loads(path.read_text())["results"]]


if __name__ == "__main__":
    main()
