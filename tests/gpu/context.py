"""What all checks share: the device, models with random weights, prompts, clocks."""

from __future__ import annotations

import contextlib
import gc
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch
import transformers as hf
from tokenizers import Tokenizer, models, pre_tokenizers

Result = dict[str, Any]


class Context:
    """One device, and the models that several checks use on it."""

    def __init__(self, small: bool) -> None:
        hf.logging.set_verbosity_error()
        self.small = small
        self.cuda = torch.cuda.is_available() and not small
        self.device = torch.device("cuda", 0) if self.cuda else torch.device("cpu")
        if not self.cuda:
            torch.set_num_threads(1)
        self._kept: dict[Any, Any] = {}

    def sync(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def clean(self) -> None:
        gc.collect()
        if self.cuda:
            with contextlib.suppress(Exception):
                torch.cuda.set_per_process_memory_fraction(1.0)
                torch.cuda.empty_cache()

    def tokenizer(self, vocabulary: int) -> Any:
        """Words w0, w1, … ; nothing special, so nothing ends early."""
        key = ("tokenizer", vocabulary)
        if key not in self._kept:
            raw = Tokenizer(models.WordLevel({f"w{i}": i for i in range(vocabulary)}, unk_token="w0"))
            raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
            self._kept[key] = hf.PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="w0", pad_token="w0")
        return self._kept[key]

    def tiny(self, family: str, device: torch.device | None = None, dtype: torch.dtype | None = None) -> Any:
        """A tiny random model whose logits are far from flat, so that greedy choices are far from ties."""
        sizes = dict(
            vocab_size=499, hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=2048, bos_token_id=None, eos_token_id=None,
            pad_token_id=None, tie_word_embeddings=False,
        )  # fmt: skip
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(7)
            if family == "llama":
                model = hf.LlamaForCausalLM(hf.LlamaConfig(**sizes))
            elif family == "qwen3":
                model = hf.Qwen3ForCausalLM(hf.Qwen3Config(**sizes, head_dim=16))
            else:
                types = ["sliding_attention", "full_attention", "sliding_attention"]
                config = hf.Gemma3TextConfig(**sizes, head_dim=16, sliding_window=8, layer_types=types)
                model = hf.Gemma3ForCausalLM(config)
            for parameter in model.parameters():
                if parameter.dim() == 2:
                    parameter.normal_(0.0, 0.15)
            model.lm_head.weight.normal_(0.0, 0.6)
        return plain_generation(model).to(device=device or self.device, dtype=dtype or torch.float32).eval()

    def big(self, layers: int, hidden: int, inner: int, heads: int, groups: int, dim: int, vocabulary: int) -> Any:
        """Random weights in bf16, made on the device; logits with a deviation of 6: a few tokens hold most."""
        config = hf.LlamaConfig(
            vocab_size=vocabulary, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers,
            num_attention_heads=heads, num_key_value_heads=groups, head_dim=dim, max_position_embeddings=8192,
            bos_token_id=None, eos_token_id=None, pad_token_id=None, tie_word_embeddings=False,
        )  # fmt: skip
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.bfloat16 if self.cuda else torch.float32)
        torch.manual_seed(3)
        try:
            with torch.device(self.device):
                model = hf.LlamaForCausalLM(config)
        finally:
            torch.set_default_dtype(before)
        with torch.no_grad():
            model.lm_head.weight.normal_(0.0, 6.0 / hidden**0.5)
        return plain_generation(model).eval()

    def model_1b(self) -> Any:
        """The shape of Llama-3.2-1B."""
        if "1b" not in self._kept:
            shape = (2, 64, 128, 4, 2, 16, 2003) if self.small else (16, 2048, 8192, 32, 8, 64, 128256)
            self._kept["1b"] = self.big(*shape)
        return self._kept["1b"]

    def drop(self, name: str) -> None:
        """Let go of a model."""
        self._kept.pop(name, None)
        self.clean()

    def prompts(self, count: int, shortest: int, longest: int, vocabulary: int, seed: int = 0) -> list[str]:
        rng = np.random.default_rng(seed)
        lengths = rng.integers(shortest, longest + 1, count)
        return [" ".join(f"w{i}" for i in rng.integers(1, vocabulary, n)) for n in lengths]


def plain_generation(model: Any) -> Any:
    """Nothing of the model's own in the way of generate: no end, no warper."""
    config = model.generation_config
    config.eos_token_id = config.bos_token_id = None
    config.pad_token_id = 0
    config.do_sample = False
    return model


def median_ms(context: Context, work: Callable[[], object], repeats: int, warm: int = 3) -> tuple[float, float]:
    """Median and longest time of a piece of work, the device's part of it included."""
    for _ in range(warm):
        work()
    context.sync()
    spent = []
    for _ in range(repeats):
        begun = time.perf_counter()
        work()
        context.sync()
        spent.append((time.perf_counter() - begun) * 1e3)
    return round(statistics.median(spent), 3), round(max(spent), 3)
