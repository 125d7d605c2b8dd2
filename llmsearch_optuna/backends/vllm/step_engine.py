"""The one place that speaks to vLLM: requests in, steps, tokens out, and what its configuration says.

Of vLLM 0.32 these are used: `LLM.llm_engine` with `add_request`, `step`, `abort_request`, `vllm_config`, `model_config`
and `engine_core` (see `_wake_when_dead`), `LLM.get_tokenizer` and `LLM.beam_search`. None has an underscore, but only
`LLM` is documented: `make test-vllm` tries each of them on a real engine.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

from llmsearch_optuna.backends.vllm.sampling_arguments import PROCESSOR
from llmsearch_optuna.engine.sampling.params import model_defaults
from llmsearch_optuna.errors import EngineUnavailableError, InputError
from llmsearch_optuna.fingerprint.weights import hash_tokenizer

VLLM_PREFIX = "vllm:"

_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.gguf")


@dataclass(frozen=True, slots=True)
class StepOutput:
    """New tokens of one request.

    Attributes:
        request_id: Which one.
        token_ids: Those since its last output.
        finish_reason: Why vLLM has ended it ("stop", "length", "abort", ...); None while it goes on.
        cached_tokens: How many tokens of its prompt were in the prefix cache.
    """

    request_id: str
    token_ids: tuple[int, ...]
    finish_reason: str | None = None
    cached_tokens: int = 0


@dataclass(frozen=True)
class ModelFacts:
    """What vLLM says of its model.

    Attributes:
        name: For people.
        description: What texts depend on; for a study's fingerprint.
        tokenizer: The model's.
        default_params: Its generation configuration.
        slots: How many requests it works on at once.
        context: How many tokens a prompt and its completion may have.
        picks_by_row: Whether our logits processor is loaded.
        caches_prefixes: Whether prefix caching is on.
    """

    name: str
    description: Mapping[str, Any]
    tokenizer: Any
    default_params: Mapping[str, Any]
    slots: int
    context: int
    picks_by_row: bool
    caches_prefixes: bool


class StepEngine(Protocol):
    """What the backend asks of vLLM."""

    @property
    def facts(self) -> ModelFacts:
        """What is known of the model."""
        ...

    def problem(self, arguments: Mapping[str, Any]) -> str | None:
        """What vLLM has against these arguments of `SamplingParams`; None where it takes them."""
        ...

    def add(self, request_id: str, prompt_ids: Sequence[int], arguments: Mapping[str, Any], *, streams: bool) -> None:
        """Queue a request; ``streams`` asks for its tokens as they come, not at its end."""
        ...

    def step(self) -> list[StepOutput]:
        """Work on what is queued, for one token of each request in the batch."""
        ...

    def abort(self, request_ids: Sequence[str]) -> None:
        """Break requests off."""
        ...

    def beam_search(self, prompts: Sequence[Sequence[int]], arguments: Mapping[str, Any]) -> list[tuple[int, ...]]:
        """The tokens of the best beam of each prompt; nothing else may be under way."""
        ...


def is_llm(model: Any) -> bool:
    """Whether an object is a `vllm.LLM`; vLLM is not imported for it."""
    return any(kind.__name__ == "LLM" and kind.__module__.startswith("vllm.") for kind in type(model).__mro__)


def load_llm(
    name: str,
    *,
    dtype: Any = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    batch_size: int | None = None,
    vllm_args: Mapping[str, Any] | None = None,
) -> Any:
    """Make a `vllm.LLM` with our logits processor and prefix caching.

    Args:
        name: Folder or hub id of a model.
        dtype: By default the checkpoint's own, on a CPU float32.
        revision: Branch, tag or commit of a hub id.
        trust_remote_code: Whether code that comes with the model may run.
        batch_size: Most requests that are worked on at once.
        vllm_args: More arguments of `vllm.LLM`; they have the last word.

    Raises:
        InputError: vLLM is not installed, or cannot load the model.
        EngineUnavailableError: There is no room for it now.
    """
    # Of the two model runners only this one takes logits processors of this interface.
    os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")
    try:
        from vllm import LLM
        from vllm.platforms import current_platform
    except ModuleNotFoundError as problem:
        raise InputError(
            f"model={VLLM_PREFIX + name!r} needs vLLM ({problem}): pip install 'llmsearch-optuna[vllm]'"
        ) from problem
    is_cpu = current_platform.is_cpu()
    arguments: dict[str, Any] = {
        "dtype": str(dtype or ("float32" if is_cpu else "auto")).removeprefix("torch."),
        "revision": revision,
        "trust_remote_code": trust_remote_code,
        "enable_prefix_caching": True,
        "logits_processors": [PROCESSOR],
        "disable_log_stats": True,
        # vLLM 0.32 on a CPU: prompts that are split end the engine where rows have seeds.
        **({"enable_chunked_prefill": False} if is_cpu else {}),
        **({} if batch_size is None else {"max_num_seqs": batch_size}),
        **(vllm_args or {}),
    }
    try:
        return LLM(name, **arguments)
    except Exception as problem:
        if is_out_of_memory(problem):
            raise EngineUnavailableError(f"vLLM has no room for {name!r} now: {problem}") from problem
        raise InputError(f"vLLM cannot load model={name!r}: {problem}") from problem


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, in this process or in vLLM's own."""
    if isinstance(error, MemoryError) or any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__):
        return True
    said = str(error).lower()
    return any(words in said for words in ("out of memory", "no available memory", "free memory", "allocate memory"))


