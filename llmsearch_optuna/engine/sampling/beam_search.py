"""Beam search of one row as a state machine: which paths need logits now, and what follows from them.

The rules are Hugging Face's (``GenerationMixin._beam_search`` of transformers 5 for one unpadded row), to the token.
Whoever drives it computes logits however it likes, most often from lists of the best candidates. No model, no cache
and no batch may enter here.

Beam sampling follows Hugging Face's distribution with noise of our own. The candidates of all live beams are
drawn without replacement in proportion to the softmax of their accumulated, processed and warped log-probabilities: the
highest sums of that score and a Gumbel value, which is what ``torch.multinomial`` draws too. The value of token t on
the beam of rank b at step s is ``gumbel(generation_seed, row_key, s, b * vocab_size + t)``; it depends on nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.generation import logits_process as hf

from llmsearch_optuna.engine.sampling.candidates import Candidates
from llmsearch_optuna.engine.sampling.dry import Breakers
from llmsearch_optuna.engine.sampling.gumbel import gumbel
from llmsearch_optuna.engine.sampling.logits_processors import logits_processors_of
from llmsearch_optuna.engine.sampling.params import GenerationParams
from llmsearch_optuna.engine.sampling.reasoning import ReasoningSpan, ReasoningState
from llmsearch_optuna.engine.sampling.row_scores import RowScores
from llmsearch_optuna.engine.sampling.sampler import supports
from llmsearch_optuna.errors import DecodingError
from llmsearch_optuna.types import FinishReason

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Path = tuple[int, ...]
Stopper = Callable[[Path], FinishReason | None]

NO_HYPOTHESIS = -1e9
"""Hugging Face's score of a hypothesis that does not exist yet."""
DEAD = -1e8
"""Beams at or below this score are Hugging Face's placeholders (or impossible); they never win and are not kept."""

NARROW = 128
"""The best tokens of a beam nearly always prove a step; only when they do not is the whole list looked at."""

_NO_CONTEXT = torch.LongTensor(1, 0)


class _Hypothesis(NamedTuple):
    score: float
    path: Path
    reason: FinishReason


class _Scored(NamedTuple):
    """Processed scores of one beam's tokens: ids [K], scores [K], and what no other token's score exceeds."""

    ids: Ints
    scores: Floats
    bound: float


@dataclass(frozen=True, slots=True)
class Beams:
    """The state of a search. A step makes new ones and changes none, so one that fails half-way has not begun.

    Attributes:
        step: How many tokens every live path has.
        paths: The live beams, best first; distinct.
        scores: ``[beams]``, their accumulated log-probabilities.
        contexts: ``[beams, prompt + step]``, what precedes their next token.
        hypotheses: What has been finished, best first.
        finished: Whether no continuation can change the result any more.
    """

    step: int
    paths: tuple[Path, ...]
    scores: Floats
    contexts: Ints
    hypotheses: tuple[_Hypothesis, ...]
    finished: bool


@dataclass(frozen=True, slots=True)
class _BeamRow:
    """A beam as the processors see it; ``seen`` may name a token twice, which no processor minds."""

    context: Sequence[int]
    prompt_length: int
    seen: Ints
    dry_breakers: Breakers
    reasoning: ReasoningState | None = None


