"""A new study file: every key with what it means, the few that are needed filled in, the others as comments."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w

from llmsearch_optuna.declaration import Option
from llmsearch_optuna.options import every_option, keys_of
from llmsearch_optuna.study_file.model import TABLES
from llmsearch_optuna.study_file.schema import DIRECTIVE

_WIDTH = 100

_SPACE = """\
# What to search. Each [[space]] is a branch, of which every trial picks one. A plain value is fixed, a table is
# searched: {low = …, high = …}, with log = true or step = …, or {choices = […]}. Names are those of Hugging Face's
# GenerationConfig, and these besides:
OWN_NAMES

[[space]]
max_new_tokens = 60
do_sample = false
repetition_penalty = {low = 1.0, high = 1.3}

[[space]]
max_new_tokens = 60
do_sample = true
temperature = {low = 0.1, high = 1.2}
top_p = {low = 0.5, high = 1.0}

[[space]]
max_new_tokens = 60
num_beams = {low = 2, high = 4}
no_repeat_ngram_size = {choices = [0, 3]}

# What is in use today and must be beaten; without it, the model's own generation config.
# [baseline]
# do_sample = false

# Other baselines by name, each run in full; verdict_against = "all" compares the winner with all of them.
# [baselines.authors]
# do_sample = true
# temperature = 0.6

# What the winner has to keep, by a bound of its rows: the mean of a metric, or of the generated tokens a row.
# [constraints]
# terminates = ">= 0.9"
# tokens = "<= 60"

# What is run in full right after the baseline and greedy decoding, such as a paper's settings.
# [[try_first]]
# do_sample = true
# temperature = 0.7
"""


def new_study_file(name: str) -> str:
    """Return the text of a study file that runs as it is, on the demo's model and data.

    Args:
        name: The study's name.
    """
    head = [
        DIRECTIVE,
        "# A study of llmsearch-optuna. What stands behind a # is optional, with its default or an example.",
    ]
    tables = [table_text(table, str(section.__doc__), study_name=name) for table, section in TABLES.items()]
    return "\n\n".join(["\n".join(head), *tables, _space()])


def _space() -> str:
    from llmsearch_optuna.engine.sampling.param_specs import OWN_NAMES

    names = textwrap.wrap(f"{', '.join(OWN_NAMES)}.", _WIDTH)
    return _SPACE.replace("OWN_NAMES", "\n".join(f"# {line}" for line in names))


def write_new_study_file(path: Path) -> None:
    """Write a new study file; raises FileExistsError where there is one."""
    with path.open("x", encoding="utf-8") as file:
        file.write(new_study_file(path.stem))


def table_text(
    table: str, about: str, options: Mapping[str, Option] | None = None, *, study_name: str | None = None
) -> str:
    """Return one table: what is needed first, then every other key as a comment.

    Args:
        table: Its name.
        about: What it is about.
        options: Those whose keys it has; all arguments of `search` by default.
        study_name: Stands in it as the study's name.
    """
    known = every_option() if options is None else options
    keys = [(key, known[name]) for key, name in keys_of(table, known).items()]
    needed = [_needed(key, option, study_name if key == "name" and table == "study" else None) for key, option in keys]
    optional = [_optional(key, option) for key, option in keys]
    lines = [line for part in (*needed, *optional) for line in part]
    return "\n".join([f"# {about}", f"[{table}]", *lines])


def _needed(key: str, option: Option, value: Any = None) -> list[str]:
    """A key with its value, where a study needs it."""
    assert option.key is not None
    filled = option.key.filled if value is None else value
    return [] if filled is None else [*_meaning(option), _written(key, filled)]


def _optional(key: str, option: Option) -> list[str]:
    """A key as a comment, with an example or its default."""
    assert option.key is not None
    example = option.effective if option.key.example is None else option.key.example
    return [*_meaning(option), f"# {_written(key, example)}"] if option.key.filled is None else []


def _meaning(option: Option) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(option.help, _WIDTH)]


def _written(key: str, value: Any) -> str:
    if isinstance(value, dict):
        return f"{key} = {{{', '.join(_written(k, v) for k, v in value.items())}}}"
    if isinstance(value, list):  # on one line, so that one # leaves all of it out
        return f"{key} = [{', '.join(tomli_w.dumps({'_': item}).strip().removeprefix('_ = ') for item in value)}]"
    return tomli_w.dumps({key: value}).strip()
