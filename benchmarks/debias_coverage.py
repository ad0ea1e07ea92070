"""Do debiased intervals cover what they say they cover? Simulated studies, against gold labels alone.

    python -m benchmarks.debias_coverage [--studies 1000] [--seed 0]

A study is a set of 400 videos with questions. Whether an answer is right depends on the video (intra-video correlation
0.3 of correctness, 0.2 of the judge's errors); a judge says right or wrong about every question, missing some right
answers and passing some wrong ones; gold labels are known for a random sample of whole videos. Every cell (a design, an
accuracy, a pair of judge error rates) runs the same number of studies, for both estimands, with the code that
`eval.stats.debiased_mean` runs. A row holds

    ours, peer, ratio        mean half-width debiased, that of gold labels alone by the same method, peer / ours
    coverage, gold_coverage  of the two intervals at a nominal 95 %
    plain, plain_coverage    half-width of gold labels alone by the textbook (t with G - 1 degrees), and its coverage
    unclustered_coverage     of prediction-powered inference that takes questions for independent
    naive_bias               the judge's own accuracy minus the truth
    best_ratio               ours / peer that no estimator linear in the verdicts can beat, lambda known
    scarce                   the least of judge errors, wrong and right answers expected among the gold labels, as
                             effective numbers (divided by their design effect)

`problems` holds the rows against what was promised. Coverage is judged by one band for all intervals together: a count
is outside if a true coverage of 95 % gives one as far off with a probability below 5 % divided by the number of
intervals (Bonferroni over exact binomial tails). No interval may cover less. More is allowed where `scarce` is below
10, the old rule of thumb for proportions: an honest interval cannot tell two errors from five. Last come McNemar's test
and the clustered sign-flip test where neither of two models is better.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from benchmarks.common import write_results
from eval.stats import paired_test, student_quantile, unanimous_width
from eval.stats.prediction_powered import Sums, fit, unanimous_in_set

VIDEOS = 400
LEVEL = 0.95
ICC, JUDGE_ICC = 0.3, 0.2
ACCURACIES = (0.3, 0.5, 0.7, 0.85)
JUDGES = ((0.05, 0.05), (0.05, 0.20), (0.20, 0.05), (0.10, 0.30), (0.30, 0.10), (0.5, 0.5))  # missed, false alarms
SCARCE = 10  # with fewer of a kind among the gold labels an interval may cover more than it says
GOOD_JUDGE = 0.85
WIDEST, GOOD_WIDEST = 1.05, 0.9
LEAST_BIAS = 0.05


@dataclass(frozen=True)
class Design:
    """How gold videos and questions are laid out.

    Attributes:
        name: in the table.
        gold: gold videos.
        least: fewest questions per video.
        most: most questions per video.
        harder: videos with many questions are the harder ones.
    """

    name: str
    gold: int
    least: int
    most: int
    harder: bool = False


DESIGNS = (
    Design("20 videos × 5", 20, 5, 5),
    Design("20 videos × 1–10", 20, 1, 10),
    Design("30 videos × 1–9, harder have more", 30, 1, 9, harder=True),
    Design("40 videos × 3", 40, 3, 3),
    Design("40 videos × 1–10", 40, 1, 10),
    Design("60 videos × 1", 60, 1, 1),
    Design("60 videos × 5", 60, 5, 5),
)


@dataclass(frozen=True)
class Cell:
    """One set of conditions: `gap` is None for an accuracy, else the second model's accuracy below the first's."""

    design: Design
    accuracy: float
    missed: float
    false_alarms: float
    gap: float | None = None

    @property
    def judge_right(self) -> float:
        """Share of verdicts that are right."""
        return self.accuracy * (1 - self.missed) + (1 - self.accuracy) * (1 - self.false_alarms)

    @property
    def case(self) -> str:
        """The cell in a line of the table."""
        what = f"accuracy {self.accuracy}" if self.gap is None else f"difference {self.gap}"
        return f"{self.design.name}, {what}, judge misses {self.missed:.0%}, passes {self.false_alarms:.0%}"


@dataclass(frozen=True)
class Draws:
    """Studies of one cell: rows [T, G, M], `there` marks the questions a video has; values are 0 where it has none."""

    there: np.ndarray
    gold: np.ndarray
    verdicts: np.ndarray
    gold_videos: int
    paired: bool

    def sums(self) -> Sums:
        """What the estimate is made of; the first videos are the gold ones, for all were drawn alike."""
        g = self.gold_videos
        sizes, verdicts, gold = (x.sum(-1, dtype=float) for x in (self.there, self.verdicts, self.gold))
        rows = sizes[:, :g].sum(-1)
        y, f = self.gold[:, :g], self.verdicts[:, :g]
        y_mean, f_mean = gold[:, :g].sum(-1) / rows, verdicts[:, :g].sum(-1) / rows
        return Sums(
            sizes=sizes,
            verdicts=verdicts,
            gold_sizes=sizes[:, :g],
            gold=gold[:, :g],
            gold_verdicts=verdicts[:, :g],
            gold_variance=(y * y).sum((1, 2)) / rows - y_mean**2,
            verdict_variance=(f * f).sum((1, 2)) / rows - f_mean**2,
            covariance=(y * f).sum((1, 2)) / rows - y_mean * f_mean,
            labelled=np.ones(len(sizes)),
            paired=self.paired,
        )


def cells() -> Iterator[Cell]:
    """Every cell: accuracies first, then differences between two models."""
    for design in DESIGNS:
        for accuracy in ACCURACIES:
            for missed, false_alarms in JUDGES:
                yield Cell(design, accuracy, missed, false_alarms)
    for design in DESIGNS:
        for gap in (0.0, 0.1):
            for missed, false_alarms in JUDGES[:4]:
                yield Cell(design, 0.6, missed, false_alarms, gap)


def draw(cell: Cell, studies: int, rng: np.random.Generator) -> tuple[Draws, float]:
    """Studies of a cell, and the truth in the population they come from."""
    design, shape = cell.design, (studies, VIDEOS)
    accuracy = np.full(shape, cell.accuracy)
    if design.harder:  # half of the videos have 3–9 questions, half 1–3 and 0.2 more accuracy; the mean stays
        many = rng.random(shape) < 0.5
        sizes = np.where(many, rng.integers(3, 10, shape), rng.integers(1, 4, shape))
        accuracy = np.clip(accuracy + np.where(many, -0.04, 0.12), 0.01, 0.99)
    elif design.least == design.most:
        sizes = np.full(shape, design.least)
    else:
        sizes = np.clip(rng.geometric(1 / 3, shape), design.least, design.most)
    there = np.arange(sizes.max()) < sizes[..., None]  # [T, G, M]
    video = _beta(rng, accuracy, ICC)
    missed = _beta(rng, np.full(shape, cell.missed), JUDGE_ICC)
    passed = _beta(rng, np.full(shape, cell.false_alarms), JUDGE_ICC)

    def answers(rate: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        gold = rng.random(there.shape) < rate[..., None]
        error = rng.random(there.shape) < np.where(gold, missed[..., None], passed[..., None])
        return (gold & there).astype(np.int8), ((gold ^ error) & there).astype(np.int8)

    gold, verdicts = answers(video)
    if cell.gap is None:
        return Draws(there, gold, verdicts, design.gold, False), cell.accuracy
    # the second model: right on the same videos, but for the gap, and for what is its own
    share = (cell.accuracy - cell.gap) / cell.accuracy
    own = _beta(rng, accuracy, ICC)
    other_gold, other_verdicts = answers(share * np.where(rng.random(shape) < 0.5, video, own))
    return Draws(there, gold - other_gold, verdicts - other_verdicts, design.gold, True), cell.gap


def _beta(rng: np.random.Generator, mean: np.ndarray, icc: float) -> np.ndarray:
    size = 1 / icc - 1
    return rng.beta(mean * size, (1 - mean) * size)


def measure(cell: Cell, studies: int, rng: np.random.Generator) -> list[dict]:
    """One row of results for each estimand."""
    drawn, population = draw(cell, studies, rng)
    sums = drawn.sums()
    every = drawn.there.sum((1, 2))
    in_set, naive = drawn.gold.sum((1, 2)) / every, drawn.verdicts.sum((1, 2)) / every
    scarce = _scarce(cell, sums)
    rows = []
    for estimand in ("benchmark", "population"):
        benchmark = estimand == "benchmark"
        truth = in_set if benchmark else np.full(studies, population)
        debiased, alone = fit(sums, benchmark), fit(sums, benchmark, lam=0.0)
        plain = _plain(sums, benchmark)
        ours, peer = _half(debiased.low, debiased.high), _half(alone.low, alone.high)
        rows.append(
            {
                "case": f"{cell.case}, {estimand}",
                "ours": ours,
                "peer": peer,
                "ratio": peer / ours,
                "unit": "half-width",
                "estimand": estimand,
                "paired": drawn.paired,
                "accuracy": cell.accuracy,
                "missed": cell.missed,
                "false_alarms": cell.false_alarms,
                "judge_right": round(cell.judge_right, 4),
                "scarce": round(scarce, 1),
                "studies": studies,
                "coverage": _covered(debiased.low, debiased.high, truth),
                "gold_coverage": _covered(alone.low, alone.high, truth),
                "plain": _half(*plain),
                "plain_coverage": _covered(*plain, truth),
                "unclustered_coverage": _covered(*_unclustered(sums, benchmark), truth),
                "naive_bias": float((naive - truth).mean()),
                "best_ratio": _best_ratio(sums, benchmark),
            }
        )
    return rows


def _scarce(cell: Cell, sums: Sums) -> float:
    labels, largest = sums.gold_sizes.sum(-1).mean(), (sums.sizes**2).sum() / sums.sizes.sum()
    errors = (1 - cell.judge_right) / (1 + (largest - 1) * JUDGE_ICC)
    answers = min(cell.accuracy, 1 - cell.accuracy) / (1 + (largest - 1) * ICC)
    return float(labels * min(errors, answers))


def _half(low: np.ndarray, high: np.ndarray) -> float:
    return float((high - low).mean() / 2)


def _covered(low: np.ndarray, high: np.ndarray, truth: np.ndarray) -> float:
    return float(((low <= truth + 1e-12) & (truth <= high + 1e-12)).mean())


def _plain(sums: Sums, benchmark: bool) -> tuple[np.ndarray, np.ndarray]:
    """`cluster_mean` of the gold labels, with the finite-population correction for the benchmark: [T], [T]."""
    g, bottom = sums.gold_sizes.shape[-1], -1.0 if sums.paired else 0.0
    rows = sums.gold_sizes.sum(-1)
    mean = sums.gold.sum(-1) / rows
    residual = sums.gold - sums.gold_sizes * mean[:, None]
    left = 1 - g / VIDEOS if benchmark else 1.0
    half = student_quantile(g - 1) * np.sqrt(left * g / (g - 1) * (residual**2).sum(-1)) / rows
    half = np.where(sums.gold_variance < 1e-12, unanimous_in_set(g, VIDEOS) if benchmark else unanimous_width(g), half)
    return np.maximum(mean - half, bottom), np.minimum(mean + half, 1.0)


def _unclustered(sums: Sums, benchmark: bool) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the interval of PPI++ as published, with questions for independent draws: [T], [T]."""
    n, every = sums.gold_sizes.sum(-1), sums.sizes.sum(-1)
    y_mean, f_sum = sums.gold.sum(-1) / n, sums.gold_verdicts.sum(-1)
    f_outside, f_mean = (sums.verdicts.sum(-1) - f_sum) / (every - n), f_sum / n
    y_var, f_var, covariance = sums.gold_variance, sums.verdict_variance, sums.covariance
    outside = 1 - n / every
    lam = np.clip(np.where(f_var > 0, covariance / np.where(f_var > 0, f_var, 1), 0) * outside, 0, 1)
    used = lam / outside if benchmark else lam
    rectifier = (y_var - 2 * used * covariance + used**2 * f_var) / n
    variance = rectifier * outside if benchmark else rectifier + lam**2 * f_var / (every - n)
    mean, half = y_mean + lam * (f_outside - f_mean), 1.959964 * np.sqrt(np.maximum(variance, 0))
    return mean - half, mean + half