class BeamSearch:
    """The beams of one row and its finished hypotheses.

    Ask for `running`, compute the logits that follow these paths, and give what comes `after` them (or `after_full`) to
    `go_on`, until `finished`; then take the `result`. Only `go_on` changes anything, and it cannot fail.

    Args:
        params: With ``num_beams`` > 1; ``do_sample`` makes it beam sampling.
        prompt_token_ids: What precedes the generated tokens for processors: the prompt, or the decoder's start
            tokens of an encoder-decoder model.
        row_key: Keys the noise of beam sampling.
        stopper: Tells why a path is complete, beside an ending token or the length; None where nothing else stops.
        vocab_size: Number of logits.
        dry_breakers: The sequence breakers of DRY.
        reasoning: Between which markers the model thinks.

    Raises:
        DecodingError: A parameter is in force that only ``model.generate`` applies.
    """

    def __init__(
        self,
        params: GenerationParams,
        *,
        prompt_token_ids: Sequence[int],
        row_key: int,
        stopper: Stopper | None = None,
        vocab_size: int,
        dry_breakers: Breakers | None = None,
        reasoning: ReasoningSpan | None = None,
    ) -> None:
        reason = supports(params)
        if reason is not None:
            raise DecodingError(f"Beam search from logits cannot decode {dict(params)!r}: {reason}.")
        self._num_beams = int(params["num_beams"])
        self._sampling = _Sampling(params, row_key, vocab_size) if params.get("do_sample") else None
        self._eos = frozenset(params.eos_token_ids)
        self._max_new_tokens = params.max_new_tokens
        self._keep = max(2, 1 + len(params.eos_token_ids)) * self._num_beams
        self._length_penalty = float(params.get("length_penalty", 1.0))
        self._early_stopping = params.get("early_stopping", False)
        self._renormalize = bool(params.get("renormalize_logits"))
        self._stopper = stopper
        self._vocab_size = vocab_size
        self._dry_breakers: Breakers = {} if dry_breakers is None else dry_breakers
        self._reasoning = reasoning if "thinking_budget" in params else None
        self._processors = logits_processors_of(params)
        self._prompt_seen = np.unique(np.asarray(prompt_token_ids, dtype=np.int64))
        self._prompt_length = len(prompt_token_ids)
        self._beams = Beams(
            step=0,
            paths=((),),
            scores=np.zeros(1, dtype=np.float32),
            contexts=np.array([prompt_token_ids], dtype=np.int64),
            hypotheses=(),
            finished=False,
        )

    @property
    def running(self) -> tuple[Path, ...]:
        """The distinct paths of generated tokens whose next-token scores are needed now."""
        return () if self._beams.finished else self._beams.paths

    @property
    def finished(self) -> bool:
        """Whether no continuation can change the result any more."""
        return self._beams.finished

    @property
    def hypotheses(self) -> tuple[tuple[float, Path], ...]:
        """The finished hypotheses with their length-penalised scores, at most ``num_beams``, best first."""
        return tuple((hypothesis.score, hypothesis.path) for hypothesis in self._beams.hypotheses)

    def result(self) -> tuple[Path, FinishReason]:
        """The generated tokens of the best hypothesis, its ending token included, and why it ended.

        Raises:
            DecodingError: The processors left no token to any beam.
        """
        if not self._beams.hypotheses:
            raise DecodingError(
                f"No hypothesis was completed in {self._beams.step} steps: the parameters (bans, suppressed tokens, "
                "length_penalty) leave no possible continuation; relax them."
            )
        best = self._beams.hypotheses[0]
        return best.path, best.reason

    def go_on(self, beams: Beams) -> None:
        """Take the result of a step."""
        self._beams = beams

    def after(self, scores: Mapping[Path, Candidates]) -> Beams | None:
        """Where one step leads from the best candidates of every running path.

        Args:
            scores: For each running path its candidates as one row (``values [1, K]`` raw float32 logits in descending
                order, ``ids [1, K]``, ``log_total [1]``).

        Returns:
            None where the lists do not prove the step; then ask for what comes `after_full`.
        """
        if self._renormalize or (self._sampling is not None and self._sampling.needs_all_logits):
            return None
        if not self._processors and self._sampling is None:
            return self._after_plainly(scores)
        listed = max(scores[path].ids.shape[1] for path in self._beams.paths)
        places: Ints = np.zeros(self._vocab_size if self._processors else 0, dtype=np.int64)
        for width in (NARROW, listed) if listed > NARROW else (listed,):
            beams = [self._score(beam, scores[path], width, places) for beam, path in enumerate(self._beams.paths)]
            chosen = self._choose(beams)
            if chosen is not None:
                return chosen
        return None

    def after_full(self, logits: Mapping[Path, NDArray[np.float32]]) -> Beams:
        """Where one step leads from the full float32 logits ``[vocab_size]`` of every running path."""
        ids = np.arange(self._vocab_size)
        beams = []
        for beam, path in enumerate(self._beams.paths):
            row_scores = RowScores(_log_probs(logits[path], _log_sum_exp(logits[path])), None, None)
            for processor in self._processors:
                processor(row_scores, self._row(beam))
            beams.append(_Scored(ids, row_scores.scores, -math.inf))
        chosen = self._choose(beams)
        assert chosen is not None, "no token is outside these lists"
        return chosen

    def _score(self, beam: int, candidates: Candidates, width: int, places: Ints) -> _Scored:
        """Process the best ``width`` tokens of a beam; ``places [vocab_size]`` is 0 before and after."""
        ids = candidates.ids[0, :width].astype(np.int64)
        scores = _log_probs(candidates.values[0, :width], candidates.log_total[0])
        bound = -math.inf if len(ids) >= self._vocab_size else float(scores[-1])
        if not self._processors:
            return _Scored(ids, scores, bound)
        row_scores, row = RowScores(scores, ids, places), self._row(beam)
        for processor in self._processors:
            processor(row_scores, row)
        places[candidates.ids[0, :width]] = 0
        if row_scores.forced:
            places[:] = 0
            possible = ids >= 0
            return _Scored(ids[possible], scores[possible], -math.inf)
        return _Scored(ids, scores, math.inf if row_scores.raised and bound > -math.inf else bound)

    def _row(self, beam: int) -> _BeamRow:
        context = self._beams.contexts[beam]
        seen = np.concatenate((self._prompt_seen, context[self._prompt_length :]))
        reasoning = None
        if self._reasoning is not None:
            tokens = context.tolist()
            reasoning = self._reasoning.state(tokens[: self._prompt_length], tokens[self._prompt_length :])
        return _BeamRow(cast("Sequence[int]", context), self._prompt_length, seen, self._dry_breakers, reasoning)

    def _after_plainly(self, scores: Mapping[Path, Candidates]) -> Beams | None:
        """Without processors no beam can place more than its best `_keep` tokens, so the rest is never looked at."""
        rows = [scores[path] for path in self._beams.paths]
        widths = [min(self._keep, row.ids.shape[1]) for row in rows]
        if any(width < min(self._keep, self._vocab_size) for width in widths):
            return None
        totals = [
            _log_probs(row.values[0, :width], row.log_total[0]) + score
            for row, width, score in zip(rows, widths, self._beams.scores, strict=True)
        ]
        ids = np.concatenate([row.ids[0, :width] for row, width in zip(rows, widths, strict=True)])
        accumulated = np.concatenate(totals)
        beams = np.repeat(np.arange(len(rows)), widths)
        order = np.argsort(-accumulated, kind="stable")[: self._keep]
        return self._extended(beams[order], ids[order], accumulated[order])

    def _choose(self, beams: Sequence[_Scored]) -> Beams | None:
        """Place the best (or the drawn) candidates of all beams; None where the lists do not prove them."""
        before = self._beams.scores
        if self._sampling is not None:
            warped = self._sampling.warp(beams)
            if warped is None:
                return None
            beams = warped
        if self._renormalize:
            beams = [beam._replace(scores=_log_probs(beam.scores, _log_sum_exp(beam.scores))) for beam in beams]
        ids = np.concatenate([beam.ids for beam in beams])
        ranks = np.repeat(np.arange(len(beams)), [len(beam.ids) for beam in beams])
        accumulated = np.concatenate([beam.scores + score for beam, score in zip(beams, before, strict=True)])
        priority: NDArray[Any] = accumulated
        if self._sampling is not None:
            priority = accumulated + self._sampling.noise(self._beams.step, ranks, ids)
        best = _largest(np.where(accumulated > DEAD, priority, -np.inf), self._keep)
        if self._sampling is None:
            bound = max(float(np.float32(beam.bound) + score) for beam, score in zip(beams, before, strict=True))
            weakest = float(accumulated[best[-1]]) if len(best) == self._keep else -math.inf
            if bound > -math.inf and weakest <= bound:
                return None
        return self._extended(ranks[best], ids[best], accumulated[best])

    def _extended(self, ranks: Ints, ids: Ints, accumulated: Floats) -> Beams:
        """Sort the chosen candidates into finished hypotheses and the beams of the next step.

        Only the first `num_beams` may become hypotheses, in the order of choice; the others are there so that
        enough beams remain. Hugging Face's placeholders (score -1e9) are left out: they cannot win, and what they
        could do beyond that needs a step with fewer possible tokens than beams.
        """
        before = self._beams
        step = before.step + 1
        penalised = (accumulated / np.float32(step**self._length_penalty)).tolist()
        open_places: list[int] = []
        paths: list[Path] = []
        fresh: list[_Hypothesis] = []
        for place, (rank, token) in enumerate(zip(ranks.tolist(), ids.tolist(), strict=True)):
            path = (*before.paths[rank], token)
            reason = self._ending(path, token)
            if reason is None:
                open_places.append(place)
                paths.append(path)
            elif place < self._num_beams and penalised[place] > NO_HYPOTHESIS:
                fresh.append(_Hypothesis(penalised[place], path, reason))
        hypotheses = before.hypotheses
        if fresh:
            hypotheses = tuple(sorted([*hypotheses, *fresh], key=_by_score)[: self._num_beams])
        order = np.argsort(-accumulated[open_places], kind="stable")[: self._num_beams]
        kept = np.array(open_places, dtype=np.int64)[order]
        scores = accumulated[kept]
        return Beams(
            step=step,
            paths=tuple(paths[index] for index in order),
            scores=scores,
            contexts=np.concatenate((before.contexts[ranks[kept]], ids[kept, None]), axis=1),
            hypotheses=hypotheses,
            finished=not len(kept) or self._is_settled(step, float(scores[0]), hypotheses),
        )

    def _ending(self, path: Path, token: int) -> FinishReason | None:
        if token in self._eos:
            return "eos"
        reason = self._stopper(path) if self._stopper is not None else None
        if reason is None and len(path) >= self._max_new_tokens:
            return "length"
        return reason

    def _is_settled(self, step: int, best: float, hypotheses: Sequence[_Hypothesis]) -> bool:
        """Hugging Face's heuristic: can the best beam still beat the worst hypothesis, and is that of interest?"""
        full = len(hypotheses) == self._num_beams
        if full and self._early_stopping is True:
            return True
        hopeful = self._early_stopping == "never" and self._length_penalty > 0.0
        length = self._max_new_tokens if hopeful else step
        best_possible = float(np.float32(best) / np.float32(length**self._length_penalty))
        worst = hypotheses[-1].score if full else NO_HYPOTHESIS
        return not best_possible > worst


