"""What a search would take, before it is begun: rows, tokens, time and memory, from a probe that stores nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from llmsearch_optuna.decoding.memory import bytes_in_use
from llmsearch_optuna.study.detecting import power_of
from llmsearch_optuna.study.forecasting import Forecast, make_forecast
from llmsearch_optuna.study.preparing import check_numbers, prepare
from llmsearch_optuna.study.probing import probe
from llmsearch_optuna.task import Direction

__all__ = ["Forecast", "forecast"]


def forecast(
    model: Any,
    dataset: Any,
    space: Any,
    tokenizer: Any = None,
    *,
    prompt: Any = None,
    reference: Any = None,
    metric: Any = None,
    direction: Direction | None = None,
    objectives: Sequence[str] = ("score",),
    baseline: Mapping[str, Any] | None = None,
    n_trials: int | None = None,
    sampler: Any = "tpe",
    pruner: Any = "paired",
    holdout: float = 0.3,
    folds: int | None = None,
    seed: int = 42,
    batch_size: int | Literal["auto"] = "auto",
    cache_budget: int | Literal["auto"] = "auto",
    trials_in_flight: int = 4,
    replicates: int = 1,
    holdout_replicates: int = 3,
    split: str | None = None,
    subset: str | None = None,
    limit: int | None = None,
    system: str | None = None,
    chat_template: bool | Mapping[str, Any] | None = None,
    postprocess: Callable[[str], str] | None = None,
    max_prompt_tokens: float | None = None,
    tokenizer_encode_args: Mapping[str, Any] | None = None,
    tokenizer_decode_args: Mapping[str, Any] | None = None,
    device: str | None = None,
    device_map: Any = None,
    dtype: Any = None,
    revision: str | None = None,
    adapter: str | Path | None = None,
    gguf_file: str | None = None,
    trust_remote_code: bool = False,
) -> Forecast:
    """Say what a search with these arguments would take, from a few rows of its first trials.

    These rows are decoded now; no study is made. An Engine that is given as the model remembers them, so a search
    that follows with it does not compute them again.

    Args:
        model: As for `search`, and so are all other arguments.
        dataset: See `search`.
        space: See `search`.
        tokenizer: See `search`.
        prompt: See `search`.
        reference: See `search`.
        metric: See `search`.
        direction: See `search`.
        objectives: See `search`.
        baseline: See `search`.
        n_trials: See `search`.
        sampler: See `search`.
        pruner: See `search`.
        holdout: See `search`.
        folds: See `search`.
        seed: See `search`.
        batch_size: See `search`.
        cache_budget: See `search`.
        trials_in_flight: See `search`.
        replicates: See `search`.
        holdout_replicates: See `search`.
        split: See `search`.
        subset: See `search`.
        limit: See `search`.
        system: See `search`.
        chat_template: See `search`.
        postprocess: See `search`.
        max_prompt_tokens: See `search`.
        tokenizer_encode_args: See `search`.
        tokenizer_decode_args: See `search`.
        device: See `search`.
        device_map: See `search`.
        dtype: See `search`.
        revision: See `search`.
        adapter: See `search`.
        gguf_file: See `search`.
        trust_remote_code: See `search`.

    Raises:
        InputError: An argument cannot be used; says which and why.
    """
    check_numbers(n_trials=n_trials, trials_in_flight=trials_in_flight, replicates=replicates)
    check_numbers(holdout_replicates=holdout_replicates)
    prepared = prepare(
        model,
        dataset,
        space,
        tokenizer,
        described={
            "prompt": prompt,
            "reference": reference,
            "metric": metric,
            "direction": direction,
            "postprocess": postprocess,
            "system": system,
            "chat_template": chat_template,
            "max_prompt_tokens": max_prompt_tokens,
            "tokenizer_encode_args": tokenizer_encode_args,
            "split": split,
            "subset": subset,
            "limit": limit,
        },
        engine={
            "batch_size": batch_size,
            "cache_budget": cache_budget,
            "tokenizer_decode_args": tokenizer_decode_args,
        },
        loading={
            "device": device,
            "device_map": device_map,
            "dtype": dtype,
            "revision": revision,
            "adapter": adapter,
            "gguf_file": gguf_file,
            "trust_remote_code": trust_remote_code,
        },
        baseline=baseline,
        sampler=sampler,
        pruner=pruner,
        holdout=holdout,
        seed=seed,
        replicates=replicates,
        folds=folds,
        objectives=objectives,
    )
    total = prepared.total_trials(n_trials)
    found = probe(prepared, n_trials=total, in_flight=trials_in_flight)
    made = make_forecast(
        found, prepared, n_trials=total, holdout_replicates=holdout_replicates, memory_in_use=bytes_in_use()
    )
    power = power_of(prepared.plan, found.records[prepared.plan.baseline], replicates=holdout_replicates)
    return made if power is None else replace(made, power=power.text)