def _best_ratio(sums: Sums, benchmark: bool) -> float:
    """Half-width with the best lambda known, over that of gold labels alone, from the moments of all studies."""
    g = sums.gold_sizes.shape[-1]
    rows = sums.gold_sizes.sum()
    a = sums.gold - sums.gold_sizes * sums.gold.sum() / rows
    b = sums.gold_verdicts - sums.gold_sizes * sums.gold_verdicts.sum() / rows
    explained = float((a * b).sum()) ** 2 / (float((a * a).sum()) * float((b * b).sum()))
    return math.sqrt(1 - explained * (1 if benchmark else 1 - g / VIDEOS))


def band(studies: int, intervals: int) -> tuple[float, float]:
    """The coverages that all intervals together stay within with 95 % probability if each covers 95 %."""
    tail = 0.05 / intervals / 2
    log = [
        math.lgamma(studies + 1) - math.lgamma(k + 1) - math.lgamma(studies - k + 1)
        + k * math.log(LEVEL) + (studies - k) * math.log(1 - LEVEL)
        for k in range(studies + 1)
    ]  # fmt: skip
    below = np.cumsum(np.exp(log))
    low = int(np.searchsorted(below, tail))  # the least count whose lower tail is not that improbable
    high = int(np.searchsorted(below, 1 - tail))
    return low / studies, high / studies