class LlmStepEngine:
    """A `vllm.LLM`, asked request by request.

    Args:
        llm: The user's, or one that `load_llm` made.

    Raises:
        InputError: It has no tokenizer.
    """

    def __init__(self, llm: Any) -> None:
        self._llm = llm
        self._engine = llm.llm_engine
        self.facts = _facts(llm)
        _wake_when_dead(llm)

    def problem(self, arguments: Mapping[str, Any]) -> str | None:
        """What vLLM has against these arguments of `SamplingParams`; None where it takes them."""
        try:
            _sampling_params(arguments, streams=False)
        except Exception as problem:  # vLLM's own, which are no ValueErrors
            return str(problem)
        return None

    def add(self, request_id: str, prompt_ids: Sequence[int], arguments: Mapping[str, Any], *, streams: bool) -> None:
        """Queue a request; ``streams`` asks for its tokens as they come, not at its end."""
        from vllm import TokensPrompt

        prompt = TokensPrompt(prompt_token_ids=list(prompt_ids))
        self._engine.add_request(request_id, prompt, _sampling_params(arguments, streams=streams))

    def step(self) -> list[StepOutput]:
        """Work on what is queued, for one token of each request in the batch."""
        return [
            StepOutput(
                output.request_id,
                tuple(output.outputs[0].token_ids),
                output.outputs[0].finish_reason,
                output.num_cached_tokens or 0,
            )
            for output in self._engine.step()
        ]

    def abort(self, request_ids: Sequence[str]) -> None:
        """Break requests off."""
        self._engine.abort_request(list(request_ids))

    def beam_search(self, prompts: Sequence[Sequence[int]], arguments: Mapping[str, Any]) -> list[tuple[int, ...]]:
        """The tokens of the best beam of each prompt; nothing else may be under way."""
        from vllm import TokensPrompt
        from vllm.sampling_params import BeamSearchParams

        asked = [TokensPrompt(prompt_token_ids=list(prompt)) for prompt in prompts]
        found = self._llm.beam_search(asked, BeamSearchParams(**arguments))
        return [tuple(output.sequences[0].tokens[len(prompt) :]) for output, prompt in zip(found, prompts, strict=True)]


def _wake_when_dead(llm: Any) -> None:
    """Let a step end that waits for a core which was killed.

    vLLM 0.32 notes that its core's process is gone, but what waits for the core's answer is told only of errors that
    the core itself could still send; killed for its memory, it sends none.
    """
    client = llm.llm_engine.engine_core
    resources, answers = getattr(client, "resources", None), getattr(client, "outputs_queue", None)
    if resources is None or answers is None:  # the core is in this process
        return
    alive = weakref.ref(llm)

    def watch() -> None:
        while alive() is not None:
            if resources.engine_dead:
                answers.put_nowait(EngineUnavailableError("the process of vLLM's engine core has ended"))
                return
            time.sleep(0.5)

    threading.Thread(target=watch, name="llmsearch-vllm-watch", daemon=True).start()


def _sampling_params(arguments: Mapping[str, Any], *, streams: bool) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

    given = dict(arguments)
    if "structured_outputs" in given:
        given["structured_outputs"] = StructuredOutputsParams(**given["structured_outputs"])
    kind = RequestOutputKind.DELTA if streams else RequestOutputKind.FINAL_ONLY
    return SamplingParams(**given, output_kind=kind)


def _facts(llm: Any) -> ModelFacts:
    engine, tokenizer = llm.llm_engine, llm.get_tokenizer()
    config, vllm_config = engine.model_config, engine.vllm_config
    if tokenizer is None:
        raise InputError("this vllm.LLM was made without a tokenizer; leave out skip_tokenizer_init")
    picks_by_row = _has_processor(config.logits_processors or ())
    return ModelFacts(
        name=Path(config.model).name,
        description={
            "engine": "vllm",
            "sampler": "row-keyed" if picks_by_row else "vllm",
            **_weights(config.model, config.revision),
            "dtype": str(config.dtype).removeprefix("torch."),
            "quantization": config.quantization,
            "architecture": list(config.architectures),
            **hash_tokenizer(tokenizer),
        },
        tokenizer=tokenizer,
        default_params=_defaults(config, tokenizer),
        slots=int(vllm_config.scheduler_config.max_num_seqs),
        context=int(config.max_model_len),
        picks_by_row=picks_by_row,
        caches_prefixes=bool(vllm_config.cache_config.enable_prefix_caching),
    )


def _has_processor(loaded: Iterable[Any]) -> bool:
    module, _, name = PROCESSOR.partition(":")
    return any(
        processor == PROCESSOR
        or (isinstance(processor, type) and (processor.__module__, processor.__name__) == (module, name))
        for processor in loaded
    )


def _defaults(config: Any, tokenizer: Any) -> dict[str, Any]:
    """The model's generation configuration, also where vLLM was told to leave it out."""
    from transformers import GenerationConfig

    said = dict(config.try_get_generation_config() or {})
    eos = getattr(config.hf_config, "eos_token_id", None)
    said.setdefault("eos_token_id", tokenizer.eos_token_id if eos is None else eos)
    return model_defaults(SimpleNamespace(generation_config=GenerationConfig.from_dict(said)))


def _weights(model: str, revision: str | None) -> dict[str, Any]:
    """What identifies the weights: a hash of their files in a folder, the commit of a hub id."""
    place = Path(model)
    if not place.exists():
        return {"model": model, "revision": _commit(model, revision)}
    files = [place] if place.is_file() else [file for kind in _WEIGHTS for file in sorted(place.glob(kind))]
    total = hashlib.blake2b(digest_size=20)
    for file in files:
        with file.open("rb") as opened:
            total.update(hashlib.file_digest(opened, "blake2b").digest())
    return {"weights": total.hexdigest()}


def _commit(model: str, revision: str | None) -> str | None:
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(model, "config.json", revision=revision)
    return Path(config).parent.name if isinstance(config, str) else revision
