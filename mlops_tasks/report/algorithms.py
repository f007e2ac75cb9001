"""The page, and the terminal's table, of a comparison of algorithms: a verdict in words, intervals, curves, what each has cost.

Owns what is said of a comparison; what it came to is `algorithms.findings`'.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import Any

from mlops_tasks import tracking
from mlops_tasks.algorithms import Cells, progress
from mlops_tasks.algorithms.findings import PURPOSES, Arm, Contrast, Findings, p_text, points, span
from mlops_tasks.algorithms.inference import CONFIDENCE, Estimate
from mlops_tasks.config.loading import as_yaml
from mlops_tasks.errors import WmtpError
from mlops_tasks.report import charts
from mlops_tasks.report.charts import Series
from mlops_tasks.report.document import document, masthead
from mlops_tasks.report.facts import SHORT, absent, percent, pill, scrolling, section
from mlops_tasks.report.markup import Child, Markup, element
from mlops_tasks.report.outcomes import percents, tile
from mlops_tasks.stage import Run
from mlops_tasks.tracking import LoggedCell

log = logging.getLogger(__name__)

PAGE = "report.html"
_METHOD = (
    "Differences are paired: the same problems, and the same seed, which gives the same problems in the same steps. Intervals hold "
    f"{CONFIDENCE:.0%} and allow for other problems and for other seeds: a t interval with the variance of both, never narrower than that of the "
    "problems alone. McNemar's exact test "
    "counts the first programs that only one of the two has right, over all seeds; it takes the seeds of one problem for independent, so that "
    "the verdict does not rest on it. Every p is corrected by Holm for the number of algorithms, each measure by itself; intervals are not."
)


def contrast(run: Run) -> dict[str, Any]:
    """`report` of the comparison that a cell belongs to."""
    return report(Cells.open(run.environment, run.prefix.rpartition("/cells/")[0]))


def report(cells: Cells) -> dict[str, Any]:
    """Write the page of a comparison, and tell MLflow of it if that can be reached.

    Returns:
        path: where the page is; mlflow: ids of the parent run and of its experiment, or None.

    Raises:
        Unavailable: a cell has not ended.
        DataError: the cells were not asked alike.
    """
    findings = Findings.of(cells)
    text = page(findings)
    cells.store.backend.write(f"{cells.prefix}/{PAGE}", text.encode(errors="replace"))
    path = f"{cells.store.uri}/{cells.prefix}/{PAGE}"
    log.info("the report is %s", path)
    return {"path": path, "mlflow": _log_to_mlflow(findings, text, path)}


def _log_to_mlflow(findings: Findings, text: str, path: str) -> dict[str, str] | None:
    cells = findings.cells
    metrics = {
        f"{name}/{part}": value
        for name, contrast in findings.passed.items()
        for part, value in (
            ("difference", contrast.estimate.value),
            ("low", contrast.estimate.low),
            ("high", contrast.estimate.high),
            ("corrected_p", contrast.corrected_p),
        )
    }
    try:
        return tracking.log_comparison(
            cells.environment,
            comparison=cells.name,
            name=cells.plan.comparison.name,
            cells=list(_logged_cells(findings)),
            metrics={name.replace(", ", ".").replace("=", "-"): value for name, value in metrics.items()},
            verdict="\n".join(findings.verdicts()),
            page=text,
        )
    except WmtpError as error:
        log.warning("the comparison is in %s, but not in MLflow: %s", path, error)
        return None


def _logged_cells(findings: Findings) -> Iterator[LoggedCell]:
    for arm in findings.arms:
        for result, rate in zip(arm.results, arm.by_seed, strict=True):
            recipe = result.run.spec.recipe
            loss = {} if result.nats is None else {"final/validation_nats": result.nats}
            yield LoggedCell(
                name=result.cell.name,
                params={"algorithm": arm.name, "seed": result.cell.seed, **recipe.model_dump(mode="json", include={"scoring", "weighting", "train"})},
                metrics={"final/pass_at_1": rate, **loss, "device_seconds": sum(result.charges.values()), "tokens": result.num_tokens},
                curve=result.curve,
                train_key=str(result.train.manifest["key"]),
            )  # fmt: skip


# On a terminal


def status(cells: Cells) -> Iterator[str]:
    """Lines on how far a comparison has come."""
    for cell, outcomes in progress(cells):
        counts = Counter(outcomes)
        yield f"{cell.name:<40}" + ", ".join(f"{count} {word}" for word, count in counts.items())


def in_words(findings: Findings) -> Iterator[str]:
    """Lines on what it came to."""
    rows = [_HEAD, *(_line(findings, arm) for arm in findings.arms)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
    yield ""
    yield from findings.verdicts()
    for (arm, placebo), contrast in findings.over_placebos.items():
        yield f"{arm} against the placebo {placebo}: {contrast.in_words()}."
    yield f"Equal: {'; '.join(findings.equal) or 'nothing'}."
    yield f"Device-seconds spent on the comparison: {findings.spent:.0f}, what several algorithms need counted once."


_HEAD = (
    "algorithm",
    "pass@1 by seed",
    "mean",
    "difference",
    "interval",
    "p",
    "won:lost",
    "p (McNemar)",
    "nats",
    "p (nats)",
    "device-s",
)


def _line(findings: Findings, arm: Arm) -> tuple[str, ...]:
    seeds = " ".join(f"{rate:.3f}" for rate in arm.by_seed)
    mean = f"{arm.estimate.value:.3f}"
    nats = "–" if arm.nats is None else f"{fmean(arm.nats):.4f}"
    cost = f"{_at_least(arm)}{_cost(arm):.0f}"
    if arm.name == findings.baseline.name:
        return (arm.name, seeds, mean, "baseline", "", "", "", "", nats, "", cost)
    contrast, (test, corrected) = findings.passed[arm.name], findings.flips[arm.name]
    loss = findings.losses.get(arm.name)
    estimate = contrast.estimate
    return (
        arm.name, seeds, mean, points(estimate.value), span(estimate), p_text(contrast.corrected_p),
        f"{test.only_a}:{test.only_b}", p_text(corrected), nats, "–" if loss is None else p_text(loss.corrected_p), cost,
    )  # fmt: skip


def _cost(arm: Arm) -> float:
    return sum(arm.charge(purpose) for purpose in PURPOSES)


def _at_least(arm: Arm) -> str:
    return "≥ " if arm.is_continued else ""


# In a browser


def page(findings: Findings) -> str:
    """The page as HTML."""
    plan = findings.cells.plan
    title = f"{plan.comparison.name}: {len(findings.arms)} algorithms"
    sections = {
        "verdict": ("Verdict", _verdict(findings)),
        "figures": ("Figures", _figures(findings)),
        "loss": ("Loss", _losses(findings)),
        "curves": ("Learning curves", _curves(findings)),
        "cost": ("Cost", _costs(findings)),
        "equality": ("What was equal", _equality(findings)),
        "algorithms": ("Algorithms", _algorithms(findings)),
    }
    footer = f"Written for {findings.cells.name} from the artifacts in {findings.cells.store.uri}."
    return document(title, header=_header(findings, title), sections=sections, footer=footer)


def _header(findings: Findings, title: str) -> Markup:
    asked = findings.baseline.results[0].judged.metrics
    words = (
        f"{findings.num_seeds} seed{'s' if findings.num_seeds > 1 else ''}",
        f"{findings.num_problems} problems",
        f"protocol {asked['protocol']}",
        f"prompts {asked['prompt_sha256'][:SHORT]}",
    )
    tiles = [tile(f"pass@1, {arm.name}", percent(arm.estimate.value), _inside(arm.estimate)) for arm in findings.arms]
    return masthead(
        title,
        eyebrow=[element("span", word) for word in words],
        lead=findings.headline,
        notes=[element("p", pill("not equal", "error"), f" {one}", class_="note") for one in findings.unequal],
        tiles=tiles,
    )


def _inside(estimate: Estimate) -> str:
    """An interval of a share; a t interval knows no ends."""
    return percents((max(0.0, estimate.low), min(1.0, estimate.high)))


def _verdict(findings: Findings) -> Markup:
    return section("verdict", "Verdict", element("ul", [element("li", one) for one in findings.verdicts()]))


def _figures(findings: Findings) -> Markup:
    rows = [
        charts.Estimate(name, one.estimate.value, one.estimate.interval, _kind(one))
        for name, one in findings.passed.items()
    ]
    reach = 1.1 * max(0.02, *(abs(end) for row in rows for end in row.interval or ()))
    chart = charts.estimates(rows, low=-reach, high=reach, mark=(0.0, f"as {findings.baseline.name}"), is_signed=True)
    return section(
        "figures",
        "pass@1",
        element("p", _METHOD),
        element("div", element("h3", f"Difference from {findings.baseline.name}, points"), chart, class_="card"),
        scrolling("pass@1 of each algorithm", _passed(findings), is_card=True),
        _over_placebos(findings) if findings.over_placebos else None,
    )


def _over_placebos(findings: Findings) -> list[Markup]:
    text = "Against a placebo, whose weights have nothing to do with importance; corrected over this table:"
    rows = [
        _row([f"{arm}, {placebo}"], [points(one.estimate.value), span(one.estimate), p_text(one.corrected_p)])
        for (arm, placebo), one in findings.over_placebos.items()
    ]
    table = _table("algorithm, placebo", ("difference", "interval", "p"), rows)
    return [element("p", text), scrolling("pass@1 against placebos", table, is_card=True)]


def _kind(contrast: Contrast) -> str:
    return "candidate" if contrast.is_shown else "baseline"


def _passed(findings: Findings) -> Markup:
    words = (
        "mean",
        *(f"seed {seed}" for seed in findings.cells.plan.comparison.seeds),
        "difference",
        "interval",
        "p",
        "won : lost",
        "McNemar's p",
    )
    rows = []
    for arm in findings.arms:
        shares = [percent(rate) for rate in (arm.estimate.value, *arm.by_seed)]
        rows.append(_row([_named(arm)], [*shares, *_contrasts(findings, arm)]))
    return _table("algorithm", words, rows)


def _contrasts(findings: Findings, arm: Arm) -> list[Child]:
    if arm.name == findings.baseline.name:
        return ["baseline", "", "", "", ""]
    contrast, (test, corrected) = findings.passed[arm.name], findings.flips[arm.name]
    estimate = contrast.estimate
    return [
        points(estimate.value),
        span(estimate),
        p_text(contrast.corrected_p),
        f"{test.only_a} : {test.only_b}",
        p_text(corrected),
    ]


def _named(arm: Arm) -> Markup:
    return element("span", arm.name, element("small", "placebo") if arm.is_placebo else None)


def _table(first: str, words: Sequence[str], rows: Sequence[Markup]) -> Markup:
    head = element("tr", element("th", first), [element("th", word, class_="n") for word in words])
    return element("table", head, rows)


def _row(name: Child, cells: Sequence[Child]) -> Markup:
    return element("tr", element("td", name), [element("td", cell, class_="n") for cell in cells])


def _losses(findings: Findings) -> Markup:
    if findings.baseline.nats is None:
        return section("loss", "Validation loss", absent("There are no validation problems."))
    text = "Cross-entropy of head 1 on the validation problems, nats a token; less is better. There is one figure a seed, so the interval is over seeds."
    words = ("mean", *(f"seed {seed}" for seed in findings.cells.plan.comparison.seeds), "difference", "interval", "p")
    rows = []
    for arm in findings.arms:
        assert arm.nats is not None, "all are validated on the same problems"
        values = [f"{nats:.4f}" for nats in (fmean(arm.nats), *arm.nats)]
        rows.append(_row([_named(arm)], [*values, *_loss_contrast(findings, arm)]))
    return section(
        "loss",
        "Validation loss",
        element("p", text),
        scrolling("Validation loss of each algorithm", _table("algorithm", words, rows), is_card=True),
    )


def _loss_contrast(findings: Findings, arm: Arm) -> list[Child]:
    if arm.name == findings.baseline.name:
        return ["baseline", "", ""]
    if (loss := findings.losses.get(arm.name)) is None:
        return ["one seed", "–", "–"]
    one = loss.estimate
    return [f"{one.value:+.4f}", f"{one.low:+.4f} to {one.high:+.4f}", p_text(loss.corrected_p)]


def _curves(findings: Findings) -> Markup:
    baseline = _series(findings.baseline, "baseline")
    figures = [
        charts.lines(
            [one for one in (baseline, _series(arm, None)) if one],
            x_label="step",
            y_label="nats a token",
            title=f"{arm.name} and {findings.baseline.name}",
        )
        for arm in findings.others
        if baseline
    ]
    text = "Validation loss of head 1: the mean over the seeds, and from the least to the greatest of them."
    return section(
        "curves", "Learning curves", element("p", text),
        element("div", figures, class_="grid2") if figures else absent("There are no validation problems."),
    )  # fmt: skip


def _series(arm: Arm, kind: str | None) -> Series | None:
    """The mean over seeds; before the first step they are all alike, and that loss would flatten the rest."""
    by_step: dict[int, list[float]] = defaultdict(list)
    for result in arm.results:
        for step, nats in result.curve:
            if step > 0:
                by_step[step].append(nats)
    if not by_step:
        return None
    found = sorted(by_step.items())
    band = [(step, min(nats), max(nats)) for step, nats in found]
    return Series(arm.name, [(step, fmean(nats)) for step, nats in found], band=band, kind=kind)


def _costs(findings: Findings) -> Markup:
    text = (
        "Device-seconds of one training with all that it needs, the mean over the seeds, as the manifests have them: what several algorithms share is "
        "charged to each, for alone each would need it. Scores are the forwards of reference or base model, a critic is its candidates, their "
        "rewards and its heads. Tokens learnt went through models that learn, references among them; tokens scored through a reference or the base "
        "(a critic's candidates are in its seconds alone). Seconds depend on what else the machine did, tokens do not. Of an attempt that failed, what the "
        "next one went on from is charged too, as far as it was recorded: ≥ marks sums with something that went on, which a killed process may have begun. "
        f"The comparison itself has taken {findings.spent:,.0f} device-seconds, what is shared counted once."
    )
    used = [purpose for purpose in PURPOSES if any(arm.charge(purpose) for arm in findings.arms)]
    baseline = _cost(findings.baseline)
    rows = [
        _row(
            [_named(arm)],
            [
                *(f"{arm.charge(purpose):,.1f}" for purpose in used),
                f"{_at_least(arm)}{_cost(arm):,.1f}",
                f"{_cost(arm) / baseline:.2f}" if baseline else "–",
                f"{arm.num_tokens:,.0f}",
                f"{arm.num_scored_tokens:,.0f}",
            ],
        )
        for arm in findings.arms
    ]
    words = (*used, "all", f"of {findings.baseline.name}", "tokens learnt", "tokens scored")
    return section(
        "cost",
        "Cost",
        element("p", text),
        scrolling("Cost of each algorithm", _table("algorithm", words, rows), is_card=True),
    )


def _equality(findings: Findings) -> Markup:
    text = "By what each training recorded of itself, algorithm against baseline, seed by seed:"
    return section(
        "equality", "What was equal", element("p", text),
        element("ul", [element("li", one) for one in (*(f"NOT EQUAL: {one}" for one in findings.unequal), *findings.equal)]),
    )  # fmt: skip


def _algorithms(findings: Findings) -> Markup:
    shared = "What each one is: these parts of its recipe."
    folds = [
        element(
            "details",
            element("summary", arm.name),
            element("div", [element("p", note) for note in arm.notes], element("pre", _settings(arm))),
        )
        for arm in findings.arms
    ]
    return section("algorithms", "Algorithms", element("p", shared), folds)


def _settings(arm: Arm) -> str:
    parts = arm.recipe.model_dump(mode="json", include={"scoring", "weighting", "train"})
    return as_yaml(parts)
