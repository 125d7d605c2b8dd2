"""docs/thinking.md keeps its word: its snippets run, one after the other."""

from __future__ import annotations

import re
from pathlib import Path

from tests.engine.thinking import thinking_model, thinking_tokenizer

PAGE = (Path(__file__).parent.parent / "docs" / "thinking.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def test_every_snippet_runs(tmp_path: Path) -> None:
    prompt = "<|turn|>user\nHow many apples?<|end|>\n<|turn|>assistant\n<think>\n"
    names: dict[str, object] = {"model": thinking_model(), "tokenizer": thinking_tokenizer(), "prompt": prompt}
    names |= {"rows": [{"prompt": f"{n} apples?", "reference": str(n)} for n in range(12)], "folder": tmp_path}
    assert SNIPPETS
    for snippet in SNIPPETS:
        exec(compile(snippet, "thinking.md", "exec"), names)
    completion = names["completion"]
    assert completion.reasoning  # type: ignore[attr-defined]
    assert completion.reasoning_tokens + completion.answer_tokens == len(completion.token_ids)  # type: ignore[attr-defined]