class _Sampling:
    """What beam sampling adds: Hugging Face's warpers, and noise."""

    def __init__(self, params: GenerationParams, row_key: int, vocab_size: int) -> None:
        self._seed = params.generation_seed
        self._row_key = row_key
        self._vocab_size = vocab_size
        self._minimal_keep = len(params.eos_token_ids) + 1 if params.eos_token_ids else 2
        self._temperature = np.float32(params.get("temperature", 1.0))
        self._first_top_k = 0 if "top_h" in params else int(params["top_k"])
        self._warpers = _warpers(params, self._minimal_keep)

    @property
    def needs_all_logits(self) -> bool:
        """Whether lists can never hold all possible tokens: only top-k, where it goes first, bounds their number."""
        return not self._first_top_k

    def noise(self, step: int, ranks: Ints, ids: Ints) -> NDArray[np.float64]:
        """Gumbel values ``[K]`` of the tokens ``ids [K]`` on the beams ``ranks [K]``."""
        values = gumbel(self._seed, [self._row_key], [step], (ranks * self._vocab_size + ids)[None, :])
        return values.reshape(-1)

    def warp(self, beams: Sequence[_Scored]) -> list[_Scored] | None:
        """The possible tokens of every beam with their warped scores; None where a list does not hold them all.

        Top-k is what makes lists enough: all later warpers see nothing but its survivors.
        """
        possible = []
        wanted = max(self._first_top_k, self._minimal_keep)
        for beam in beams:
            scores = beam.scores / self._temperature
            if not self._first_top_k:
                possible.append(beam._replace(scores=scores))
                continue
            size = min(wanted, len(scores))
            smallest = np.partition(scores, -size)[-size]
            if beam.bound > -math.inf:
                unseen = np.float32(beam.bound) / self._temperature
                if smallest <= unseen or size < wanted:
                    return None
            survivors = np.flatnonzero(scores >= smallest)
            possible.append(beam._replace(ids=beam.ids[survivors], scores=scores[survivors]))
        return self._warp_further(possible) if self._warpers else possible

    def _warp_further(self, supports: Sequence[_Scored]) -> list[_Scored]:
        width = max(len(support.ids) for support in supports)
        padded = torch.full((len(supports), width), -math.inf)
        for row, support in enumerate(supports):
            padded[row, : len(support.scores)] = torch.from_numpy(support.scores)
        for warper in self._warpers:
            padded = warper(_NO_CONTEXT, padded)
        warped = padded.numpy()
        return [support._replace(scores=warped[row, : len(support.scores)]) for row, support in enumerate(supports)]


