"""Every argument of `search`, `score` and `forecast`, declared once.

A key of a TypedDict below says all there is to say of an option: its type, its default, what it means, what values it
takes, and which key of a study file it is. Python signatures and their documentation, study files with their JSON
schema and template, texts of ``--help``, and what workers are handed are made from these declarations.
"""

# No `from __future__ import annotations` here: the declarations are read at run time. Types of heavy libraries stand in
# quotation marks, so that reading them imports nothing.

import functools
import inspect
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict, TypeVar, cast

from llmsearch_optuna.declaration import AT_ONCE, COUNT, Key, Limits, Option, annotation, completed, declared
from llmsearch_optuna.types import DialectName, Direction

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler

    from llmsearch_optuna.engine.sampling.reasoning import ReasoningOption
    from llmsearch_optuna.progress import Callback


F = TypeVar("F", bound=Callable[..., Any])


class Inputs(TypedDict):
    """The arguments that are given by position: what is searched, and on what."""

    model: Annotated[
        Any,
        Option(
            "A Hugging Face model, its folder or hub id, the address of a server with OpenAI's interface, an Engine, "
            "or an object with ``generate(prompts, params)``.",
            key=Key(
                "model",
                "name",
                type=str,
                text='Folder or hub id of a model, or the address of a server; "demo" is the bundled chat model.',
                filled="demo",
            ),
        ),
    ]
    server: Annotated[
        str,
        Option(
            "The address of a server with OpenAI's interface, in the place of a model.",
            key=Key("model", type=str, example="http://127.0.0.1:8000/v1"),
        ),
    ]
    dataset: Annotated[
        Any,
        Option(
            "Rows (a list of dicts, a DataFrame, a Dataset), a file, a hub id, or a Task.",
            more="Or a task of another library, with its prompts, references and metric: ``lm_eval:gsm8k``, "
            "``inspect:file.py@task``; see docs/tasks.md.",
            key=Key(
                "data",
                "path",
                type=str,
                text="A .jsonl, .json, .csv or .parquet file, a hub id, or a task (lm_eval:gsm8k); "
                '"demo" is the bundled dialogues.',
                filled="demo",
            ),
        ),
    ]
    space: Annotated[
        Any,
        Option(
            "A dict of generation parameters, a list of them (branches), a function of an Optuna trial, or a preset.",
            key=Key(
                "",
                type=dict[str, Any] | list[dict[str, Any]],
                text="What to search: a plain value is fixed, {low = …, high = …} or {choices = […]} is searched.",
                is_required=True,
            ),
        ),
    ]
    params: Annotated[
        Mapping[str, Any], Option("Generation parameters, laid over the model's generation configuration.")
    ]
    study: Annotated[Any, Option("The result of a search that has ended, or of `load_result`.")]
    tokenizer: Annotated[
        Any,
        Option(
            "A tokenizer, or a folder or hub id of one; found from the model where it can be.",
            key=Key(
                "model",
                type=str,
                text="Folder or hub id of a tokenizer that is not the model's own.",
                example="folder-of-a-tokenizer",
            ),
        ),
    ]


