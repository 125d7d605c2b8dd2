"""The examples of docs/prompts.md run, and say what the page says."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from llmsearch_optuna.engine.engine import Engine
from llmsearch_optuna.study_file.arguments import search_arguments
from llmsearch_optuna.study_file.parse import parse_study_file

PAGE = Path(__file__).parents[1] / "docs" / "prompts.md"
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)


def test_the_python_examples_run(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tiny_llama: LlamaForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"dialogue": f"Anna: Have you {n} apples? Ben: Yes.", "summary": f"Ben has {n} apples."} for n in range(24)]
    names: dict[str, Any] = {"model": Engine(tiny_llama, tiny_tokenizer), "rows": rows}
    for language, text in BLOCKS:
        if language == "python":
            exec(compile(text.replace("n_trials=24", "n_trials=5"), PAGE.name, "exec"), names)
    result, again, same = names["result"], names["again"], names["same"]
    assert [t.user_attrs["params"]["prompt"] for t in result.trials[:2]] == ["plain", "short"]
    assert set(result.best_task_options) == {"prompt", "system"}
    assert again.completions == same.completions
    assert again.prompts == same.prompts


def test_the_study_file_says_the_same() -> None:
    (text,) = [text for language, text in BLOCKS if language == "toml"]
    rest = '[study]\nname = "x"\n[model]\nname = "demo"\n[space]\nmax_new_tokens = 40\nprompt = "short"\n'
    task = search_arguments(parse_study_file(f"{text}\n{rest}"))["dataset"]
    assert [choice.name for choice in task.choices] == ["prompt", "system", "chat_template_kwargs.enable_thinking"]
    assert task.prompt == tomllib.loads(text)["data"]["prompt"]
    assert task.choices.options(task.choices.first)["system"] is None
