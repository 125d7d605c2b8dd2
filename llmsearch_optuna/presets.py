"""Ready-made spaces: call one with ``max_new_tokens`` and hand it to ``search``.

Each says where its ranges come from. Further keyword arguments are fixed values of every branch, such as
``eos_token_id=[...]`` or ``stop=["\\n\\n"]``.
"""

from __future__ import annotations

from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from llmsearch_optuna.space.space import BranchedSpace, Space

__all__ = ["arena", "beam", "demo", "greedy", "sampling", "wide"]


def greedy(max_new_tokens: int | BaseDistribution, **fixed: Any) -> Space:
    """Search what greedy decoding leaves to choose: penalties on what was said before.

    ``repetition_penalty`` up to 1.3 around the 1.2 of Keskar et al. 2019 (https://arxiv.org/abs/1909.05858);
    ``no_repeat_ngram_size`` as in Paulus et al. 2017 (https://arxiv.org/abs/1705.04304), who use 3.
    """
    return Space.of(_branch(max_new_tokens, fixed, _GREEDY))


def sampling(max_new_tokens: int | BaseDistribution, **fixed: Any) -> Space:
    """Search the usual knobs of sampling: temperature, top_p, top_k and repetition_penalty.

    ``top_p``: Holtzman et al. 2019 (https://arxiv.org/abs/1904.09751); ``top_k``: Fan et al. 2018
    (https://arxiv.org/abs/1805.04833), logarithmic from 1 (greedy) to 100; temperatures from nearly greedy to 1.5.
    """
    return Space.of(_branch(max_new_tokens, fixed, _SAMPLING))


def beam(max_new_tokens: int | BaseDistribution, **fixed: Any) -> Space:
    """Search beam search: width, length penalty, when to stop, and repeated n-grams.

    Widths 2 to 6: wider beams rarely help and may hurt (Koehn and Knowles 2017, https://arxiv.org/abs/1706.03872).
    ``length_penalty`` in Hugging Face's sense (the score is divided by length to this power; above 0 favours long
    texts), around the 0.6 to 1.0 of Wu et al. 2016 (https://arxiv.org/abs/1609.08144).
    """
    return Space.of(_branch(max_new_tokens, fixed, _BEAM))


def wide(max_new_tokens: int | BaseDistribution, **fixed: Any) -> Space:
    """Search greedy, beam search, and sampling with nearly every knob that transformers has; give it many trials.

    Beside the sources of ``greedy``, ``sampling`` and ``beam``: ``min_p`` from Nguyen et al. 2024
    (https://arxiv.org/abs/2407.01082), ``typical_p`` from Meister et al. 2022 (https://arxiv.org/abs/2202.00666),
    ``epsilon_cutoff`` from Hewitt et al. 2022 (https://arxiv.org/abs/2210.15191).
    """
    further = {
        "min_p": FloatDistribution(0.0, 0.3),
        "typical_p": FloatDistribution(0.2, 1.0),
        "epsilon_cutoff": FloatDistribution(1e-5, 1e-2, log=True),
        "no_repeat_ngram_size": IntDistribution(0, 4),
    }
    return Space.of([_branch(max_new_tokens, fixed, own) for own in (_GREEDY, {**_SAMPLING, **further}, _BEAM)])


def demo(max_new_tokens: int | BaseDistribution = 40, **fixed: Any) -> Space:
    """Search greedy decoding, sampling and beam search on a small model: the space of ``llmsearch-optuna demo``.

    Small models gain from beams and lose from sampling: SmolLM2-135M scores rouge1 0.22 greedy, 0.19 sampled and 0.29
    with 3 beams on 32 rows of DialogSum, and 0.23, 0.22 and 0.25 on 30 of the bundled dialogues (measured for this
    project; temperature 0.7, top_p 0.9).
    """
    branches: list[dict[str, Any]] = [
        {"do_sample": False, "repetition_penalty": FloatDistribution(1.0, 1.3)},
        {
            "do_sample": True,
            "temperature": FloatDistribution(0.1, 1.2),
            "top_p": FloatDistribution(0.5, 1.0),
            "top_k": CategoricalDistribution([0, 20, 50]),
        },
        {
            "do_sample": False,
            "num_beams": IntDistribution(2, 5),
            "length_penalty": FloatDistribution(-1.0, 2.0),
            "no_repeat_ngram_size": CategoricalDistribution([0, 3]),
        },
    ]
    return Space.of([_branch(max_new_tokens, fixed, own) for own in branches])