class TaskOptions(TypedDict, total=False):
    """How rows become prompts and references, and how answers are scored; what a Task says is not said again."""

    prompt: Annotated[
        Any,
        Option(
            'A template such as ``"Summarize: {dialogue}"``, a list of chat messages, or a function of the row. '
            "Several of them, in a list or in a dict by name, are searched.",
            more="See Task.",
            key=Key(
                "data",
                type="str | list[Message | str | list[Message]] | dict[str, str | list[Message]]",
                text='Template, such as "Summarize: {dialogue}", or chat messages: {role = …, content = …}. Several in '
                "a list, or in a table by name, are searched.",
                filled="Summarize the dialogue in one sentence.\n\n{dialogue}",
            ),
        ),
    ]
    reference: Annotated[
        Any,
        Option(
            "The column with the right answer, several columns, or a function of the row.",
            more="See Task.",
            key=Key("data", type=str | list[str], text="Column or columns with the right answer.", filled="summary"),
        ),
    ]
    metric: Annotated[
        Any,
        Option(
            "A built-in name, a function, an ``evaluate`` module, or a dict of several with their weights.",
            more="See Metric.of.",
            key=Key(
                "data",
                type=str | dict[str, float],
                text="Built-in metric: rouge1, rouge2, rougeL, bleu, chrf, exact_match, json_valid, …; or several with "
                "their weights: {rouge1 = 1.0, json_valid = 0.5}. Tasks of lm-eval and inspect have their own.",
                filled="rouge1",
            ),
        ),
    ]
    metric_options: Annotated[
        Mapping[str, Any] | None,
        Option(
            'Options of a built-in metric, such as {schema = "schema.json"} of json_schema; of several, '
            "a table of them under each metric's name.",
            key=Key("data", type=dict[str, Any], example={}),
        ),
    ]
    direction: Annotated[
        Direction | None,
        Option(
            "Whether a higher score is better (maximize) or a lower one (minimize).",
            key=Key("data"),
            left_out="maximize",
        ),
    ]
    aggregate: Annotated[
        str | None,
        Option(
            "What the score of a row is made of where it has several samples: mean, pass (or pass@k, such as pass@1), "
            "majority, or best, which needs a scorer.",
            more="See docs/samples.md.",
            key=Key("data", example="majority"),
            left_out="mean",
        ),
    ]
    scorer: Annotated[
        Any,
        Option(
            'Which sample is the best, for aggregate = "best": a metric that needs no reference, such as mean_logprob; '
            "or several with their weights.",
            more="Or a function of a completion's text; the highest score is the best.",
            key=Key("data", type=str | dict[str, float], example="json_valid"),
        ),
    ]
    pass_score: Annotated[
        float | None,
        Option(
            'The least score that passes, for aggregate = "pass"; 1 by default.',
            limits=Limits(words="a number", whole=False),
            key=Key("data", type=int | float, example=1.0),
        ),
    ]
    split: Annotated[str | None, Option("Split of a dataset that has several.", key=Key("data", example="validation"))]
    subset: Annotated[
        str | None, Option("Configuration of a hub dataset that has several.", key=Key("data", example="main"))
    ]
    limit: Annotated[
        int | None, Option("Use only the first so many rows.", limits=COUNT, key=Key("data", "rows", example=200))
    ]
    system: Annotated[
        str | Sequence[str | None] | Mapping[str, str | None] | None,
        Option(
            "A system message before every prompt; several in a list, or in a table or dict by name, are searched, and "
            "false is none.",
            key=Key(
                "data",
                type=str | list[str | Literal[False]] | dict[str, str | Literal[False]],
                example="You are a helpful assistant.",
            ),
        ),
    ]
    chat_template: Annotated[
        bool | Mapping[str, Any] | None,
        Option(
            "Wrap prompts in the tokenizer's chat template; a table or dict holds variables for it.",
            key=Key("data", type=bool | dict[str, Any]),
            left_out=True,
        ),
    ]
    chat_template_kwargs: Annotated[
        Mapping[str, Any] | None,
        Option(
            "Variables of the chat template, such as {enable_thinking = [true, false]}: a list is searched, any other "
            "value is fixed.",
            key=Key("data", type=dict[str, Any], example={"enable_thinking": False}),
        ),
    ]
    postprocess: Annotated[
        Callable[[str], str] | str | Sequence[str] | None,
        Option(
            "Applied to every completion before it is scored: strip, strip_reasoning, first_line, last_line, "
            "extract_code, json_only, or several of them in a list.",
            more="Or a function of the text.",
            key=Key("data", type=str | list[str], example=["strip_reasoning", "first_line"]),
        ),
    ]
    reasoning: Annotated[
        "ReasoningOption",
        Option(
            "Between which two texts the model thinks, such as <think> and </think>: what stands there is kept apart "
            "and not scored. By default those that its tokenizer and chat template have; false is for none.",
            more="See docs/thinking.md.",
            key=Key("data", type=Literal["auto"] | Literal[False] | list[str], example=["<think>", "</think>"]),
            left_out="auto",
        ),
    ]
    max_prompt_tokens: Annotated[
        float | None,
        Option(
            "Cut the longest column of longer prompts; below 1 it is a quantile of their lengths.",
            more="By default nothing is cut, and prompts that do not fit into the model are an error; see Task.",
            limits=Limits(words="a number of tokens, or a share above 0", gt=0, whole=False),
            key=Key("data", type=int | float, example=2048),
        ),
    ]
    tokenizer_encode_args: Annotated[
        Mapping[str, Any] | None,
        Option(
            "What the tokenizer is called with.",
            more="See Task.",
            key=Key("data", type=dict[str, Any], example={"truncation": False}),
        ),
    ]


