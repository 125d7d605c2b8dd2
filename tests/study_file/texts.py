"""A study file whose model and data are not there."""

from __future__ import annotations

TEXT = """\
[study]
name = "x"
n_trials = 12

[model]
name = "some/model"

[data]
path = "rows.jsonl"
prompt = "Ask: {q}"
metric = "rouge1"

[[space]]
max_new_tokens = 40
do_sample = true
temperature = {low = 0.2, high = 1.2, log = true}

[[space]]
max_new_tokens = 40
num_beams = {low = 2, high = 6}
stop = ["\\n"]
"""