def arena(max_new_tokens: int | BaseDistribution, **fixed: Any) -> Space:
    """Try the presets that people preferred in the Preset Arena, as they are; eleven points, one a branch.

    A blind vote held by text-generation-webui in 2023
    (https://github.com/oobabooga/oobabooga.github.io/blob/main/arena/results.md; values from its ``presets`` folder,
    whose cutoffs are in units of 1e-4 and whose absent ``top_k`` is off). Its winner by contrastive search is left
    out: that strategy is no longer in transformers' core. Use it with ``sampler="grid"``.
    """
    made = [_branch(max_new_tokens, fixed, {"do_sample": True, **own}) for own in _ARENA.values()]
    return BranchedSpace(made, labels=list(_ARENA))


def _branch(max_new_tokens: int | BaseDistribution, fixed: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """A preset's own values under the user's: what the user fixes is not searched."""
    return {"max_new_tokens": max_new_tokens, **fixed, **own, **fixed}


_GREEDY: dict[str, Any] = {
    "do_sample": False,
    "num_beams": 1,
    "repetition_penalty": FloatDistribution(1.0, 1.3),
    "no_repeat_ngram_size": IntDistribution(0, 4),
}
_SAMPLING: dict[str, Any] = {
    "do_sample": True,
    "num_beams": 1,
    "temperature": FloatDistribution(0.1, 1.5),
    "top_p": FloatDistribution(0.1, 1.0),
    "top_k": IntDistribution(1, 100, log=True),
    "repetition_penalty": FloatDistribution(1.0, 1.3),
}
_BEAM: dict[str, Any] = {
    "do_sample": False,
    "num_beams": IntDistribution(2, 6),
    "length_penalty": FloatDistribution(-1.0, 2.0),
    "early_stopping": CategoricalDistribution([True, False]),
    "no_repeat_ngram_size": IntDistribution(0, 4),
}
_ARENA: dict[str, dict[str, Any]] = {
    "divine_intellect": {
        "temperature": 1.31,
        "top_p": 0.14,
        "top_k": 49,
        "top_a": 0.52,
        "epsilon_cutoff": 1.49e-4,
        "eta_cutoff": 1.042e-3,
        "repetition_penalty": 1.17,
    },
    "big_o": {
        "temperature": 0.87,
        "top_p": 0.99,
        "top_k": 85,
        "typical_p": 0.68,
        "tfs": 0.68,
        "repetition_penalty": 1.01,
    },
    "simple_1": {"temperature": 0.7, "top_p": 0.9, "top_k": 20, "repetition_penalty": 1.15},
    "space_alien": {"temperature": 1.31, "top_p": 0.29, "top_k": 72, "repetition_penalty": 1.09},
    "starchat": {"temperature": 0.2, "top_p": 0.95, "top_k": 50},
    "titanic": {
        "temperature": 1.01,
        "top_p": 0.21,
        "top_k": 91,
        "top_a": 0.75,
        "eta_cutoff": 1.078e-3,
        "repetition_penalty": 1.21,
        "encoder_repetition_penalty": 1.07,
    },
    "tfs_with_top_a": {"temperature": 0.7, "top_k": 0, "tfs": 0.95, "top_a": 0.2, "repetition_penalty": 1.15},
    "asterism": {
        "temperature": 1.68,
        "top_p": 0.17,
        "top_k": 77,
        "tfs": 0.97,
        "top_a": 0.42,
        "repetition_penalty": 1.02,
    },
    "midnight_enigma": {"temperature": 0.98, "top_p": 0.37, "top_k": 100, "repetition_penalty": 1.18},
    "yara": {"temperature": 0.82, "top_p": 0.21, "top_k": 72, "repetition_penalty": 1.19},
    "shortwave": {"temperature": 1.53, "top_p": 0.64, "top_k": 33, "top_a": 0.04, "repetition_penalty": 1.07},
}