class EngineOptions(TypedDict, total=False):
    """How the engine decodes; they change no result."""

    batch_size: Annotated[
        int | Literal["auto"],
        Option('Most rows in one pass of the model; "auto" finds what fits.', "auto", limits=AT_ONCE, key=Key("model")),
    ]
    cache_budget: Annotated[
        int | Literal["auto"],
        Option(
            "Bytes for what earlier trials computed.",
            "auto",
            limits=Limits(words="a number of bytes from 0 on", ge=0),
            key=Key("model"),
        ),
    ]
    tokenizer_decode_args: Annotated[
        Mapping[str, Any] | None,
        Option(
            "What tokenizer.decode is called with.",
            more="See Engine.",
            key=Key("model", type=dict[str, Any], example={"clean_up_tokenization_spaces": False}),
        ),
    ]


class LoadOptions(TypedDict, total=False):
    """How a model is loaded that is given by its name."""

    revision: Annotated[str | None, Option("Branch, tag or commit of a hub id.", key=Key("model", example="main"))]
    dtype: Annotated[
        Any,
        Option(
            '"float32", "bfloat16" …; the default is what the model was saved in, on a CPU float32.',
            key=Key("model", type=str, example="bfloat16"),
        ),
    ]
    adapter: Annotated[
        str | Path | None,
        Option(
            "Folder or hub id of a PEFT adapter to put on it.",
            key=Key("model", type=str, example="folder-of-an-adapter"),
        ),
    ]
    gguf_file: Annotated[
        str | None, Option("Which .gguf file of a hub repository.", key=Key("model", example="model-q8_0.gguf"))
    ]
    trust_remote_code: Annotated[bool, Option("Run code that comes with the model.", default=False, key=Key("model"))]
    device: Annotated[
        str | None,
        Option('"cuda:0", "cpu" …; the default is the best there is.', key=Key("model", example="cuda:0")),
    ]
    device_map: Annotated[
        Any,
        Option(
            'How to spread it over devices, such as "auto" (needs accelerate).',
            key=Key("model", type=str | dict[str, Any], example="auto"),
        ),
    ]
    vllm_args: Annotated[
        Mapping[str, Any] | None,
        Option(
            'What vllm.LLM is made with, where the model is "vllm:" and a folder or hub id.',
            key=Key("model", type=dict[str, Any], example={"tensor_parallel_size": 2}),
        ),
    ]