def _warpers(params: Mapping[str, Any], keep: int) -> list[Callable[..., Any]]:
    """Hugging Face's warpers in its order, without temperature and, where nothing but that precedes it, top-k."""

    warpers: list[Callable[..., Any]] = []
    if "top_h" in params:
        warpers.append(hf.TopHLogitsWarper(top_h=params["top_h"]))
        if params["top_k"]:
            warpers.append(hf.TopKLogitsWarper(top_k=params["top_k"], min_tokens_to_keep=keep))
    if "top_p" in params:
        warpers.append(hf.TopPLogitsWarper(top_p=params["top_p"], min_tokens_to_keep=keep))
    if "min_p" in params:
        warpers.append(hf.MinPLogitsWarper(min_p=params["min_p"], min_tokens_to_keep=keep))
    if "typical_p" in params:
        warpers.append(hf.TypicalLogitsWarper(mass=params["typical_p"], min_tokens_to_keep=keep))
    if "epsilon_cutoff" in params:
        warpers.append(hf.EpsilonLogitsWarper(epsilon=params["epsilon_cutoff"], min_tokens_to_keep=keep))
    if "eta_cutoff" in params:
        warpers.append(hf.EtaLogitsWarper(epsilon=params["eta_cutoff"], min_tokens_to_keep=keep))
    return warpers


def _log_sum_exp(row: Floats) -> float:
    top = float(row.max())
    if top == -math.inf:
        return 0.0
    return top + math.log(float(np.exp(row.astype(np.float64) - top).sum()))


def _log_probs(logits: Floats, log_total: float) -> Floats:
    """Rounded once, so that lists and full rows give the same float32 scores."""
    return (logits - np.float64(log_total)).astype(np.float32)


def _largest(values: NDArray[Any], count: int) -> Ints:
    """Places of the largest finite values in descending order, the first place first among equals; `count` at most."""
    if len(values) > 4 * count:
        threshold = np.partition(values, -count)[-count]
        places = np.flatnonzero(values >= threshold)
    else:
        places = np.arange(len(values))
    order = places[np.argsort(-values[places], kind="stable")][:count]
    return order[values[order] > -np.inf]


def _by_score(hypothesis: _Hypothesis) -> float:
    return -hypothesis.score
