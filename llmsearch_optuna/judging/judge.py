"""A language model as a metric: it rates each answer by a rubric, on a scale.

It is asked through the backends that a search decodes with. A text is judged once, however many trials write it.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import statistics
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Unpack

from llmsearch_optuna.declaration import completed
from llmsearch_optuna.engine.request import Finished, Request
from llmsearch_optuna.engine.sampling.params import GenerationParams, is_random
from llmsearch_optuna.engine.sampling.reasoning import reasoning_span
from llmsearch_optuna.errors import DecodingError, InputError, short
from llmsearch_optuna.judging.cache import JudgementCache
from llmsearch_optuna.judging.labels import read_labels
from llmsearch_optuna.judging.prompt import JudgePrompt
from llmsearch_optuna.metrics.bounds import checked_bounds
from llmsearch_optuna.metrics.judged import HumanLabels, JudgedMetric, Label
from llmsearch_optuna.optimize.decode import decode_all
from llmsearch_optuna.optimize.resolve_engine import ResolvedEngine, resolve_engine
from llmsearch_optuna.options import ModelOptions
from llmsearch_optuna.stats.judge_noise import pooled_variance
from llmsearch_optuna.task.prompts import ReadyPrompt, as_messages, ready

logger = logging.getLogger("llmsearch_optuna.judging.judge")

GREEDY: Mapping[str, Any] = {"do_sample": False, "max_new_tokens": 16}


def judge(
    model: Any,
    rubric: str,
    scale: tuple[float, float] = (1, 5),
    *,
    question: str | Callable[[Mapping[str, Any]], str] | None = None,
    repeats: int = 1,
    params: Mapping[str, Any] | None = None,
    labels: Iterable[Label] | str | Path = (),
    reference: bool = True,
    cache: str | Path | None = None,
    name: str = "judge",
    tokenizer: Any = None,
    **options: Unpack[ModelOptions],
) -> JudgedMetric:
    """Return a metric whose score is a language model's rating of the answer.

    Args:
        model: What judges: anything that `search` takes as a model. An engine of the search itself cannot.
        rubric: What a good answer is, in words.
        scale: The lowest and the highest score.
        question: What was asked: a template of the row's columns, or a function of the row. None takes the column
            ``question`` or ``prompt`` where there is one.
        repeats: How often a text is judged; its score is the mean. More than one makes sense where something is
            sampled, or where a server's greedy texts vary.
        params: Generation parameters of the judge, laid over greedy decoding of at most 16 tokens.
        labels: Scores that people gave: ``(answer, score)`` or ``((row, answer), score)``, or a file with the columns
            ``answer``, ``score`` and, where it matters, ``row``. Where both sides of held-out rows have them, the
            report has a difference that is corrected by them; see docs/judge.md.
        reference: Whether the judge sees the row's reference.
        cache: An SQLite file that keeps judgements for other processes and later sessions.
        name: What the metric is called.
        tokenizer: The judge's; found from the model where it can be.
        options: How the judge is loaded or asked, such as ``dtype=`` or ``served_model=``; see `search`.

    Raises:
        InputError: An argument cannot be used.
    """
    bounds = checked_bounds(scale, f"scale={short(scale)}", (1, 5))
    labelled = read_labels(labels) if isinstance(labels, str | Path) else _listed(labels)
    own: dict[str, Any] = {
        "question": question,
        "repeats": repeats,
        "params": params,
        "labels": labelled,
        "reference": reference,
    }
    own |= {"cache": cache, "name": name, "tokenizer": tokenizer, **options}
    maker = functools.partial(judge, model, rubric, bounds, **own) if isinstance(model, str | Path) else None
    if not isinstance(rubric, str) or not rubric.strip():
        raise InputError(f"rubric={short(rubric)} must say in words what a good answer is")
    if isinstance(repeats, bool) or not isinstance(repeats, int) or not 1 <= repeats <= 65_536:
        raise InputError(f"repeats={short(repeats)} must be a whole number from 1 to 65,536")
    if not isinstance(params, Mapping | None):
        raise InputError(f"params={short(params)} must be a dict of generation parameters")
    if not isinstance(cache, str | Path | None):
        raise InputError(f"cache={short(cache)} must be the path of a file")
    served = resolve_engine(model, tokenizer, completed(ModelOptions, options, "judge"))
    generation = GenerationParams.of({**GREEDY, **(params or {})}, served.defaults)
    span = reasoning_span(None, served.tokenizer)
    if (problem := served.refusal(generation, span)) is not None:
        raise InputError(f"the judge cannot decode with {generation.canonical}: {problem}")
    prompt = JudgePrompt(rubric.strip(), bounds, question, reference)
    asked = Judge(served, generation, prompt, repeats, JudgementCache(None if cache is None else Path(cache)))

    def function(
        predictions: Sequence[str], references: Sequence[Any], rows: Sequence[Mapping[str, Any]], completions: object
    ) -> list[float]:
        return asked.scores(predictions, references, rows)

    return JudgedMetric(
        name=name,
        function=function,
        bounds=bounds,
        per_row=True,
        description=_description(asked),
        judgements=asked,
        repeats=repeats,
        labels=HumanLabels.of(labelled, bounds),
        maker=maker,
    )


def _listed(labels: Any) -> list[Label]:
    try:
        if not isinstance(labels, Mapping | bytes):
            return list(labels)
    except TypeError:
        pass
    raise InputError(f"labels={short(labels)} must be a list of (answer, score), or the path of a file with them")


@dataclass
class Judge:
    """Asks a model about answers, and remembers what it said.

    Attributes:
        served: Decodes.
        params: How.
        prompt: What is asked.
        repeats: How often for each text.
        cache: What was said before.
    """

    served: ResolvedEngine
    params: GenerationParams
    prompt: JudgePrompt
    repeats: int
    cache: JudgementCache
    _scores: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    _counts: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    @property
    def backend(self) -> object:
        """What it decodes with."""
        return self.served.backend

    @cached_property
    def identity(self) -> str:
        """What a judgement depends on beside its prompt: the judge's weights or server, and how it decodes."""
        described = [dict(self.served.description), self.params.canonical]
        return hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode()).hexdigest()

    def variance_of(self, answers: Collection[str]) -> float | None:
        """Of a single judgement among the repeats of one text; None where most of these were not judged several times.

        Args:
            answers: Texts; judgements of others do not count.
        """
        wanted = set(answers)
        groups = [scores for (_, answer), scores in self._scores.items() if answer in wanted and len(scores) > 1]
        known = {answer for (_, answer), scores in self._scores.items() if answer in wanted and len(scores) > 1}
        return pooled_variance(groups) if 2 * len(known) > len(wanted) else None

    @property
    def counts(self) -> Mapping[str, int]:
        """How many judgements were asked for, remembered, and unreadable."""
        return {name: self._counts[name] for name in ("asked", "remembered", "unreadable")}

    def scores(
        self, answers: Sequence[str], references: Sequence[Any], rows: Sequence[Mapping[str, Any]]
    ) -> list[float]:
        """Return the mean of the readable judgements of each answer.

        Raises:
            DecodingError: The judge said no number of the scale about one of them, not when asked again either.
            EngineUnavailableError: The judge does not answer for now.
        """
        cases = list(zip(rows, references, answers, strict=True))
        first = [self.prompt.text(row, reference, answer) for row, reference, answer in cases]
        said = self._ask(first)
        unread = [place for place, texts in enumerate(said) if any(self.prompt.read(text) is None for text in texts)]
        again = self._ask([self.prompt.text(*cases[place], is_second=True) for place in unread])
        for place, texts in zip(unread, again, strict=True):
            pairs = zip(said[place], texts, strict=True)
            said[place] = [one if self.prompt.read(one) is not None else other for one, other in pairs]
        return [self._mean(*judged) for judged in zip(first, answers, said, strict=True)]

    def _mean(self, prompt: str, answer: str, texts: Sequence[str]) -> float:
        scores = [score for text in texts if (score := self.prompt.read(text)) is not None]
        is_new = (prompt, answer) not in self._scores
        self._scores[prompt, answer] = scores
        if is_new:
            self._counts["unreadable"] += len(texts) - len(scores)
        if not scores:
            low, high = self.prompt.scale
            raise DecodingError(
                f"the judge said {short(texts[0])} where a number from {low:g} to {high:g} was expected "
                f"({self._counts['unreadable']} unreadable judgements so far)"
            )
        return statistics.fmean(scores)

    def _ask(self, prompts: Sequence[str]) -> list[list[str]]:
        """What is said about each prompt, once a repetition; only what is not known is decoded."""
        keys = [[self._key(prompt, repetition) for repetition in range(self.repeats)] for prompt in prompts]
        known = self.cache.get([key for row in keys for key in row])
        self._counts["remembered"] += sum(key in known for row in keys for key in row)
        tag = ("judge", id(keys))
        requests: dict[str, Request] = {}
        for place, (prompt, row) in enumerate(zip(prompts, keys, strict=True)):
            made: ReadyPrompt | None = None
            for repetition, key in enumerate(row):
                if key not in known and key not in requests:
                    made = made or self._ready(prompt)
                    requests[key] = self._request(tag, place, repetition, made)
        self._counts["asked"] += len(requests)
        self._decode(requests, known)
        return [[known[key] for key in row] for row in keys]

    def _decode(self, requests: Mapping[str, Request], known: dict[str, str]) -> None:
        """Decode what is missing, and remember each answer as soon as it is there."""
        if not requests:
            return
        key_of = {(request.row, request.replicate): key for key, request in requests.items()}

        def take(finished: Sequence[Finished]) -> None:
            said = {key_of[f.request.row, f.request.replicate]: _text(f) for f in finished}
            self.cache.put(said)
            known.update(said)

        decode_all(self.served.backend, list(requests.values()), take)

    def _key(self, prompt: str, repetition: int) -> str:
        return hashlib.sha256(f"{self.identity} {repetition} {prompt}".encode()).hexdigest()

    def _ready(self, prompt: str) -> ReadyPrompt:
        if self.served.model.takes_messages and self.served.tokenizer is None:
            return as_messages(prompt, system=None, chat_template=None)
        return ready(prompt, self.served.tokenizer, system=None, chat_template=None)

    def _request(self, tag: Any, place: int, repetition: int, prompt: ReadyPrompt) -> Request:
        return Request(
            tag,
            place,
            prompt.text,
            self.params,
            replicate=repetition,
            add_special_tokens=not prompt.from_chat_template,
            chat=prompt.chat,
            reasoning=reasoning_span(None, self.served.tokenizer),
        )


def _text(finished: Finished) -> str:
    if finished.completion is None:
        raise DecodingError(f"the judge cannot answer: {finished.error}")
    return finished.completion.text


def _description(asked: Judge) -> dict[str, Any]:
    low, high = asked.prompt.scale
    row = {name: f"{{{name}}}" for name in ("question", "prompt")}
    asks = JudgePrompt(asked.prompt.rubric, asked.prompt.scale).text(row, "{reference}", "{answer}")
    question = asked.prompt.question
    return {
        "judge": asked.served.name,
        "identity": asked.identity,
        "asks": asks,
        "question": question if isinstance(question, str | None) else "function",
        "reference": asked.prompt.shows_reference,
        "scale": [low, high],
        "repeats": asked.repeats,
        "sampled": is_random(asked.params),
    }
