from __future__ import annotations

import numpy as np
import torch

from llmsearch_optuna.engine.sampling.candidates import Candidates, NextTokenScores


def scores(first: int) -> NextTokenScores:
    values = np.array([2.0, 1.0], dtype=np.float32) + first
    return NextTokenScores(values, np.array([first, 9], dtype=np.int32), float(first), torch.zeros(4))


def test_stored_scores_become_rows_in_their_order() -> None:
    candidates = Candidates.of([scores(3), scores(1)], vocab_size=20)
    assert candidates.values.tolist() == [[5.0, 4.0], [3.0, 2.0]]
    assert candidates.ids.tolist() == [[3, 9], [1, 9]]
    assert candidates.log_total.tolist() == [3.0, 1.0]
    assert candidates.vocab_size == 20


def test_bytes_are_those_of_all_parts() -> None:
    assert scores(0).nbytes == 2 * 4 + 2 * 4 + 4 * 4 + 8
