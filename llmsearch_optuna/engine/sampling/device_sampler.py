"""Picks the next token of many rows on the device where their scores are, each under its own parameters.

Penalties and bans, temperature, top_k, top_p, min_p and row-keyed noise, greedy and sampling; one number a row comes
back. What it decides is what `sampler.pick` and `sampler.pick_from_logits` decide on the host, by the same proof, in
float64; other rules, and rows that a list of candidates cannot prove, are left to them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from llmsearch_optuna.engine.sampling.device_penalties import DevicePenalties, can_process
from llmsearch_optuna.engine.sampling.draw import UNDECIDED
from llmsearch_optuna.engine.sampling.gumbel import MAX_GUMBEL
from llmsearch_optuna.engine.sampling.sampler import TOTAL_TOLERANCE, SamplerRow
from llmsearch_optuna.engine.sampling.settings import SamplingSettings, settings_of_rows
from llmsearch_optuna.engine.sampling.truncation import ROUNDING

WHOLE_BYTES = 2**28
"""What the noise of whole vocabularies may take at once."""


def can_pick(settings: SamplingSettings) -> bool:
    """Whether these settings ask for nothing but what is done here."""
    if settings.needs_full_logits or not can_process(settings):
        return False
    others = settings.has_own or settings.has_mirostat or settings.has_shape or settings.epsilon > 0
    return not settings.sampled or not (others or not np.isnan(settings.top_h))


@dataclass(frozen=True, slots=True)
class DeviceRows:
    """What picking needs to know of some rows, on the device; all ``[rows]``.

    Attributes:
        sampled: Whether noise is added.
        truncated: Whether top_k, top_p or min_p may exclude tokens.
        temperature, top_p, min_p: float64, neutral where they are off.
        top_k: 0 where it is off.
        streams: The state of each row's noise at its position.
        penalties: What changes their scores before anything else; None where nothing does.
        asked: What any of the rows asks for; launching what none of them does costs more than running it.
    """

    sampled: torch.Tensor
    truncated: torch.Tensor
    temperature: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor
    min_p: torch.Tensor
    streams: torch.Tensor
    penalties: DevicePenalties | None
    asked: frozenset[str]

    @classmethod
    def of(cls, rows: Sequence[SamplerRow], device: torch.device) -> DeviceRows:
        """Gather it from the rows; two copies go to the device."""
        settings = settings_of_rows(rows)
        numbers = np.array([(s.temperature, s.top_p, s.min_p) for s in settings]).T.copy()
        seeds = np.array([s.seed for s in settings], dtype=np.uint64).view(np.int64)
        keys = np.array([row.row_key for row in rows], dtype=np.uint64).view(np.int64)
        whole = np.array(
            [(s.sampled, s.is_truncated, s.top_k, row.step) for s, row in zip(settings, rows, strict=True)]
        )
        integers = np.concatenate((whole.T.astype(np.int64), seeds[None], keys[None]))
        temperature, top_p, min_p = torch.from_numpy(numbers).to(device)
        sampled, truncated, top_k, steps, seed, key = torch.from_numpy(integers).to(device)
        asked = frozenset(
            name
            for name, neutral in (("sampled", False), ("top_k", 0), ("top_p", 1.0), ("min_p", 0.0))
            if any(getattr(row, name) != neutral for row in settings)
        )
        streams = _streams(seed, key, steps)
        penalties = DevicePenalties.of(rows, settings, device)
        return cls(sampled.bool(), truncated.bool(), temperature, top_k, top_p, min_p, streams, penalties, asked)

    def take(self, places: torch.Tensor) -> DeviceRows:
        """Some of them."""
        others = ("penalties", "asked")
        tensors: dict[str, Any] = {name: getattr(self, name)[places] for name in self.__slots__ if name not in others}
        return replace(self, penalties=None if self.penalties is None else self.penalties.take(places), **tensors)


@torch.inference_mode()
def pick_listed(
    values: torch.Tensor, ids: torch.Tensor, totals: torch.Tensor, vocab_size: int, rows: DeviceRows
) -> torch.Tensor:
    """The next token of each row, ``[rows]``, or -1 where its largest logits cannot prove it.

    Args:
        values, ids: The largest logits, descending, and their tokens, ``[rows, top]``.
        totals: Log-sum-exp over the whole vocabulary, ``[rows]``.
        vocab_size: How many logits there are.
        rows: How each row is picked.
    """
    scores, lowered = values, None
    if rows.penalties is None:
        largest = _largest(values, ids.long(), vocab_size)
    else:
        scores, lowered = rows.penalties.apply(values, ids)
        largest = _largest_penalised(scores, ids.long(), values[:, -1], vocab_size)
    if "sampled" not in rows.asked:
        return largest
    drawn = _draw(_Listed(values, ids.long(), totals, scores, lowered), vocab_size, rows)
    return torch.where(rows.sampled, drawn, largest)


@torch.inference_mode()
def draw_whole(logits: torch.Tensor, rows: DeviceRows) -> torch.Tensor:
    """Sample rows without truncation from all their logits ``[rows, vocab]``."""
    size, device = logits.shape[1], logits.device
    together = max(1, WHOLE_BYTES // (size * (8 if rows.penalties is None else 32)))  # counting tokens takes more
    ids = torch.arange(size, device=device)[None]
    drawn = []
    for part in torch.arange(len(logits), device=device).split(together):
        scores = logits[part].float()
        if rows.penalties is not None:
            scores, _ = rows.penalties.take(part).apply(scores, ids.expand(len(part), size))
        scores = scores / rows.temperature[part, None].float()
        scores = torch.where(scores.isnan(), -torch.inf, scores)
        top = scores.amax(dim=1, keepdim=True)
        finite = torch.isfinite(top)
        # an infinite score outweighs all that is finite (float16 models overflow)
        infinite = torch.where(scores == torch.inf, 0.0, -torch.inf)
        scores = torch.where(finite, scores, infinite)
        top = torch.where(finite, top, 0.0)
        noisy = _gumbel(_bits(rows.streams[part], ids)) + (scores.double() - top.double())
        drawn.append(noisy.argmax(dim=1))
    return torch.cat(drawn)


def _largest(values: torch.Tensor, ids: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """The first token among the largest logits, as ``argmax`` over all logits finds it."""
    equal = values == values[:, :1]
    first = torch.where(equal, ids, vocab_size).amin(dim=1)
    complete = ~equal.all(dim=1) | (values.shape[1] == vocab_size)
    return torch.where(complete, first, UNDECIDED)


def _largest_penalised(scores: torch.Tensor, ids: torch.Tensor, last: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """The first of the largest scores, where no token that is not listed (none has more than ``last``) can reach it."""
    top = scores.amax(dim=1)
    first = torch.where(scores == top[:, None], ids, vocab_size).amin(dim=1)
    is_last = (last == -torch.inf) | (scores.shape[1] == vocab_size)
    decided = (top > torch.where(is_last, -torch.inf, last)) & (top > -torch.inf)
    return torch.where(decided, first, UNDECIDED)


@dataclass(frozen=True, slots=True)
class _Listed:
    """The largest logits of some rows, ``[rows, top]``.

    Attributes:
        values, ids, totals: As they are stored.
        scores: The values after the penalties.
        lowered: How many tokens that are not listed may have been lowered, ``[rows]``; None where none was.
    """

    values: torch.Tensor
    ids: torch.Tensor
    totals: torch.Tensor
    scores: torch.Tensor
    lowered: torch.Tensor | None


def _draw(largest: _Listed, vocab_size: int, rows: DeviceRows) -> torch.Tensor:
    """Sample from the largest logits; the steps and the proof are those of `sampler`, `truncation` and `draw`."""
    values, ids, totals = largest.values, largest.ids, largest.totals
    width = values.shape[1]
    raw = values.double()
    first, last = raw[:, 0], raw[:, -1]
    total = (totals.double() - first).exp()
    listed = (raw - first[:, None]).exp().sum(dim=1)
    tail_low = (total * (1 - TOTAL_TOLERANCE) - listed).clamp(min=0.0)
    tail_high = torch.maximum(total * (1 + TOTAL_TOLERANCE) - listed, total * TOTAL_TOLERANCE)
    if largest.lowered is not None:
        tail_low = (tail_low - largest.lowered * (last - first).exp()).clamp(min=0.0)
    nothing = (last == -torch.inf) | (width == vocab_size)
    outside = torch.where(nothing, 0, vocab_size - width).double()
    tail_low, tail_high = (torch.where(nothing, 0.0, tail) for tail in (tail_low, tail_high))

    temperature = rows.temperature.float()[:, None]
    bound = torch.where(nothing, -torch.inf, (values[:, -1:] / temperature)[:, 0].double())
    divided = largest.scores / temperature
    overflown = ~(divided.amax(dim=1) < torch.inf)
    scores, ids = _in_order(torch.where(overflown[:, None], 0.0, divided), ids)
    scores = scores.double()
    low, high = _tails(
        1.0 / rows.temperature, first, torch.where(nothing, -torch.inf, last), outside, tail_low, tail_high
    )

    top = scores[:, 0]
    shift = torch.where(torch.isfinite(top), top, 0.0)
    tail_low, tail_high = (low - shift).exp(), (high - shift).exp()
    ranked = (scores > bound[:, None]).sum(dim=1)
    most = (scores > -torch.inf).sum(dim=1)
    sure = most.clone()
    is_open = high > -torch.inf
    place = torch.arange(width, device=values.device)[None]

    if "top_k" in rows.asked:
        active = (rows.top_k > 0) & (rows.top_k < vocab_size)
        kth = scores.gather(1, (rows.top_k - 1).clamp(0, width - 1)[:, None])
        kept = (scores >= kth).sum(dim=1)
        exact = active & (rows.top_k <= ranked)
        uncertain = active & ~exact & is_open
        sure = torch.where(exact, torch.minimum(sure, kept), sure)
        most = torch.where(exact, torch.minimum(most, kept), most)
        sure = torch.where(uncertain, torch.minimum(sure, ranked), sure)
        is_open = is_open & ~exact
        tail_low = torch.where(active, 0.0, tail_low)
    if "top_p" in rows.asked:
        active = rows.top_p < 1.0
        each = (scores - top[:, None]).exp()
        mass = each.cumsum(dim=1)
        before = torch.cat((torch.zeros_like(mass[:, :1]), mass[:, :-1]), dim=1)
        sum_low = torch.where(sure > 0, _at(mass, sure - 1), 0.0)
        sum_high = _at(mass, most - 1)
        sum_low = torch.where(is_open, (sum_low + tail_low) * (1 - ROUNDING), sum_low)
        sum_high = torch.where(is_open, (sum_high + tail_high) * (1 + ROUNDING), sum_high)
        front = place == 0
        is_ranked = (ranked > 0) | ~is_open
        surely = ((before < (rows.top_p * sum_low)[:, None]) | (front & is_ranked[:, None])).sum(dim=1)
        possibly = ((before < (rows.top_p * sum_high)[:, None]) | front).sum(dim=1)
        surely = torch.where(is_open, torch.minimum(surely, ranked), surely)
        held = torch.where(ranked > 0, _at(mass, ranked - 1), 0.0)
        sure = torch.where(active, torch.minimum(sure, surely), sure)
        most = torch.where(active, torch.minimum(most, possibly), most)
        is_open = is_open & (~active | (held < rows.top_p * sum_high))
    if "min_p" in rows.asked:
        active = rows.min_p > 0
        below = rows.min_p.log()
        above = torch.maximum(top, torch.where(is_open, bound, top)) + below
        sure = torch.where(active, torch.minimum(sure, (scores >= above[:, None]).sum(dim=1)), sure)
        most = torch.where(active, torch.minimum(most, (scores >= (top + below)[:, None]).sum(dim=1)), most)
        is_open = is_open & (~active | (bound >= top + below))

    noisy = _gumbel(_bits(rows.streams, ids)) + (scores - top[:, None])
    noisy = torch.where(place < most[:, None], noisy, -torch.inf)
    best, winner = noisy.max(dim=1)
    token = ids.gather(1, winner[:, None])[:, 0]
    decided = (winner < sure) & (best > -torch.inf) & ~overflown
    # no token that is not listed can have noise enough to win; otherwise the host looks at their noise
    decided &= ~is_open | (best - (bound - top) > MAX_GUMBEL)
    return torch.where(decided, token, UNDECIDED)


def _tails(power: Any, first: Any, last: Any, outside: Any, low: Any, high: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Limits of log of the sum of exp(power * logit) outside the list; see `sampler._Prepared._tail_at`."""
    nothing = outside == 0
    largest = last - first
    count, log_low, log_high = outside.log(), low.log(), high.log()
    at_the_bound, all_equal = (power - 1) * largest, (1 - power) * count
    steep = power > 1
    upper = torch.where(steep, log_high + at_the_bound, power * log_high + all_equal)
    lower = torch.where(steep, power * log_low + all_equal, log_low + at_the_bound) + power * first
    upper = torch.minimum(upper, count + power * largest) + power * first
    upper = torch.where(nothing, -torch.inf, upper)
    lower = torch.where(nothing | (low == 0), -torch.inf, lower)
    return torch.minimum(lower, upper), upper


