"""llmsearch's half of `peer.py`: runs in an environment of its own, and imports nothing of ours.

.venv-peer/bin/python peer_llmsearch.py JOB.json ANSWER.json
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from llmsearch.tuner import Tuner  # changes transformers when it is imported
from rouge_score.rouge_scorer import RougeScorer
from sklearn.model_selection import GridSearchCV
from transformers import AutoModelForCausalLM, AutoTokenizer

SCORER = RougeScorer(["rouge1"], use_stemmer=True)


def rouge1(y_true: list[dict[str, str]], y_pred: list[str]) -> float:
    """The mean over the rows, as ours has it."""
    return statistics.fmean(
        SCORER.score(true["summary"], text)["rouge1"].fmeasure for true, text in zip(y_true, y_pred, strict=True)
    )


def run(job: dict[str, Any]) -> dict[str, Any]:
    torch.set_num_threads(job["threads"])
    tokenizer = AutoTokenizer.from_pretrained(job["model"], padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(job["model"], torch_dtype=torch.float32).eval()
    tuner = Tuner(
        model=model,
        tokenizer=tokenizer,
        dataset=Dataset.from_list(job["rows"]),
        device="cpu",
        batch_size=job["batch_size"],
        tokenizer_encode_args={"padding": "longest", "truncation": False, "add_special_tokens": False},
        prompt_template="{prompt}",
        column_mapping={"input_cols": ["prompt"], "eval_cols": ["summary"]},
        scorer=rouge1,
    )
    found = GridSearchCV(estimator=tuner.estimator, param_grid=job["grid"], scoring=tuner.scorer, cv=2)
    started, started_processor = time.perf_counter(), time.process_time()
    found.fit(X=tuner.dataset["_X"], y=tuner.dataset["_y"])
    seconds, processor = time.perf_counter() - started, time.process_time() - started_processor
    results = found.cv_results_
    return {
        "seconds": seconds,
        "processor_seconds": processor,
        "scores": [
            {"params": params, "score": float(score)}
            for params, score in zip(results["params"], results["mean_test_score"], strict=True)
        ],
    }


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(run(json.loads(Path(sys.argv[1]).read_text()))))
