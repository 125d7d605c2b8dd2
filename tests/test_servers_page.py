"""docs/servers.md keeps its word: its snippet runs, and its table of parameters is the one that the backend goes by."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from llmsearch_optuna.backends.server.dialect import DIALECTS, Dialect
from llmsearch_optuna.backends.server.request_body import refusal
from tests.backends.stub_server import StubServer

PAGE = (Path(__file__).parent.parent / "docs" / "servers.md").read_text(encoding="utf-8")
COLUMNS = ("vllm", "sglang", "llama.cpp", "ollama", "transformers", "openai")
GIVEN = {
    "temperature": 0.5,
    "top_p": 0.5,
    "stop": ["x"],
    "presence_penalty": 0.5,
    "frequency_penalty": 0.5,
    "top_k": 5,
    "min_p": 0.1,
    "repetition_penalty": 1.1,
    "min_new_tokens": 2,
    "single stop tokens": [[5]],
    "single tokens in sequence_bias": [[[5], 1.0]],
    "num_beams": 2,
    "length_penalty": 0.5,
    "typical_p": 0.5,
    "top_n_sigma": 1.0,
    "dry_…": 0.5,
    "xtc_…": 0.5,
    "mirostat_…": 2,
    "repeat_last_n": 5,
    "other parameters of Hugging Face": 0.01,
    "response_format": {"type": "json_object"},
    "reasoning_effort": "low",
    "thinking_budget": 5,
    "after_thinking": 0.5,
}
OURS = {
    "single stop tokens": "stop_token_sequences",
    "single tokens in sequence_bias": "sequence_bias",
    "dry_…": "dry_multiplier",
    "xtc_…": "xtc_probability",
    "mirostat_…": "mirostat_mode",
    "other parameters of Hugging Face": "epsilon_cutoff",
    "after_thinking": "after_thinking.temperature",
}


def rows() -> list[tuple[str, str, str]]:
    """Each parameter of the table with each server, and what stands there."""
    table = PAGE[PAGE.index("| | vLLM |") :].split("\n\n")[0].splitlines()[2:]
    found = []
    for line in table:
        names, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        for name in names.split(", "):
            found += [(name, dialect, cell) for dialect, cell in zip(COLUMNS, cells, strict=True)]
    return found


@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=lambda dialect: dialect.name)
def test_the_table_says_what_the_backend_goes_by(dialect: Dialect) -> None:
    said = {name: cell for name, column, cell in rows() if column == dialect.name}
    assert set(said) == set(GIVEN)
    for name, cell in said.items():
        ours = OURS.get(name, name)
        is_taken = refusal(dialect, {"do_sample": True, ours: GIVEN[name]}) is None
        assert is_taken == (cell.startswith("yes") or cell == "chats"), name
        assert (ours in dialect.chat_only) == (cell == "chats"), name


def test_the_snippet_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [json.dumps({"dialogue": f"Ann: {n}", "summary": f"Ann says {n}"}) for n in range(20)]
    Path("dialogues.jsonl").write_text("\n".join(lines))
    (snippet,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    with StubServer().running() as stub:
        snippet = snippet.replace("http://127.0.0.1:8000/v1", stub.url)
        snippet = snippet.replace('metric="rouge1",', 'metric="rouge1",\n    n_trials=2,\n    progress=False,')
        names: dict[str, object] = {}
        exec(compile(snippet, "servers.md", "exec"), names)
        assert stub.bodies()[0]["messages"][0]["content"].startswith("Summarize the dialogue.")
    assert "result" in names