class ServerOptions(TypedDict, total=False):
    """How a server with OpenAI's interface is asked, where the model is the address of one."""

    served_model: Annotated[
        str | None,
        Option(
            "What the server calls its model; the default is the only one that it lists.",
            key=Key("model", example="my-model"),
        ),
    ]
    dialect: Annotated[
        DialectName | None,
        Option(
            "What kind of server it is: vllm, sglang, llama.cpp, ollama, transformers or openai; found by asking.",
            key=Key("model", type=DialectName, example="vllm"),
        ),
    ]
    api_key_env: Annotated[
        str | None,
        Option(
            "The environment variable that holds the server's key.",
            more="A key itself is never given: arguments are stored. api.openai.com gets OPENAI_API_KEY by default.",
            key=Key("model", example="OPENAI_API_KEY"),
        ),
    ]
    concurrency: Annotated[
        int | Literal["auto"],
        Option(
            'Most requests in flight; "auto" finds what makes the server fastest.',
            "auto",
            limits=AT_ONCE,
            key=Key("model"),
        ),
    ]
    retry_for: Annotated[
        float | None,
        Option(
            "Seconds for which a server that does not answer is asked again, before the study ends to go on later.",
            limits=Limits(words="a number of seconds from 0 on", ge=0, whole=False),
            key=Key("model"),
            left_out=600.0,
        ),
    ]
    skip_probe: Annotated[
        bool,
        Option(
            "Begin a new study without a few short texts that show which searched parameters the server ignores.",
            default=False,
            key=Key("model"),
        ),
    ]
    price: Annotated[
        Mapping[str, float] | None,
        Option(
            "What a million tokens cost: input, output, and cached_input where that differs.",
            key=Key("model", type=dict[str, float], example={"input": 0.5, "output": 1.5}),
        ),
    ]


class ModelOptions(EngineOptions, LoadOptions, ServerOptions, total=False):
    """How a model is loaded, or a server asked, and how it decodes."""


class ReplicateOptions(TypedDict, total=False):
    """How often a row is decoded."""

    replicates: Annotated[
        int,
        Option("How often a row is decoded where something is sampled.", 1, limits=AT_ONCE, key=Key("study")),
    ]


class ConstraintOptions(TypedDict, total=False):
    """What a winner has to keep."""

    constraints: Annotated[
        Mapping[Any, str] | None,
        Option(
            'What the winner has to keep, such as {terminates = ">= 0.95", tokens = "<= 60"}: the mean of a metric, or '
            "of the generated tokens a row.",
            more="A dict of metrics (or tokens) and their limits. A trial is feasible where a bound of its rows "
            "keeps every limit, and is pruned when it can no longer be; the verdict speaks about each of them. See "
            "docs/conditions.md.",
            key=Key("", type=dict[str, str]),
        ),
    ]


class DrawOptions(ReplicateOptions, total=False):
    """How often a row is decoded, and how many completions are scored together."""

    samples: Annotated[
        int | Sequence[int],
        Option(
            "How many completions of a row are drawn and scored together, as aggregate says, where something is "
            "sampled; several numbers in a list are searched.",
            1,
            more="Their tokens count together. Of several numbers the baseline draws the least; a space may search "
            "samples like any parameter, too. See docs/samples.md.",
            limits=Limits(words="a whole number from 1 to 1,024, or a list of such", ge=1, lt=1025, several=True),
            key=Key("study", type=int | list[int]),
        ),
    ]