def problems(rows: list[dict]) -> list[str]:
    """What the rows do not keep of the promises; nothing if they keep all."""
    low, high = band(rows[0]["studies"], len(rows))
    found = []
    for row in rows:
        said, width = row["case"], row["ours"] / row["peer"]
        if row["coverage"] < low:
            found.append(f"{said}: covers {row['coverage']:.3f}, below {low:.3f}")
        if row["coverage"] > high and row["scarce"] >= SCARCE:
            found.append(f"{said}: covers {row['coverage']:.3f}, above {high:.3f}")
        if row["gold_coverage"] < low:
            found.append(f"{said}: gold labels alone cover {row['gold_coverage']:.3f}, below {low:.3f}")
        if width > WIDEST:
            found.append(f"{said}: {width:.3f} times as wide as gold labels alone")
        if row["judge_right"] >= GOOD_JUDGE and not row["paired"] and width > GOOD_WIDEST:
            found.append(f"{said}: {width:.3f} times as wide as gold labels alone with a good judge")
    return found


def null_tests(studies: int, seed: int) -> dict[str, float]:
    """How often McNemar's test and the sign-flip test by video find a difference at 5 % where there is none.

    100 videos × 3 questions; which of two equally good models does better changes from video to video.
    """
    rng = np.random.default_rng([seed, 999])
    clusters = np.repeat(np.arange(100), 3)
    fired = {"mcnemar": 0, "clustered": 0}
    for trial in range(studies):
        rates = rng.beta(0.3, 0.3, size=(2, 100, 1))
        a, b = (rng.random((2, 100, 3)) < rates).astype(int).reshape(2, -1)
        wins, losses = int((a > b).sum()), int((a < b).sum())
        tail = sum(math.comb(wins + losses, k) for k in range(min(wins, losses) + 1)) / 2 ** (wins + losses)
        fired["mcnemar"] += 2 * tail < 0.05
        fired["clustered"] += paired_test(a, b, clusters, draws=1000, seed=trial).p < 0.05
    return {name: count / studies for name, count in fired.items()}


