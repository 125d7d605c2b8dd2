"""The bundled chat model on a real vLLM in this process; `make test-vllm` installs it into its own environment."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from llmsearch_optuna import Engine
from llmsearch_optuna.backends.vllm import VllmBackend, open_vllm
from llmsearch_optuna.backends.vllm.row_choice import ARGUMENT, MARK, RowSettings
from llmsearch_optuna.backends.vllm.step_engine import LlmStepEngine
from llmsearch_optuna.demo.model import demo_model_folder
from llmsearch_optuna.engine.request import Request
from llmsearch_optuna.engine.sampling.params import GenerationParams
from llmsearch_optuna.errors import EngineUnavailableError
from tests.backends.decoding import decoded
from tests.servers.served_study import rows_in
from tests.vllm.setups import NEEDS_VLLM, SETTINGS, SMALL, own_engine, requests, study

pytestmark = NEEDS_VLLM


@pytest.fixture(scope="module")
def folder() -> str:
    return str(demo_model_folder())


@pytest.fixture(scope="module")
def backend(folder: str) -> VllmBackend:
    return open_vllm(f"vllm:{folder}", vllm_args=SMALL)


@pytest.fixture(scope="module")
def engine(folder: str) -> Engine:
    return own_engine(folder)


def test_all_configurations_in_one_batch_give_the_tokens_of_our_own_engine(
    backend: VllmBackend, engine: Engine
) -> None:
    assert dict(backend.default_params) == engine.default_params
    asked = [request for name in SETTINGS for request in requests(name, backend.default_params)]
    assert decoded(backend, asked) == decoded(engine, asked)


def test_rows_are_the_same_alone_and_beside_others(backend: VllmBackend) -> None:
    asked = requests("sampling", backend.default_params, generation_seed=8)
    alone: dict[Any, Any] = {}
    for request in asked:
        alone |= decoded(backend, [request])
    others = [
        request
        for seed in range(8)
        for request in requests(f"seed {seed}", backend.default_params, **WARM, generation_seed=seed)
    ]
    beside = decoded(backend, [*others[:12], *asked, *others[12:]])
    assert {key: found for key, found in beside.items() if key[0] == "sampling"} == alone
    assert backend.stats["prefill_tokens_saved"] >= 0


WARM = {"do_sample": True, "top_k": 0, "temperature": 1.1}


def test_its_beam_search_runs_beside_sampled_rows(backend: VllmBackend, engine: Engine) -> None:
    asked = requests("beams", backend.default_params, num_beams=3, length_penalty=1.2)
    sampled = requests("sampling", backend.default_params)
    found = decoded(backend, [*asked[:1], *sampled, *asked[1:]])
    assert {key: one for key, one in found.items() if key[0] == "sampling"} == decoded(engine, sampled)
    assert all(one.text and len(one.token_ids) <= 20 for key, one in found.items() if key[0] == "beams")


def test_a_cancelled_trial_leaves_the_engine(backend: VllmBackend) -> None:
    kept = requests("kept", backend.default_params, max_new_tokens=4)
    backend.submit([*requests("pruned", backend.default_params, max_new_tokens=200, eos_token_id=None), *kept])
    found = backend.poll()
    backend.cancel("pruned")
    while len(found) < len(kept):
        found += backend.poll()
    assert {item.request.tag for item in found} == {"kept"}
    started = time.perf_counter()
    assert backend.poll() == []
    assert time.perf_counter() - started < 1


def test_vllms_own_sampler_takes_what_is_its_own(backend: VllmBackend) -> None:
    own = VllmBackend(_WithOwnSampler(backend))
    asked = requests("own", backend.default_params, **WARM, presence_penalty=0.5, min_p=0.02)
    assert own.refusal(asked[0].params) is None
    assert decoded(own, asked) == decoded(own, asked)
    hot = requests("hot", backend.default_params, do_sample=True, temperature=2.5)[0].params
    assert "temperature" in str(own.refusal(hot))
    assert backend.refusal(hot) is None
    assert "typical_p" in str(own.refusal(requests("typical", backend.default_params)[0].params))


class _WithOwnSampler:
    """The same vLLM, whose logits processor is not asked."""

    def __init__(self, backend: VllmBackend) -> None:
        self._engine = backend._engine
        self.facts = replace(backend.facts, picks_by_row=False)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)


def test_forms_of_the_answer_hold_under_our_own_choice(backend: VllmBackend) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "boolean"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    asked = requests("form", backend.default_params, **WARM, max_new_tokens=48, response_format=form)
    for completion in decoded(backend, asked[:2]).values():
        if completion.finish_reason == "eos":
            assert isinstance(json.loads(completion.text)["a"], bool)
        else:
            assert completion.text.lstrip().startswith("{")


def test_a_prompt_without_room_fails_alone(backend: VllmBackend) -> None:
    asked = requests("long", backend.default_params)
    long = Request("long", 9, "word " * 600, asked[0].params)
    backend.submit([long, *asked])
    found = []
    while len(found) < 4:
        found += backend.poll()
    failed = [item for item in found if item.error is not None]
    assert [item.request.row for item in failed] == [9]


def test_the_processor_follows_rows_that_change_places() -> None:
    from vllm import SamplingParams
    from vllm.v1.sample.logits_processor import BatchUpdate, MoveDirectionality

    from llmsearch_optuna.backends.vllm.logits_processor import RowKeyedSampler

    processor = RowKeyedSampler(None, torch.device("cpu"), False)
    rows = [SamplingParams(temperature=0, extra_args={ARGUMENT: settings(seed)}) for seed in range(3)]
    plain = SamplingParams(temperature=0)
    added = [(0, rows[0], [5], []), (1, plain, [6], []), (2, rows[1], [7], []), (3, rows[2], [8], [])]
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(1))
    processor.update_state(BatchUpdate(batch_size=4, removed=[], added=added, moved=[]))
    first = processor.apply(logits.clone())
    assert torch.equal(first[1], logits[1])
    assert [int(row.isfinite().sum()) for row in first] == [1, 50, 1, 1]
    moves = [(3, 0, MoveDirectionality.UNIDIRECTIONAL), (1, 2, MoveDirectionality.SWAP)]
    processor.update_state(BatchUpdate(batch_size=3, removed=[0], added=[], moved=moves))
    second = processor.apply(logits[[3, 2, 1]].clone())
    assert torch.equal(second, first[[3, 2, 1]])
    processor.update_state(None)
    processor.update_state(BatchUpdate(batch_size=1, removed=[1, 2], added=[(0, plain, [9], [])], moved=[]))
    assert torch.equal(processor.apply(logits[:1].clone()), logits[:1])


def test_the_processor_refuses_what_it_cannot_do() -> None:
    from vllm import SamplingParams

    from llmsearch_optuna.backends.vllm.logits_processor import RowKeyedSampler

    RowKeyedSampler.validate_params(SamplingParams())
    RowKeyedSampler.validate_params(SamplingParams(temperature=0, extra_args={ARGUMENT: settings(1)}))
    for wrong in (
        SamplingParams(temperature=0, extra_args={ARGUMENT: "?"}),
        SamplingParams(temperature=1, extra_args={ARGUMENT: settings(1)}),
        SamplingParams(temperature=1, n=2, extra_args={ARGUMENT: settings(1)}),
    ):
        with pytest.raises(ValueError) as refused:
            RowKeyedSampler.validate_params(wrong)
        assert MARK in str(refused.value)


def settings(seed: int) -> str:
    params = {"max_new_tokens": 5, "do_sample": True, "top_k": 0, "generation_seed": seed}
    return RowSettings(GenerationParams.of(params)).to_json()


def test_a_study_that_is_killed_goes_on(folder: str, tmp_path: Path) -> None:
    call = (
        "from tests.vllm.setups import SMALL, study\n"
        f"if __name__ == '__main__': study('vllm:{folder}', {str(tmp_path)!r}, vllm_args=SMALL)\n"
    )
    script = tmp_path / "study.py"
    script.write_text(call)
    root = Path(__file__).parents[2]
    command = [
        sys.executable,
        "-c",
        f"import sys, runpy; sys.path.insert(0, {str(root)!r}); runpy.run_path({str(script)!r}, run_name='__main__')",
    ]
    first = subprocess.Popen(command, cwd=root)
    until = time.monotonic() + 200
    while rows_in(tmp_path) < 4:
        assert first.poll() is None
        assert time.monotonic() < until
        time.sleep(0.1)
    core = psutil.Process(first.pid).children(recursive=True)
    first.kill()
    first.wait()
    for process in core:  # vLLM's core outlives a parent that is killed
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    kept = rows_in(tmp_path)
    result = study(f"vllm:{folder}", str(tmp_path), vllm_args=SMALL)
    assert 4 <= kept < rows_in(tmp_path)
    assert [trial.state.name for trial in result.trials] == ["COMPLETE"] * 3


def test_a_dead_core_is_not_now(folder: str, tmp_path: Path) -> None:
    from vllm import LLM

    before = set(psutil.Process().children())
    llm = LLM(folder, dtype="float32", enable_chunked_prefill=False, **SMALL)
    backend = VllmBackend(LlmStepEngine(llm))
    assert not backend.facts.picks_by_row
    backend.submit(requests("dead", backend.default_params, max_new_tokens=300, eos_token_id=None))
    core = next(
        child
        for child in psutil.Process().children()
        if child not in before and "EngineCore" in " ".join([child.name(), *child.cmdline()])
    )
    core.kill()
    with pytest.raises(EngineUnavailableError, match="Nothing that was decoded is lost"):
        backend.poll()
    backend.cancel("dead")
