"""What users call: `search`, `score`, `forecast`, `confirm` and `check`; their options are declared in `options`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, Unpack

from llmsearch_optuna import progress as events
from llmsearch_optuna.analysis.view import StudyView
from llmsearch_optuna.dashboard import StudyPageCallback, TrialNoteCallback
from llmsearch_optuna.errors import InputError, short
from llmsearch_optuna.optimize.check import Check, check_study
from llmsearch_optuna.optimize.confirm import Confirmation, confirm_study
from llmsearch_optuna.optimize.forecast import Forecast, forecast_study
from llmsearch_optuna.optimize.prepare import given_name, prepare
from llmsearch_optuna.optimize.run import run_study
from llmsearch_optuna.optimize.score import Score, score_params
from llmsearch_optuna.options import CheckOptions, ConfirmOptions, ForecastOptions, ScoreOptions, SearchOptions, takes
from llmsearch_optuna.search_result import SearchResult
from llmsearch_optuna.storage.study import OpenedStudy, stored_study

__all__ = ["check", "confirm", "forecast", "score", "search"]


@takes(SearchOptions)
def search(
    model: Any, dataset: Any, space: Any, tokenizer: Any = None, **options: Unpack[SearchOptions]
) -> SearchResult:
    """Find the generation parameters with which the model scores best, and say whether they beat the baseline.

    A study that exists goes on where it stopped: rows that have been decoded are never decoded again, and the result
    is the one that an uninterrupted run would have had.

    Raises:
        InputError: An argument cannot be used; says which and why.
        StudyError: The study cannot be opened, or was started with something else.
        StudyInterrupted: Ctrl-C or SIGTERM; all finished rows are safe.
    """
    guarded = events.guard(options["callbacks"])
    if options["observer"] is not None and not callable(getattr(options["observer"], "on", None)):
        raise InputError(f"observer={short(options['observer'])} must be an object with a method on(event)")
    prepared = prepare(
        model,
        dataset,
        space,
        tokenizer,
        options,
        stored_as=lambda name: stored_study(options["storage"], given_name(options, name)),
    )
    with _shown(options["observer"], options["progress"]) as shown:
        return run_study(
            prepared,
            options,
            callbacks=[shown, *guarded],
            study_callbacks=lambda opened, plan: [
                TrialNoteCallback(opened, plan.rows),
                StudyPageCallback(lambda: SearchResult.of(opened, task=plan.task)),
            ],
            result_of=lambda opened, plan: SearchResult.of(opened, task=plan.task),
        )


@takes(ScoreOptions)
def score(
    model: Any, dataset: Any, params: Mapping[str, Any], tokenizer: Any = None, **options: Unpack[ScoreOptions]
) -> Score:
    """Decode every row under one set of parameters, and score it.

    An Engine that is given as the model keeps its cache between calls.

    Raises:
        InputError: An argument cannot be used.
        DecodingError: A row could not be decoded, or the metric failed on it; names the row.
    """
    return score_params(model, dataset, params, tokenizer, options)


@takes(ForecastOptions)
def forecast(
    model: Any, dataset: Any, space: Any, tokenizer: Any = None, **options: Unpack[ForecastOptions]
) -> Forecast:
    """Say what a search with these arguments would take, from a few rows of its first trials.

    These rows are decoded now; no study is made. An Engine that is given as the model remembers them, so a search
    that follows with it does not compute them again.

    Raises:
        InputError: An argument cannot be used; says which and why.
    """
    return forecast_study(model, dataset, space, tokenizer, options)


@takes(ConfirmOptions)
def confirm(
    study: StudyView, model: Any, dataset: Any, tokenizer: Any = None, **options: Unpack[ConfirmOptions]
) -> Confirmation:
    """Say whether a study's winner wins in another engine, too: the one that will serve it.

    Baseline and winner are decoded on the rows that no trial has seen, and compared as the study compared them. Give
    data, prompt, reference and metric as they were given to `search`.

    Raises:
        InputError: An argument cannot be used, or data and metric are not the study's.
        StudyError: The study has no verdict.
    """
    return confirm_study(_opened(study), model, dataset, tokenizer, options)


@takes(CheckOptions)
def check(study: StudyView, model: Any, dataset: Any, tokenizer: Any = None, **options: Unpack[CheckOptions]) -> Check:
    """Say whether the parameters that a study recommends are worse now than when they were tuned.

    They are decoded on the rows that no trial has seen, and compared with what they scored there. Give data, prompt,
    reference and metric as they were given to `search`.

    Raises:
        InputError: An argument cannot be used, or data and metric are not the study's.
        StudyError: The study has no verdict.
        DecodingError: More rows than not could not be decoded or scored.
    """
    return check_study(_opened(study), model, dataset, tokenizer, options)


def _opened(study: Any) -> OpenedStudy:
    if not isinstance(study, StudyView):
        raise InputError(
            f"study={short(study)} must be the result of a search, or of llmsearch_optuna.search_result.load_result"
        )
    return study.opened


@contextlib.contextmanager
def _shown(observer: events.Callback | None, progress: bool) -> Iterator[events.Callback]:
    """The callback that shows the study: the user's, the terminal, or none."""
    if observer is not None:
        yield observer
    elif progress:
        with events.Terminal() as terminal:
            yield terminal
    else:
        yield events.Quiet()