def _in_order(scores: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Descending scores; equal ones by descending id."""
    bits = (scores + 0.0).contiguous().view(torch.int32).long()  # -0.0 becomes 0.0
    keys = (torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits) << 32) | ids
    keys = keys.sort(dim=1, descending=True).values
    ordered = keys >> 32
    bits = torch.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered)
    return bits.to(torch.int32).view(torch.float32), keys & 0xFFFFFFFF


def _at(values: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    return values.gather(1, places.clamp(min=0)[:, None])[:, 0]


# ---- the noise of `gumbel`, in the same arithmetic -------------------------------------------------------------------


def _signed(number: int) -> int:
    number &= (1 << 64) - 1
    return number - (1 << 64) if number >> 63 else number


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_SEED_SALT = _signed(0xD1B54A32D192ED03)
_FIRST, _SECOND = _signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB)


def _streams(seeds: torch.Tensor, keys: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
    return _mix(_mix(_mix(seeds * _GOLDEN + _SEED_SALT) + keys) + (steps + 1) * _GOLDEN)


def _bits(streams: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    return _shifted(_mix((ids + 1) * _GOLDEN + streams[:, None]), 11) | 1


def _gumbel(bits: torch.Tensor) -> torch.Tensor:
    return -(-(bits.double() * 2.0**-53).log()).log()


def _mix(state: torch.Tensor) -> torch.Tensor:
    state = (state ^ _shifted(state, 30)) * _FIRST
    state = (state ^ _shifted(state, 27)) * _SECOND
    return state ^ _shifted(state, 31)


def _shifted(state: torch.Tensor, by: int) -> torch.Tensor:
    """To the right, with zeros (torch's own shift keeps the sign)."""
    return (state >> by) & ((1 << (64 - by)) - 1)