class PlanOptions(DrawOptions, ConstraintOptions, total=False):
    """What a study is: these settle its trials."""

    n_trials: Annotated[
        int | None,
        Option(
            "The study's total of trials; the default is 40, or a whole grid.",
            more="A study that is resumed runs what is left.",
            limits=COUNT,
            key=Key("study", filled=40),
        ),
    ]
    objectives: Annotated[
        Sequence[Any],
        Option(
            '``("score",)``; with ``"tokens"`` or metrics by row besides, as in ``("score", "tokens")``, the front of '
            "all.",
            ("score",),
            more="With several nothing is pruned, and the verdict is about the best score; tokens are minimized, other "
            "metrics maximized. See SearchResult.front.",
            key=Key(
                "study",
                type=list[str],
                text='["score"], or ["score", "tokens"] or ["score", "json_valid"] for the front of all; several prune '
                "nothing.",
            ),
        ),
    ]
    baseline: Annotated[
        Mapping[str, Any] | str | None,
        Option(
            "The parameters in use today, or the name of one of the baselines; the default is the model's generation "
            "configuration.",
            more="The space adds max_new_tokens, stops, special tokens and the seed; what else it fixes is tested.",
            key=Key("", type=str | dict[str, Any]),
        ),
    ]
    baselines: Annotated[
        Mapping[str, Mapping[str, Any]] | None,
        Option(
            "Named baselines, each run in full, such as {authors = {do_sample = true, temperature = 0.7}}.",
            more="They come right after the baseline in use and greedy, are finalists, and stand in every table under "
            "their names. Where another one is in use, the model's own generation_config.json is one of them.",
            key=Key("", type=dict[str, dict[str, Any]]),
        ),
    ]
    verdict_against: Annotated[
        Literal["baseline", "all"],
        Option(
            "Whom the winner is compared with on the held-out rows: the baseline in use, or all named baselines too.",
            "baseline",
            more="The verdict's answer is about the one in use either way; with all, Holm's method corrects the "
            "p-values of the comparisons.",
            key=Key("study", type=Literal["baseline", "all"]),
        ),
    ]
    try_first: Annotated[
        Sequence[Mapping[str, Any]] | None,
        Option(
            "Configurations that are run in full right after the baseline and greedy, such as a paper's settings.",
            more="They are completed as the baseline is, count among the trials, and are never pruned.",
            key=Key("", type=list[dict[str, Any]]),
        ),
    ]
    sampler: Annotated[
        "Literal['tpe', 'random', 'grid'] | BaseSampler",
        Option(
            "Who suggests the next trial: tpe, random or grid.",
            "tpe",
            more="Or an Optuna sampler; then resuming is not exact.",
            key=Key("study", type=Literal["tpe", "random", "grid"]),
        ),
    ]
    pruner: Annotated[
        "Literal['paired', 'none'] | BasePruner | Any",
        Option(
            "Who stops hopeless trials: paired or none.",
            "paired",
            more="Or a PairedPruner with other settings, or an Optuna pruner; with the latter resuming is not exact.",
            key=Key(
                "study",
                type="Literal['paired', 'none'] | PrunerSection",
                text='Who stops hopeless trials; {risk = 0.05} is "paired" with another chance of losing the best.',
            ),
        ),
    ]
    holdout: Annotated[
        float | Literal["auto", "cross"],
        Option(
            'Share of the distinct prompts that no trial sees, for the verdict; or "cross": each half of the rows is '
            'searched by itself, and its winner judged on the other half; "auto" is "cross" for 12 to 140 prompts, '
            "else 0.3.",
            "auto",
            more='"cross" finds more where there are few rows; see docs/verdict.md. `n_trials` counts the trials of '
            "both halves, each of which decodes half of the rows; the finalists of two halves take what that saves. "
            '"auto" is 0.3, too, with what "cross" does not go together with: margin, constraints, several '
            "objectives, folds, samplers and pruners of your own, fewer search_rows than 70 % of the prompts.",
            limits=Limits(words='a share from 0 to below 1, such as 0.3, "cross" or "auto"', ge=0, lt=1, whole=False),
            key=Key("study"),
        ),
    ]
    search_rows: Annotated[
        int,
        Option(
            "Most rows that trials are decoded on, where there are more; the others are the reserve for the verdict.",
            100,
            more="Every trial pays for a search row, only two settings pay for one of the reserve. The reserve is "
            "decoded in stages, which end with evidence or where there is no hope for it. Rows with the same prompt "
            "count once. With holdout=0 all rows are searched.",
            limits=Limits(words="a whole number from 20 on", ge=20),
            key=Key("study"),
        ),
    ]
    holdout_rows: Annotated[
        int,
        Option(
            "Most rows of a reserve that the winner and the baseline are decoded on, replicates counted.",
            1000,
            more="With 1,000 rows a difference of 5 in 100 right answers is found; see docs/verdict.md.",
            limits=Limits(words="a whole number from 20 on", ge=20),
            key=Key("study"),
        ),
    ]
    folds: Annotated[
        int | None,
        Option(
            "Show the score of each of so many parts of the search rows.",
            more="They stand in a trial's attributes, ``fold_scores``, and in `trials_dataframe`. Rows with the same "
            "prompt are in the same part; nothing is decided by them.",
            limits=Limits(words="a whole number from 2 on", ge=2),
            key=Key("study", example=5),
        ),
    ]
    seed: Annotated[
        int,
        Option(
            "Of the split, the order of the rows, and all suggestions.",
            42,
            limits=Limits(words="an integer from 0", ge=0),
            key=Key("study"),
        ),
    ]
    holdout_replicates: Annotated[
        int,
        Option("How often a row is decoded on the holdout and for the finalists.", 3, limits=AT_ONCE, key=Key("study")),
    ]
    finalists: Annotated[
        int,
        Option(
            "How many of the best trials are decoded again to choose the winner, beside baseline and greedy.",
            3,
            more="Each costs as many tokens as `holdout_replicates` trials. With the same tokens 2 to 5 of them choose "
            "equally good settings in simulations, 1 and 8 worse ones.",
            limits=COUNT,
            key=Key("study"),
        ),
    ]
    trials_in_flight: Annotated[
        int,
        Option(
            "How many trials are decoded together, in all processes of the study.", 4, limits=AT_ONCE, key=Key("study")
        ),
    ]
    margin: Annotated[
        float | None,
        Option(
            'A loss up to this is accepted: the verdict then answers "as good?" instead of "better?".',
            limits=Limits(words="a number from 0 on", ge=0, whole=False),
            key=Key("study", example=0.01),
        ),
    ]


