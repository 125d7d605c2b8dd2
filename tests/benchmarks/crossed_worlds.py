"""Two halves that judge each other against a locked holdout, and how many rows to search: on arrays of many searches.

Every array begins with the searches, [searches, …]; a search tries settings one after the other like a sampler that
learns. The tests are the project's own, with one sample of subsets of the rows for all searches of a cell. Each section
makes one markdown table; all follow from fixed seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from llmsearch_optuna.stats.crossed import UNSEEN_LEVEL
from llmsearch_optuna.stats.tail_bound import mean_lower_bounds
from tests.benchmarks.worlds import BEST_AT, CHANCE, REACH, ROW, SCALE, TOGETHER, TOTAL

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

Scores = Literal["continuous", "0/1", "5 % right", "skewed"]
Worths = Literal["nothing", "half harmful", "few good", "hill"]

FINALISTS, FRESH, TRIALS = 3, 3, 24
SUBSETS, MOST_ENUMERATED = 2_000, 12
BASELINE = -1
_RIGHT = {"0/1": 0.4, "5 % right": 0.05}


@dataclass(frozen=True)
class Settings:
    """A world: what scores are like, and what settings are worth.

    Attributes:
        scores: Their kind.
        rows: Of the data.
        worths: ``"nothing"``: all are worth what the baseline is; ``"half harmful"``: half of them lose `gain`;
            ``"few good"``: 6 % gain it, the others lose a tenth of it; ``"hill"``: as in `worlds.World`.
        gain: In the unit of the score.
        derailing: Share of rows on which a setting scores 0; it gains as much on the others.
        cluster: Rows a prompt.
        shared: Whether both halves try the same settings.
    """

    scores: Scores
    rows: int
    worths: Worths = "nothing"
    gain: float = 0.0
    derailing: float = 0.0
    cluster: int = 1
    shared: bool = False

    def worth(self, settings: Floats) -> Floats:
        """What settings in [0, 1] are worth."""
        if self.worths == "nothing":
            return np.zeros_like(settings)
        if self.worths == "half harmful":
            return np.where(settings < 0.5, -self.gain, 0.0)
        if self.worths == "few good":
            return np.where(settings < 0.06, self.gain, -0.1 * self.gain)
        hill: Floats = self.gain * np.maximum(-2.0, 1.0 - ((settings - BEST_AT) / REACH) ** 2)
        return hill

    def observed(self, luck: Floats, worth: Floats | float) -> Floats:
        """Scores, given the random parts on the inner scale."""
        if self.scores in _RIGHT:
            right = _RIGHT[self.scores]
            threshold = TOTAL * stats.norm.isf(np.clip(right + np.asarray(worth), 1e-3, 1 - 1e-3))
            return np.asarray(luck > threshold, dtype=np.float64)
        if self.scores == "continuous":
            return np.asarray(0.3 + SCALE * luck + worth)
        mean = float(np.exp((0.7 * TOTAL) ** 2 / 2)) / 10
        return np.asarray(np.exp(0.7 * luck) / 10 * (1 + np.maximum(np.asarray(worth) / mean, -0.9)))


@dataclass(frozen=True)
class Searches:
    """The rows of many searches in one world.

    Attributes:
        world: The world.
        rng: All randomness.
        difficulty: Of the rows, [searches, rows].
    """

    world: Settings
    rng: np.random.Generator
    difficulty: Floats

    @classmethod
    def of(cls, world: Settings, count: int, seed: int) -> Searches:
        """Draw the rows."""
        rng = np.random.default_rng(seed)
        return cls(world, rng, ROW * _by_prompt(rng, (count, world.rows), world.cluster))

    def scores(self, settings: Floats | None) -> Floats:
        """Draw the scores of one setting a search, [searches, rows, 1 + FRESH]: of the search, then fresh ones."""
        world, (count, rows) = self.world, self.difficulty.shape
        own = self.difficulty + TOGETHER * _by_prompt(self.rng, (count, rows), world.cluster)
        luck = own[..., None] + CHANCE * self.rng.normal(size=(count, rows, 1 + FRESH))
        if settings is None:
            return world.observed(luck, 0.0)
        found = world.observed(luck, world.worth(settings)[:, None, None])
        if not world.derailing:
            return found
        lost = self.rng.random((count, rows, 1)) < world.derailing
        return np.where(lost, 0.0, found + 0.3 * world.derailing / (1 - world.derailing))


def _by_prompt(rng: np.random.Generator, shape: tuple[int, int], cluster: int) -> Floats:
    """Standard normal, [searches, rows]; rows with the same prompt have a correlation of a half."""
    if cluster == 1:
        return rng.normal(size=shape)
    together = np.repeat(rng.normal(size=(shape[0], shape[1] // cluster)), cluster, axis=1)
    found: Floats = (together + rng.normal(size=shape)) / np.sqrt(2)
    return found


@dataclass(frozen=True)
class Winners:
    """What won each search.

    Attributes:
        settings: [searches].
        worth: [searches]; 0 where the baseline won.
        scores: Fresh ones of all rows, [searches, rows, FRESH].
        place: Which trial, [searches]; BASELINE for the baseline.
    """

    settings: Floats
    worth: Floats
    scores: Floats
    place: Ints


def search(
    searches: Searches, part: Ints, trials: int, baseline: Floats, tried: Sequence[tuple[Floats, Floats]] = ()
) -> Winners:
    """Try so many settings on these rows, decode the best again, and take the winner.

    Args:
        searches: Their rows.
        part: Row numbers that are looked at.
        trials: How many settings.
        baseline: Its scores, [searches, rows, 1 + FRESH].
        tried: Settings and their scores, where these are given.
    """
    count = len(searches.difficulty)
    settings, scores = np.empty((count, trials)), np.empty((count, trials, *baseline.shape[1:]))
    means, every = np.empty((count, trials)), np.arange(count)
    for trial in range(trials):
        drawn = searches.rng.random(count)
        if trial >= 8 and trial % 2:
            near = settings[every, means[:, :trial].argmax(axis=1)]
            drawn = np.clip(near + 0.1 * searches.rng.normal(size=count), 0, 1)
        settings[:, trial], scores[:, trial] = tried[trial] if tried else (drawn, searches.scores(drawn))
        means[:, trial] = scores[:, trial][:, part, 0].mean(axis=1)
    best = np.argsort(-means, axis=1)[:, :FINALISTS]
    again = scores[every[:, None], best][:, :, part, 1:].mean(axis=(2, 3))
    place = best[every, again.argmax(axis=1)]
    is_baseline = again.max(axis=1) <= baseline[:, part, 1:].mean(axis=(1, 2))
    won = np.where(is_baseline[:, None, None], baseline, scores[every, place])[..., 1:]
    worth = np.where(is_baseline, 0.0, searches.world.worth(settings[every, place]))
    return Winners(settings[every, place], worth, won, np.where(is_baseline, BASELINE, place))


@dataclass(frozen=True)
class Decisions:
    """What is said of each search.

    Attributes:
        better: Whether "better" is said, [searches].
        worth: Of what is recommended then, [searches].
        agree: Whether both halves chose the same, [searches].
    """

    better: NDArray[np.bool_]
    worth: Floats
    agree: NDArray[np.bool_]

    @property
    def false(self) -> float:
        """Share of searches that are told to take what is no better than the baseline."""
        return float(np.mean(self.better & (self.worth <= 0)))

    @property
    def found(self) -> float:
        """Share of searches that are told to take what is better."""
        return float(np.mean(self.better & (self.worth > 0)))


def crossed(world: Settings, count: int, seed: int, *, level: float = UNSEEN_LEVEL, trials: int = TRIALS) -> Decisions:
    """Search two halves apart, and judge each one's winner on the other."""
    searches = Searches.of(world, count, seed)
    half = world.cluster * (world.rows // world.cluster // 2)
    parts = np.arange(half), np.arange(half, world.rows)
    baseline = searches.scores(None)
    tried: list[tuple[Floats, Floats]] = []
    if world.shared:
        drawn = [searches.rng.random(count) for _ in range(trials // 2)]
        tried = [(settings, searches.scores(settings)) for settings in drawn]
    winners = [search(searches, part, trials // 2, baseline, tried) for part in parts]
    plain = baseline[..., 1:].mean(axis=2)
    leads = [winner.scores.mean(axis=2) - plain for winner in winners]
    pooled = np.concatenate([leads[1][:, parts[0]], leads[0][:, parts[1]]], axis=1)
    better = is_better(world, pooled, baseline, [winner.scores for winner in winners], level, searches.rng)
    unseen = np.stack([leads[0][:, parts[1]].mean(axis=1), leads[1][:, parts[0]].mean(axis=1)])
    overall = np.stack([lead.mean(axis=1) for lead in leads])
    chosen = np.where(unseen > 0, overall, -np.inf).argmax(axis=0)
    worth = np.stack([winner.worth for winner in winners])[chosen, np.arange(count)]
    agree = winners[0].place == winners[1].place
    return Decisions(better, worth, agree if world.shared else agree & (winners[0].place == BASELINE))


def held_out(world: Settings, count: int, seed: int, *, share: float, trials: int) -> Decisions:
    """Search some rows, and judge the winner on the others."""
    searches = Searches.of(world, count, seed)
    held = round(share * world.rows)
    baseline = searches.scores(None)
    winner = search(searches, np.arange(held, world.rows), trials, baseline)
    judged = replace(world, rows=held)
    leads = (winner.scores.mean(axis=2) - baseline[..., 1:].mean(axis=2))[:, :held]
    better = is_better(judged, leads, baseline[:, :held], [winner.scores[:, :held]], 0.05, searches.rng)
    return Decisions(better, winner.worth, winner.place == BASELINE)


def is_better(
    world: Settings, leads: Floats, baseline: Floats, winners: Sequence[Floats], level: float, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Sign flips of prompts and Stringer's bound, as `compare` has them for scores with replicates, [searches]."""
    units = leads.reshape(len(leads), -1, world.cluster).mean(axis=2)
    count = units.shape[1]
    subsets = (
        (np.arange(1, 2**count)[:, None] >> np.arange(count)) & 1
        if count <= MOST_ENUMERATED
        else rng.integers(0, 2, size=(SUBSETS, count))
    )
    sums = units @ subsets.T.astype(np.float64)
    slack = 1e-11 * np.maximum(np.abs(units).sum(axis=1), 1e-300)[:, None]
    tail = np.minimum((sums <= slack).sum(axis=1), (sums >= -slack).sum(axis=1))
    p_value = 2 * (1 + tail) / (len(subsets) + 1)
    plain = baseline[..., 1:]
    has_bounds = world.derailing > 0 or world.scores in _RIGHT
    seen = np.minimum(plain.min(axis=(1, 2)), np.min([won.min(axis=(1, 2)) for won in winners], axis=0))
    room = plain.mean(axis=(1, 2)) - (0.0 if has_bounds else seen)
    found: NDArray[np.bool_] = (units.mean(axis=1) > 0) & (p_value <= 0.05)
    found &= mean_lower_bounds(units, largest_loss=room, level=level) > 0
    return found


# -- sections ---------------------------------------------------------------------------------------------------------

ROWS = (12, 20, 40, 60, 80, 100, 140)

HARD: dict[str, Settings] = {
    "nothing to find": Settings("continuous", 0),
    "half of the settings harmful": Settings("continuous", 0, "half harmful", 0.05),
    "few good ones, the others a little harmful": Settings("continuous", 0, "few good", 0.03),
    "all derail on 5 % of rows": Settings("continuous", 0, derailing=0.05),
    "so, and half harmful": Settings("continuous", 0, "half harmful", 0.03, derailing=0.05),
    "so, and few good ones": Settings("continuous", 0, "few good", 0.03, derailing=0.05),
    "all derail on 10 % of rows": Settings("continuous", 0, derailing=0.1),
    "four rows a prompt": Settings("continuous", 0, cluster=4),
    "0/1": Settings("0/1", 0),
    "0/1, half harmful": Settings("0/1", 0, "half harmful", 0.2),
    "0/1, few good ones": Settings("0/1", 0, "few good", 0.2),
    "right on 1 row in 20": Settings("5 % right", 0),
    "skewed": Settings("skewed", 0),
    "skewed, half harmful": Settings("skewed", 0, "half harmful", 0.05),
}


def crossed_errors(pool: Executor, share: float) -> str:
    """How often two halves recommend what is no better than the baseline, in worlds that are made to mislead them."""
    count = max(100, round(2_000 * share))
    lines, worst = [], 0.0
    for name, world in HARD.items():
        for shared in (False, True):
            cells = []
            for rows in ROWS:
                one = replace(world, rows=2 * rows if world.cluster > 1 else rows, shared=shared)
                found = pool.submit(crossed, one, count, rows).result().false
                worst = max(worst, found)
                cells.append(f"{100 * found:.1f} %")
            lines.append(f"| {name} | {'the same' if shared else 'own'} | {' | '.join(cells)} |")
    return "\n".join(
        [
            f"### Two halves that judge each other: false `better` ({count} searches a cell)\n",
            "So often a setting is recommended that is worth no more than the baseline. 12 trials on each half, either "
            f"of settings of their own or both of the same 12; Stringer's bound is taken at {UNSEEN_LEVEL:.2%}, the "
            "recommended one is the better of the two on all rows, out of those that lead on the rows which they had "
            "not seen. With four rows a prompt there are twice as many rows. One standard error is at most "
            f"{100 * np.sqrt(0.05 * 0.95 / count):.1f} points; the largest cell is {100 * worst:.1f} %.\n",
            f"| world | settings | {' | '.join(f'{rows} rows' for rows in ROWS)} |",
            "|---|---|" + "---|" * len(ROWS),
            *lines,
        ]
    )


def crossed_power(pool: Executor, share: float) -> str:
    """What two halves find, beside a holdout of 30 and of 50 %, at equal tokens."""
    count = max(100, round(1_000 * share))
    lines = []
    for scores in ("continuous", "0/1", "skewed"):
        for rows in ROWS:
            cells = []
            for gain in (0.05, 0.1):
                world = Settings(scores, rows, "hill", gain)  # type: ignore[arg-type]
                designs = [
                    pool.submit(held_out, world, count, rows, share=0.3, trials=TRIALS),
                    pool.submit(held_out, world, count, rows, share=0.5, trials=36),
                    pool.submit(crossed, world, count, rows),
                ]
                cells += [f"{100 * found.result().found:.0f} %" for found in designs]
            lines.append(f"| {scores} | {rows} | {' | '.join(cells)} |")
    return "\n".join(
        [
            f"### Two halves that judge each other: what they find ({count} searches a cell)\n",
            "So often `better` is said, and what is recommended is better. At equal tokens: 24 trials and 30 % held "
            "out; 36 trials and 50 % held out; 12 trials on each half, with three finalists of each. The best setting "
            "is worth 5 or 10 points.\n",
            "| scores | rows | 5 points: 30 % held out | 50 % | halves | 10 points: 30 % | 50 % | halves |",
            "|---|---|" + "---|" * 6,
            *lines,
        ]
    )


def rows_to_search(pool: Executor, share: float) -> str:
    """What a search of so many rows leaves behind, at equal tokens: more rows leave fewer trials."""
    count = max(40, round(400 * share))
    lines = []
    for scores in ("continuous", "0/1", "skewed"):
        for budget in (40, 100):
            cells = []
            for rows in (50, 100, 200, 400):
                trials = budget_trials(budget, rows)
                if trials < FINALISTS:
                    cells.append("–")
                    continue
                world = Settings(scores, rows, "hill", 0.05)  # type: ignore[arg-type]
                worth = 100 * pool.submit(_worth_of_winner, world, count, trials).result()
                cells.append(f"{worth.mean():.2f} ± {worth.std() / np.sqrt(count):.2f} ({trials})")
            lines.append(f"| {scores} | {budget} | {' | '.join(cells)} |")
    return "\n".join(
        [
            f"### How many rows to search, at equal tokens ({count} searches a cell, ± one standard error)\n",
            "What the winner is worth in points; the best setting is worth 5. The tokens are those of 40 or 100 trials "
            "on 100 rows with three finalists; in brackets the trials that they pay for. Nothing is pruned.\n",
            "| scores | trials on 100 rows | 50 rows | 100 | 200 | 400 |",
            "|---|---|---|---|---|---|",
            *lines,
        ]
    )


def budget_trials(budget: int, rows: int) -> int:
    """How many trials on so many rows take the tokens of `budget` trials on 100; finalists and baseline come on top."""
    again = (FINALISTS + 1) * FRESH
    return (budget + again) * 100 // rows - again


def _worth_of_winner(world: Settings, count: int, trials: int) -> Floats:
    found, chunk = [], 40
    for seed in range(0, count, chunk):
        searches = Searches.of(world, min(chunk, count - seed), seed)
        found.append(search(searches, np.arange(world.rows), trials, searches.scores(None)).worth)
    return np.concatenate(found)


CROSSED_SECTIONS = (crossed_errors, crossed_power, rows_to_search)