def run(studies: int, seed: int = 0, only: slice = slice(None)) -> list[dict]:
    """Rows of the cells (or of some of them); a cell's studies do not depend on which others run."""
    chosen = list(enumerate(cells()))[only]
    return [row for number, cell in chosen for row in measure(cell, studies, np.random.default_rng([seed, number]))]


def main() -> None:
    """Simulate, print the table and what fails, write ``results/debias_coverage.json``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=1000, help="per cell")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rows = run(options.studies, options.seed)
    low, high = band(options.studies, len(rows))
    fired = null_tests(options.studies, options.seed)
    found = problems(rows)
    test = {
        "case": "false alarms of the clustered test, and of McNemar's, at 5 %",
        "ours": fired["clustered"],
        "peer": fired["mcnemar"],
        "ratio": fired["mcnemar"] / fired["clustered"],
        "unit": "rate",
    }
    rounded = [{k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()} for row in [*rows, test]]
    write_results("debias_coverage", rounded)
    print(f"\nband around 95 % for {len(rows)} intervals of {options.studies} studies: {low:.3f}–{high:.3f}")
    for name in ("coverage", "gold_coverage", "plain_coverage", "unclustered_coverage"):
        values = np.array([row[name] for row in rows])
        outside = f"{(values < low).sum()} below the band, {(values > high).sum()} above"
        print(f"{name:<22} {values.min():.3f}–{values.max():.3f}, median {np.median(values):.3f}; {outside}")
    usual = [row["coverage"] for row in rows if row["scarce"] >= SCARCE]
    print(f"where nothing is scarce ({len(usual)} intervals): {min(usual):.3f}–{max(usual):.3f}")
    widths = {name: [row["ours"] / row[name] for row in rows] for name in ("peer", "plain")}
    good = [w for w, row in zip(widths["peer"], rows) if row["judge_right"] >= GOOD_JUDGE and not row["paired"]]
    print(f"half-width over gold labels alone: at most {max(widths['peer']):.3f}, with a good judge {max(good):.3f}")
    print(f"over the textbook's, which may cover less: at most {max(widths['plain']):.3f}")
    off = sum(abs(row["naive_bias"]) >= LEAST_BIAS for row in rows)
    print(f"the judge's own figure is off by 5 points or more in {off} of {len(rows)}")
    print("\n".join(["problems:", *found]) if found else "every promise is kept")


if __name__ == "__main__":
    main()
