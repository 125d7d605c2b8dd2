"""Samples how sequences go on from the scores that are stored for them; all token by token rows in one call."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from llmsearch_optuna.engine.cache.prefix_cache import PrefixCache
from llmsearch_optuna.engine.cache.prefix_tree import Node
from llmsearch_optuna.engine.cache.score_arena import candidates_of, listed, states_of
from llmsearch_optuna.engine.model_runner import ModelRunner
from llmsearch_optuna.engine.out_of_memory import MemoryReclaimer, NoRoomError
from llmsearch_optuna.engine.sampling.candidates import Candidates
from llmsearch_optuna.engine.sampling.device_sampler import DeviceRows, can_pick, draw_whole, pick_listed
from llmsearch_optuna.engine.sampling.draw import UNDECIDED
from llmsearch_optuna.engine.sampling.numbers_only import not_numbers
from llmsearch_optuna.engine.sampling.sampler import pick, pick_from_logits
from llmsearch_optuna.engine.sampling.settings import NARROW, SamplingSettings, settings_of_rows
from llmsearch_optuna.engine.sequence import BeamSequence, NextBeams, RunningSequence, TokenSequence
from llmsearch_optuna.engine.stats import EngineStats
from llmsearch_optuna.errors import DecodingError

NOT_NUMBERS = -2
"""Stands for the token of a row whose logits are NaN or infinite."""


class Sampled(NamedTuple):
    """How one sequence goes on.

    Attributes:
        sequence: The sequence.
        outcome: Its next token, its next beams, or the error where its logits do not even fit alone or are no numbers.
        logprob: The log-probability of its next token under the model; 0 where its request does not ask for it.
    """

    sequence: RunningSequence
    outcome: int | NextBeams | NoRoomError | DecodingError
    logprob: float = 0.0


class SequenceSampler:
    """Samples for sequences that are ready; no sequence moves.

    Args:
        runner: Computes all logits where the largest ones do not decide.
        cache: Gives memory back where logits do not fit.
        reclaimer: Repeats what runs out of memory.
        stats: Counts how often all logits were needed.
    """

    def __init__(self, runner: ModelRunner, cache: PrefixCache, reclaimer: MemoryReclaimer, stats: EngineStats) -> None:
        self._runner = runner
        self._cache = cache
        self._reclaimer = reclaimer
        self._stats = stats

    def sample(self, sequences: Sequence[RunningSequence]) -> list[Sampled]:
        """Return how each of these sequences goes on, those with beams last."""
        tokens = self._sample_tokens([sequence for sequence in sequences if isinstance(sequence, TokenSequence)])
        beams = self._sample_beams([sequence for sequence in sequences if isinstance(sequence, BeamSequence)])
        return [*tokens, *beams]

    def _sample_tokens(self, sequences: Sequence[TokenSequence]) -> list[Sampled]:
        """One token for each, in one call, or in parts where they do not fit together."""
        if not sequences:
            return []
        try:
            tokens, lookups, logprobs = self._reclaimer.retry(
                lambda: self._pick(sequences), self._cache.evict_host_blocks
            )
        except NoRoomError as error:
            if len(sequences) == 1:
                return [Sampled(sequences[0], error)]
            half = len(sequences) // 2
            return [*self._sample_tokens(sequences[:half]), *self._sample_tokens(sequences[half:])]
        self._stats.lookups += lookups
        return [
            Sampled(sequence, self._not_numbers(sequence) if token == NOT_NUMBERS else token, logprob)
            for sequence, token, logprob in zip(sequences, tokens.tolist(), logprobs.tolist(), strict=True)
        ]

    def _pick(self, sequences: Sequence[TokenSequence]) -> tuple[NDArray[np.int64], int, NDArray[np.float64]]:
        """The next token of each sequence, how many of them needed all logits, and the tokens' log-probabilities."""
        tokens = np.full(len(sequences), UNDECIDED, dtype=np.int64)
        settings = settings_of_rows(sequences)
        lookups = self._pick_on_device(tokens, sequences, settings) if self._runner.samples_on_device else 0
        for width in (NARROW, None):
            places = [
                i
                for i in np.flatnonzero(tokens == UNDECIDED).tolist()
                if not settings[i].needs_full_logits and (width is None or settings[i].width <= width)
            ]
            if places:
                self._pick_listed(tokens, sequences, places, width)
        undecided = np.flatnonzero(tokens == UNDECIDED).tolist()
        if undecided:
            self._pick_from_logits(tokens, sequences, undecided)
        return tokens, lookups + len(undecided), self._logprobs(tokens, sequences)

    @torch.inference_mode()
    def _logprobs(self, tokens: NDArray[np.int64], sequences: Sequence[TokenSequence]) -> NDArray[np.float64]:
        """The log-probability of each token under the model, ``[sequences]``; 0 where it is not asked for."""
        found = np.zeros(len(sequences))
        asked = [i for i, s in enumerate(sequences) if s.request.logprobs and tokens[i] != NOT_NUMBERS]
        scores = [score for i in asked if (score := sequences[i].node.scores) is not None]
        if not scores:
            return found
        values, ids, totals = listed(scores)
        picked = torch.as_tensor(tokens[asked], device=values.device)
        is_picked = ids == picked[:, None]
        logits = torch.where(is_picked, values, 0.0).sum(dim=1)
        if unlisted := torch.nonzero(~is_picked.any(dim=1)).flatten().tolist():
            rows = self._runner.logits(states_of([scores[k] for k in unlisted]))
            logits[unlisted] = rows.gather(1, picked[unlisted, None].to(rows.device)).flatten().to(logits.device)
        found[asked] = (logits.double() - totals.double()).cpu().numpy()
        return found

    def _pick_listed(
        self, tokens: NDArray[np.int64], sequences: Sequence[TokenSequence], places: list[int], width: int | None
    ) -> None:
        """Fill in the tokens that the largest ``width`` logits decide."""
        candidates = self._candidates([sequences[i].node for i in places], width)
        finite = np.isfinite(candidates.log_total)
        if not finite.all():
            places = _finite_places(tokens, places, finite)
            candidates = self._candidates([sequences[i].node for i in places], width) if places else candidates
        if places:
            tokens[places] = pick(candidates, [sequences[i] for i in places])

    def _pick_from_logits(
        self, tokens: NDArray[np.int64], sequences: Sequence[TokenSequence], places: list[int]
    ) -> None:
        """Fill in the tokens that only all logits decide."""
        logits = self._logits([sequences[i].node for i in places])
        finite = np.isfinite(logits.max(axis=1))
        if not finite.all():
            places, logits = _finite_places(tokens, places, finite), logits[finite]
        if places:
            tokens[places] = pick_from_logits(logits, [sequences[i] for i in places])

    @torch.inference_mode()
    def _pick_on_device(
        self, tokens: NDArray[np.int64], sequences: Sequence[TokenSequence], settings: Sequence[SamplingSettings]
    ) -> int:
        """Fill in the tokens that can be picked where the scores are; returns how many needed all logits."""
        able = {id(row): row for row in settings}
        able = {key: row for key, row in able.items() if can_pick(row)}
        places = [i for i, row in enumerate(settings) if id(row) in able]
        scores = [found for i in places if (found := sequences[i].node.scores) is not None]
        if not scores:
            return 0
        values, ids, totals = listed(scores)
        rows = DeviceRows.of([sequences[i] for i in places], values.device)
        picked = pick_listed(values, ids, totals, self._runner.vocab_size, rows)
        whole = [k for k, i in enumerate(places) if settings[i].sampled and not settings[i].is_truncated]
        if whole:
            index = torch.tensor(whole, device=values.device)
            logits = self._runner.logits(states_of([scores[k] for k in whole]))
            picked[index] = draw_whole(logits, rows.take(index))
        tokens[places] = torch.where(totals.isfinite(), picked, NOT_NUMBERS).cpu().numpy()
        return len(whole)

    def _sample_beams(self, sequences: Sequence[BeamSequence]) -> list[Sampled]:
        """The next beams of each; what the largest logits decide of any of them is read at once."""
        sampled: dict[BeamSequence, Sampled] = {}
        for width in (NARROW, None):
            pending = [sequence for sequence in sequences if sequence not in sampled]
            sampled |= self._beams_from_listed(pending, width)
        for sequence in sequences:
            if sequence not in sampled:
                sampled[sequence] = self._beams_from_logits(sequence)
        return [sampled[sequence] for sequence in sequences]

    def _beams_from_listed(self, sequences: Sequence[BeamSequence], width: int | None) -> dict[BeamSequence, Sampled]:
        """The next beams of those that the largest ``width`` logits decide, or whose logits are no numbers."""
        if not sequences:
            return {}
        nodes = [node for sequence in sequences for node in sequence.frontier]
        try:
            found = self._reclaimer.retry(lambda: self._candidates(nodes, width), self._cache.evict_host_blocks)
        except NoRoomError as error:
            if len(sequences) == 1:
                return {sequences[0]: Sampled(sequences[0], error)}
            half = len(sequences) // 2
            parts = (self._beams_from_listed(part, width) for part in (sequences[:half], sequences[half:]))
            return {sequence: item for part in parts for sequence, item in part.items()}
        sampled, first = {}, 0
        for sequence in sequences:
            rows = slice(first, first + len(sequence.frontier))
            first = rows.stop
            if not np.isfinite(found.log_total[rows]).all():
                sampled[sequence] = Sampled(sequence, self._not_numbers(sequence))
                continue
            own = Candidates(found.values[rows], found.ids[rows], found.log_total[rows], found.vocab_size)
            try:
                beams = self._reclaimer.retry(partial(sequence.next_beams, own), self._cache.evict_host_blocks)
            except NoRoomError as error:
                sampled[sequence] = Sampled(sequence, error)
                continue
            if beams is not None:
                sampled[sequence] = Sampled(sequence, beams)
        return sampled

    def _beams_from_logits(self, sequence: BeamSequence) -> Sampled:
        try:
            beams = self._reclaimer.retry(
                lambda: sequence.next_beams_of_all(self._logits(sequence.frontier)), self._cache.evict_host_blocks
            )
        except NoRoomError as error:
            return Sampled(sequence, error)
        self._stats.lookups += 1
        return Sampled(sequence, beams)

    def _not_numbers(self, sequence: RunningSequence) -> DecodingError:
        return not_numbers(sequence.frontier[0].depth, self._runner.model.dtype)

    def _candidates(self, nodes: Sequence[Node], width: int | None) -> Candidates:
        scores = [node.scores for node in nodes if node.scores is not None]
        return candidates_of(scores, self._runner.vocab_size, width)

    def _logits(self, nodes: Sequence[Node]) -> NDArray[np.float32]:
        """All logits of these nodes, ``[nodes, vocab]``; in parts where they do not fit together.

        Raises:
            NoRoomError: Those of one node do not fit, and nothing is left to evict for them.
        """
        scores = [node.scores for node in nodes if node.scores is not None]
        try:
            return self._reclaimer.retry(lambda: self._runner.all_logits(scores), self._cache.evict_blocks)
        except NoRoomError:
            if len(nodes) == 1:
                raise
        half = len(nodes) // 2
        return np.concatenate([self._logits(nodes[:half]), self._logits(nodes[half:])])


def _finite_places(tokens: NDArray[np.int64], places: list[int], finite: NDArray[np.bool_]) -> list[int]:
    """The places whose logits are numbers; the others are marked in the tokens."""
    tokens[[i for i, is_finite in zip(places, finite, strict=True) if not is_finite]] = NOT_NUMBERS
    return [i for i, is_finite in zip(places, finite, strict=True) if is_finite]