class StorageOptions(TypedDict, total=False):
    """Where a study is kept."""

    study_name: Annotated[
        str | None,
        Option(
            "Names the study in its database; the default is made from data and model.",
            key=Key(
                "study",
                "name",
                type="Annotated[str, Field(min_length=1)]",
                text="Names the study in its database.",
                filled="my-study",
                is_required=True,
            ),
        ),
    ]
    storage: Annotated[
        str | None,
        Option(
            "Database URL (SQLite or PostgreSQL) or SQLite file; the default is sqlite:///studies/<name>.db.",
            key=Key("study", example="postgresql+psycopg://user@host/database"),
        ),
    ]


class StudyOptions(StorageOptions, PlanOptions, total=False):
    """How long a study runs, where it is kept, and who watches it."""

    timeout: Annotated[
        float | None,
        Option(
            "Seconds after which no new trial begins; those under way end, and the verdict follows.",
            limits=Limits(words="a number of seconds from 0 on", ge=0, whole=False),
            key=Key("study", example=3600.0),
        ),
    ]
    max_tokens: Annotated[
        int | None,
        Option(
            "Generated tokens of all trials together, in all sessions; then the verdict follows.",
            more="No trial is begun that would not fit if it took what those before it took on average. The first "
            "`trials_in_flight` begin in any case. The verdict comes on top: some finalists once more, and two trials "
            "on the holdout; of a reserve (see `search_rows`) as many rows as fit into so many tokens again.",
            limits=COUNT,
            key=Key("study", example=1_000_000),
        ),
    ]
    max_cost: Annotated[
        float | None,
        Option(
            "What the tokens of all trials may cost together, in all sessions; then the verdict follows. Needs price.",
            more="In the currency of `price=`, counted as `max_tokens` is; cached prompts count in full.",
            limits=Limits(words="an amount above 0", gt=0, whole=False),
            key=Key("study", example=5.0),
        ),
    ]
    progress: Annotated[bool, Option("Show the study's progress in the terminal.", True, for_workers=False)]
    observer: Annotated[
        "Callback | None",
        Option("A callback that takes the place of the terminal; its errors end the study.", for_workers=False),
    ]
    callbacks: Annotated[
        "Sequence[Callback]",
        Option(
            "Objects with a method ``on(event)`` that are told of the study's events, in this order.",
            (),
            more="See `llmsearch_optuna.progress`. The first error of one is logged as a warning, and the study goes "
            "on; KeyboardInterrupt ends the study as Ctrl-C does.",
            for_workers=False,
        ),
    ]


class SearchOptions(TaskOptions, StudyOptions, ModelOptions, total=False):
    """Of `search`."""


class ForecastOptions(TaskOptions, PlanOptions, ModelOptions, total=False):
    """Of `forecast`."""


