"""A new study file: every key with what it means, the few that are needed filled in, the others as comments."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from llmsearch_optuna.study_file.model import DataSection, ModelSection, StudySection, with_defaults
from llmsearch_optuna.study_file.schema import DIRECTIVE

_WIDTH = 100

_FILLED: dict[str, Any] = {
    "study.name": "my-study",
    "study.n_trials": 40,
    "model.name": "demo",
    "data.path": "demo",
    "data.prompt": "Summarize the dialogue in one sentence.\n\n{dialogue}",
    "data.reference": "summary",
    "data.metric": "rouge1",
}
_EXAMPLES: dict[str, Any] = {
    "study.timeout": 3600.0,
    "study.max_tokens": 1_000_000,
    "study.storage": "postgresql+psycopg://user@host/database",
    "study.margin": 0.01,
    "study.folds": 5,
    "model.revision": "main",
    "model.dtype": "bfloat16",
    "model.tokenizer": "folder-of-a-tokenizer",
    "model.device": "cuda:0",
    "model.device_map": "auto",
    "model.adapter": "folder-of-an-adapter",
    "model.gguf_file": "model-q8_0.gguf",
    "model.trust_remote_code": False,
    "model.tokenizer_decode_args": {"clean_up_tokenization_spaces": False},
    "data.split": "validation",
    "data.subset": "main",
    "data.rows": 200,
    "data.system": "You are a helpful assistant.",
    "data.max_prompt_tokens": 2048,
    "data.tokenizer_encode_args": {"truncation": False},
}
_SPACE = """\
# What to search. Each [[space]] is a branch, of which every trial picks one. A plain value is fixed, a table is
# searched: {low = …, high = …}, with log = true or step = …, or {choices = […]}. Names are those of Hugging Face's
# GenerationConfig, and generation_seed, mirostat_mode, mirostat_tau, mirostat_eta, stop, stop_token_sequences, tfs,
# top_a and top_n_sigma besides.

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
"""


def new_study_file(name: str) -> str:
    """Return the text of a study file that runs as it is, on the demo's model and data.

    Args:
        name: The study's name.
    """
    filled = _FILLED | {"study.name": name}
    sections: list[tuple[str, type[BaseModel], str]] = [
        ("study", StudySection, "How long and how to search."),
        ("model", ModelSection, "Which model decodes."),
        ("data", DataSection, "Which rows, and how they are asked and judged."),
    ]
    head = [
        DIRECTIVE,
        "# A study of llmsearch-optuna. What stands behind a # is optional, with its default or an example.",
    ]
    return "\n\n".join(["\n".join(head), *(_section(*section, filled) for section in sections), _SPACE])


def write_new_study_file(path: Path) -> None:
    """Write a new study file; raises FileExistsError where there is one."""
    with path.open("x", encoding="utf-8") as file:
        file.write(new_study_file(path.stem))


def _section(name: str, section: type[BaseModel], about: str, filled: dict[str, Any]) -> str:
    lines = [f"# {about}", f"[{name}]"]
    for key, field in section.model_fields.items():
        lines += _key(f"{name}.{key}", key, field, filled)
    return "\n".join(lines)


def _key(path: str, key: str, field: FieldInfo, filled: dict[str, Any]) -> list[str]:
    """One key: what it means as a comment, and a line that is live where it is filled in."""
    meaning = [f"# {line}" for line in textwrap.wrap(field.description or "", _WIDTH)]
    if path in filled:
        return [*meaning, _written(key, filled[path])]
    example = _EXAMPLES[path] if path in _EXAMPLES else _default(key, field)
    return [*meaning, f"# {_written(key, example)}"]


def _written(key: str, value: Any) -> str:
    if isinstance(value, dict):
        return f"{key} = {{{', '.join(_written(k, v) for k, v in value.items())}}}"
    if isinstance(value, list):  # on one line, so that one # leaves all of it out
        return f"{key} = [{', '.join(tomli_w.dumps({'_': item}).strip().removeprefix('_ = ') for item in value)}]"
    return tomli_w.dumps({key: value}).strip()


def _default(key: str, field: FieldInfo) -> Any:
    if field.default is not None and not field.is_required():
        return field.default
    return _search_defaults()[key]


def _search_defaults() -> dict[str, Any]:
    from llmsearch_optuna.study_file.model import parse_study_file

    least = '[study]\nname="x"\n[model]\nname="demo"\n[data]\nmetric="rouge1"\n[space]\nmax_new_tokens=1\n'
    return with_defaults(parse_study_file(least)).study.model_dump()
