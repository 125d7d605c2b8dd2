"""The example of docs/judge.md runs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from llmsearch_optuna import Engine


def rate(prompts: list[str], params: dict[str, Any]) -> list[str]:
    return [str(1 + len(prompt) % 5) for prompt in prompts]


def test_the_example_of_the_page_runs(
    tmp_path: Path,
    tiny_llama: LlamaForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "judge.md").read_text(encoding="utf-8")
    example = re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)[0]
    tiny_llama.save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    rows = [{"dialogue": f"Anna: {n} apples?\nBen: Yes.", "summary": f"Ben has {n} apples."} for n in range(24)]
    (tmp_path / "dialogues.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    here = example.replace("HuggingFaceTB/SmolLM2-135M-Instruct", str(tmp_path / "model"))
    here = here.replace('"http://127.0.0.1:8000/v1"', "Engine.from_function(rate)")
    names: dict[str, Any] = {"Engine": Engine, "rate": rate}
    exec(compile(here, "judge.md", "exec"), names)
    assert len(names["result"].trials) == 4
    assert (tmp_path / "judgements.db").stat().st_size > 0
