"""A local lm-eval task: a YAML file and two JSONL files, written for the tiny tokenizer's words."""

from __future__ import annotations

import json
from pathlib import Path

NAMES = ("Anna", "Ben", "Eva", "Tom", "Ida", "Max", "Leo", "Mia")

TASK = """\
task: apples
dataset_path: json
dataset_kwargs:
  data_files:
    train: {train}
    test: {test}
output_type: generate_until
training_split: train
fewshot_split: train
test_split: test
description: "Say how many apples there are."
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_target: "{{{{answer}}}}"
num_fewshot: 2
generation_kwargs:
  until:
    - "e"
    - "Question:"
  do_sample: false
  temperature: 0.0
  max_gen_toks: 24
filter_list:
  - name: strict-match
    filter:
      - function: regex
        regex_pattern: "^[^a-zA-Z]*([a-zA-Z])"
      - function: take_first
  - name: flexible-extract
    filter:
      - function: regex
        group_select: -1
        regex_pattern: "([a-zA-Z])"
      - function: take_first
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
    ignore_case: true
  - metric: bleu
    aggregation: bleu
    higher_is_better: true
metadata:
  version: 1.0
"""


def rows(first: int, count: int) -> list[dict[str, str]]:
    """Questions; the answers are letters, since a random model writes few numbers."""
    return [
        {"question": f"{NAMES[n % 8]} has {n} apples and eats {n % 5}. How many?", "answer": "etaoinsrhl"[n % 10]}
        for n in range(first, first + count)
    ]


def write_task(folder: Path, text: str = TASK, *, test_rows: int = 12) -> Path:
    """Write the files of a task, and return the YAML's path."""
    for name, found in (("train", rows(50, 6)), ("test", rows(3, test_rows))):
        lines = "".join(json.dumps(row) + "\n" for row in found)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    path = folder / "apples.yaml"
    path.write_text(text.format(train=folder / "train.jsonl", test=folder / "test.jsonl"), encoding="utf-8")
    return path
