"""The page for people who know llmsearch keeps its word: every block of ours runs, in the order of the page."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

PAGE = (Path(__file__).parents[2] / "notebooks" / "coming-from-llmsearch.md").read_text(encoding="utf-8")
THEIRS = re.findall(r"^```py\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
OURS = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"


@pytest.fixture
def workplace(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tiny_llama: LlamaForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> Path:
    """A folder with the page's data, and a tiny model in the place of its model."""
    model = tmp_path / "tiny-model"
    tiny_llama.save_pretrained(model)
    tiny_tokenizer.save_pretrained(model)
    rows = [
        {"id": str(n), "dialogue": f"Anna: Do you have {n} apples?\nBen: Yes.", "summary": f"Ben has {n} apples."}
        for n in range(24)
    ]
    for name, part in (("dialogues", rows), ("test", rows[:6])):
        lines = "".join(json.dumps(row) + "\n" for row in part)
        (tmp_path / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return model


def test_every_block_of_ours_runs(workplace: Path) -> None:
    names: dict[str, Any] = {}
    for block in OURS:
        exec(compile(block.replace(MODEL, str(workplace)), "coming-from-llmsearch.md", "exec"), names)
    assert [t.state.name for t in names["result"].trials].count("FAIL") == 0
    assert len(names["result"].trials) == 6  # baseline, greedy, and the four points of the grid
    assert len(names["at_random"].trials) == 3
    assert len(names["folded"].trials[0].user_attrs["fold_scores"]) == 3
    assert names["before"].score == 0.0
    assert len(names["stopped"].completions) == 24
    assert names["params"].inert == ("temperature",)
    assert names["mine"].completions[0].text == "Summarize: Anna: Do "
    assert json.loads(Path("tuned/generation_config.json").read_text())["max_new_tokens"] == 20
    assert Path("report.html").is_file()


def test_both_sides_are_there_and_can_be_read() -> None:
    assert len(THEIRS) == len(OURS) > 12
    for block in THEIRS:
        ast.parse(block.replace("    ...,\n", "").replace("(\n    ..., ", "("))
