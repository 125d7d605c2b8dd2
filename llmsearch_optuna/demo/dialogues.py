"""The demo's data: 60 short everyday dialogues with one-sentence summaries, written for this project.

Columns ``id``, ``dialogue`` and ``summary``. The file is part of the package; nothing is downloaded.
"""

from __future__ import annotations

import json
from importlib.resources import files


def demo_dialogues() -> list[dict[str, str]]:
    """Return the dialogues, in the order of the file.

    >>> sorted(demo_dialogues()[0])
    ['dialogue', 'id', 'summary']
    """
    text = (files("llmsearch_optuna") / "data" / "dialogues.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]