class ScoreOptions(TaskOptions, DrawOptions, ModelOptions, total=False):
    """Of `score`."""

    on_row: Annotated[Callable[[int, int], None] | None, Option("Called with (rows done, rows in all) as rows end.")]


class LockedRowsOptions(TaskOptions, ModelOptions, total=False):
    """Of whatever decodes a study's locked rows once more."""


class ConfirmOptions(LockedRowsOptions, ConstraintOptions, total=False):
    """Of `confirm`."""


class CheckOptions(LockedRowsOptions, total=False):
    """Of `check`."""

    margin: Annotated[
        float,
        Option(
            "A loss up to this raises no alarm, in the unit of the score.",
            0.0,
            limits=Limits(words="a number from 0 on", ge=0, whole=False),
        ),
    ]


def every_option() -> Mapping[str, Option]:
    """All arguments of `search`, by name."""
    return MappingProxyType({**declared(Inputs), **declared(SearchOptions)})


def keys_of(table: str, options: Mapping[str, Option] | None = None) -> dict[str, str]:
    """The keys of a study file's table, each with the name of its option.

    Args:
        table: ``"study"``, ``"model"``, ``"data"``, or ``""`` for the file itself.
        options: Where to look; all arguments of `search` by default.
    """
    known = every_option() if options is None else options
    return {o.key.name or name: name for name, o in known.items() if o.key is not None and o.key.table == table}


def for_workers(arguments: Mapping[str, Any], options: Mapping[str, Option] | None = None) -> dict[str, Any]:
    """Return the arguments of `search` that another process of the study is handed.

    Args:
        arguments: Those that were given.
        options: What can be given; all arguments of `search` by default.
    """
    known = every_option() if options is None else options
    return {name: value for name, value in arguments.items() if known[name].for_workers}


def takes(kind: type[Any]) -> Callable[[F], F]:
    """Make a function of ``(…, **options)`` take the options of a TypedDict.

    Its signature and its documentation name every one of them, and it is called with all of them: those that a call
    leaves out have their defaults.

    >>> @takes(ReplicateOptions)
    ... def decode(model, **options):
    ...     '''Decode.'''
    ...     return options
    >>> decode("m")
    {'replicates': 1}
    >>> decode("m", replicate=2)
    Traceback (most recent call last):
    TypeError: decode() has no argument 'replicate'; did you mean 'replicates'?
    """

    def decorate(function: F) -> F:
        own = [p for p in inspect.signature(function).parameters.values() if p.kind is not p.VAR_KEYWORD]
        names = [parameter.name for parameter in own]

        @functools.wraps(function)
        def call(*args: Any, **given: Any) -> Any:
            options = {name: value for name, value in given.items() if name not in names}
            by_name = {name: value for name, value in given.items() if name in names}
            return function(*args, **by_name, **completed(kind, options, function.__name__, names))

        texts = {p.name: declared(Inputs)[p.name] for p in own} | dict(declared(kind))
        call.__doc__ = _documented(function.__doc__ or "", texts)
        vars(call)["__signature__"] = inspect.signature(function).replace(
            parameters=[
                *own,
                *(
                    inspect.Parameter(
                        name,
                        inspect.Parameter.KEYWORD_ONLY,
                        default=option.default,
                        annotation=annotation(kind, name),
                    )
                    for name, option in declared(kind).items()
                ),
            ]
        )
        return cast(F, call)

    return decorate


def _documented(doc: str, options: Mapping[str, Option]) -> str:
    """A docstring with a line for every option in front of what it raises."""
    head, raises, rest = inspect.cleandoc(doc).partition("\nRaises:")
    lines = [
        textwrap.fill(
            f"{name}: {' '.join(filter(None, [option.text, option.more]))}",
            width=110,
            initial_indent=" " * 4,
            subsequent_indent=" " * 8,
        )
        for name, option in options.items()
    ]
    return "\n".join([head.rstrip(), "", "Args:", *lines, raises, rest.lstrip("\n")]).rstrip() + "\n"
