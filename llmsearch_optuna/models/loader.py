"""A model and its tokenizer, however the user brings them: loaded, ready to decode, and named by what they are.

Nothing is seeded, no code of a hub repository runs unless asked for, and a user's tokenizer is never changed. How
tokens are made is not known here.
"""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.hub import cached_file

from llmsearch_optuna.errors import InputError
from llmsearch_optuna.fingerprint.weights import hash_tokenizer, hash_weights
from llmsearch_optuna.models.gguf_sampling import take_recommended
from llmsearch_optuna.models.quantized import load_with_autoawq, needs_autoawq, quantization_of, require, torch_dtype
from llmsearch_optuna.models.tokenization import Positions

_log = logging.getLogger("llmsearch_optuna.models.loader")


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode with a tokenizer that pads as decoding needs.

    Attributes:
        model: The transformers model that decodes.
        tokenizer: A copy of the user's tokenizer with a pad token; it pads on the left (on the right for
            encoder-decoder models, whose prompts are read by the encoder).
        name: A short name for tables and study names: the last part of the path or hub name.
        origin: What counts beside the weights: the adapter.
    """

    model: Any
    tokenizer: Any
    name: str
    origin: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def fingerprint(self) -> str:
        """A hash over all weights, in hex; reads them once (about a second a gigabyte)."""
        return hash_weights(self.model)

    @property
    def description(self) -> dict[str, Any]:
        """What counts in a study's fingerprint: weights, their type, architecture and tokenizer, but not the path."""
        config = self.model.config
        rope = getattr(_text_config(config), "rope_parameters", None)
        return {
            "weights": self.fingerprint,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "architecture": type(self.model).__name__,
            "config": type(config).__name__,
            "rope": dict(rope) if isinstance(rope, Mapping) else None,
            "quantization": quantization_of(config),
            **hash_tokenizer(self.tokenizer),
            **self.origin,
        }

    @property
    def positions(self) -> Positions:
        """How many tokens there is room for."""
        return Positions.of(self.model.config)


def load(
    model: Any,
    tokenizer: Any = None,
    *,
    revision: str | None = None,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    trust_remote_code: bool = False,
    adapter: str | Path | None = None,
    device_map: Any = None,
    gguf_file: str | None = None,
) -> LoadedModel:
    """Return the model and its tokenizer, ready to decode.

    Args:
        model: A transformers model, taken as it is; a folder, .gguf file or hub name; a model loaded with AutoAWQ or
            PEFT, whose inner transformers model is taken.
        tokenizer: A tokenizer, folder or hub name; None finds the one that belongs to the model.
        revision: Branch, tag or commit on the hub.
        dtype: ``"auto"`` takes the checkpoint's own, but float32 on a CPU, which decodes faster than bfloat16 there.
        device: ``"auto"`` takes CUDA, MPS or the CPU, whichever is there first. A model that was loaded already
            stays where it is unless another device is named.
        trust_remote_code: Run code that comes with the checkpoint. Off unless asked.
        adapter: A PEFT adapter to put on the model: a folder or hub name.
        device_map: Handed to transformers, for models that are spread over devices (needs accelerate).
        gguf_file: The .gguf file in the folder or repository that ``model`` names.

    Raises:
        InputError: The model or tokenizer cannot be loaded; the message says what to install or where to look.
    """
    if isinstance(model, str | Path):
        if dtype != "auto":
            torch_dtype(dtype)
        made, source = _from_files(str(model), revision, dtype, device, trust_remote_code, device_map, gguf_file)
    else:
        made, source = _unwrapped(model), {}
        if device != "auto" and made.device != (wanted := pick_device(device)):
            made.to(wanted)
    if adapter is not None:
        _put_on(made, adapter)
    made.eval()
    found = _tokenizer(made, tokenizer, source, revision, trust_remote_code)
    _warn_if_foreign(found, made)
    name = Path(str(model if isinstance(model, str | Path) else made.name_or_path or type(made).__name__))
    return LoadedModel(
        model=made,
        tokenizer=found,
        name=name.stem if name.suffix == ".gguf" else name.name,
        origin={} if adapter is None else {"adapter": Path(adapter).name},
    )


def pick_device(device: str | torch.device = "auto") -> torch.device:
    """Return the device that ``"auto"`` means here: CUDA, then MPS, then the CPU."""
    if device != "auto":
        return _named_device(device)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _named_device(device: str | torch.device) -> torch.device:
    try:
        named = torch.device(device)
    except (RuntimeError, TypeError):
        raise InputError(
            f"device={str(device)!r} is no device; give 'auto', 'cpu', 'cuda', 'cuda:1' or 'mps'"
        ) from None
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(named.type, True):
        raise InputError(
            f"device={str(device)!r}: this torch ({torch.__version__}) finds none here; give 'auto' for what there is"
        )
    return named


def load_tokenizer(place: str | Path) -> Any:
    """Return a tokenizer from a folder or hub id, for a model that decodes elsewhere.

    Raises:
        InputError: It cannot be loaded.
    """
    with _load_errors(f"the tokenizer {str(place)!r}"):
        return AutoTokenizer.from_pretrained(place)


def ready_tokenizer(tokenizer: Any, *, is_encoder_decoder: bool) -> Any:
    """Return a copy of a tokenizer with a pad token and the padding side that decoding needs.

    The pad token is the end-of-sequence token where there is none: padding is masked, so its identity is never seen.
    """
    ready = copy.deepcopy(tokenizer)
    ready.padding_side = "right" if is_encoder_decoder else "left"
    if ready.pad_token_id is None:
        ready.pad_token = ready.eos_token or ready.unk_token or ready.convert_ids_to_tokens(0)
    return ready


def _from_files(
    name: str,
    revision: str | None,
    dtype: str | torch.dtype,
    device: str | torch.device,
    trust_remote_code: bool,
    device_map: Any,
    gguf_file: str | None,
) -> tuple[Any, dict[str, Any]]:
    """Load a model; the second value is where its tokenizer is, as keywords of ``from_pretrained``."""
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        path, gguf_file = path.parent, path.name
    elif _looks_like_path(name) and not path.exists():
        raise InputError(f"model={name!r}: there is no such folder or file (looked for from {Path.cwd()})")
    place = str(path) if path.exists() else name
    source: dict[str, Any] = {"pretrained_model_name_or_path": place}
    auto: Any = AutoModelForCausalLM
    quantization: str | None = None
    with _load_errors(f"model={name!r}"):
        if gguf_file is not None:
            require("gguf", f"model={name!r}")
            source["gguf_file"] = gguf_file
        else:
            _refuse_adapter(path, name)
            config = AutoConfig.from_pretrained(place, revision=revision, trust_remote_code=trust_remote_code)
            auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else auto
            quantization = quantization_of(config)
            if quantization is not None:
                require(quantization, f"model={name!r}")
        chosen = pick_device(device)
        if device_map is None and quantization is not None:
            device_map = {"": str(chosen)}  # packed weights cannot be moved afterwards
        if needs_autoawq(quantization):
            options: dict[str, Any] = {"revision": revision, "dtype": dtype, "trust_remote_code": trust_remote_code}
            return load_with_autoawq(place, device_map, **options), source
        wanted = torch.float32 if dtype == "auto" and chosen.type == "cpu" and quantization is None else dtype
        made = auto.from_pretrained(
            **source, revision=revision, dtype=wanted, trust_remote_code=trust_remote_code, device_map=device_map
        )
        if gguf_file is not None:
            take_recommended(made, _gguf_path(path, name, gguf_file, revision))
    return (made if device_map is not None else made.to(chosen)), source


def _gguf_path(folder: Path, name: str, gguf_file: str, revision: str | None) -> str:
    """Where the file is: in the folder, or in the cache of a hub repository that was loaded just now."""
    if folder.exists():
        return str(folder / gguf_file)
    return str(cached_file(name, gguf_file, revision=revision))


def _refuse_adapter(path: Path, name: str) -> None:
    settings = path / "adapter_config.json"
    if settings.is_file() and not (path / "config.json").exists():
        base = json.loads(settings.read_text(encoding="utf-8")).get("base_model_name_or_path")
        raise InputError(
            f"model={name!r} is a PEFT adapter: give the model that it was made for as model="
            f"{f' (its settings name {base!r})' if base else ''}, and adapter={name!r}"
        )


def _unwrapped(model: Any) -> Any:
    """Return the transformers model inside what AutoAWQ or PEFT made of it."""
    if callable(getattr(model, "get_base_model", None)):  # PEFT: the base model carries the adapter's layers
        if any(getattr(part, "is_prompt_learning", False) for part in getattr(model, "peft_config", {}).values()):
            raise InputError("prompt-tuning adapters act outside the model they wrap and cannot be searched")
        model = model.get_base_model()
    if not isinstance(model, PreTrainedModel) and isinstance(getattr(model, "model", None), PreTrainedModel):
        model = model.model
    if not callable(getattr(model, "generate", None)) or not hasattr(model, "config"):
        raise InputError(
            f"model of type {type(model).__name__} cannot generate text: give a transformers model with a language "
            "model head, a folder or a hub name"
        )
    return model


def _put_on(model: Any, adapter: str | Path) -> None:
    require("peft", f"adapter={str(adapter)!r}")
    if _looks_like_path(str(adapter)) and not Path(adapter).expanduser().exists():
        raise InputError(f"adapter={str(adapter)!r}: there is no such folder (looked for from {Path.cwd()})")
    with _load_errors(f"adapter={str(adapter)!r}"):
        model.load_adapter(str(adapter))


def _tokenizer(model: Any, given: Any, source: Mapping[str, Any], revision: str | None, trust: bool) -> Any:
    if given is not None and not isinstance(given, str | Path):
        if not isinstance(given, PreTrainedTokenizerBase):
            raise InputError(f"tokenizer of type {type(given).__name__} is no transformers tokenizer, folder or name")
        return ready_tokenizer(given, is_encoder_decoder=model.config.is_encoder_decoder)
    where: dict[str, Any] = dict(source)
    if given is not None:
        where = {"pretrained_model_name_or_path": str(given)}
    elif not where:
        where = {"pretrained_model_name_or_path": getattr(model, "name_or_path", "")}
    place = where["pretrained_model_name_or_path"]
    if not place:
        raise InputError(
            "the model does not say where its tokenizer is; give tokenizer= (an object, folder or hub name)"
        )
    with _load_errors(f"the tokenizer {place!r} (give tokenizer= to take another)"):
        found = AutoTokenizer.from_pretrained(
            **where, revision=revision if given is None else None, trust_remote_code=trust
        )
    return ready_tokenizer(found, is_encoder_decoder=model.config.is_encoder_decoder)


def _warn_if_foreign(tokenizer: Any, model: Any) -> None:
    embeddings = model.get_input_embeddings()
    size = getattr(getattr(embeddings, "weight", None), "shape", (None,))[0]
    if size is not None and len(tokenizer) > size:
        _log.warning(
            "the tokenizer has %d tokens and the model only %d: is it the model's own? A prompt with one of the "
            "others will fail",
            len(tokenizer),
            size,
        )


@contextmanager
def _load_errors(what: str) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError, ImportError, KeyError) as problem:
        text = str(problem).strip()
        if "trust_remote_code" in text:
            advice = "It comes with code of its own: read that code, then allow it with trust_remote_code=True."
        elif isinstance(problem, ImportError):
            advice = "Install what is missing."
        elif isinstance(problem, OSError):
            advice = (
                "Check the name. Without a network give the folder of a downloaded copy "
                "(hf download NAME --local-dir FOLDER, on a machine that has one)."
            )
        else:
            advice = "Causal and encoder-decoder language models of transformers can be loaded."
        raise InputError(f"{what} cannot be loaded: {text}\n{advice}") from problem


def _text_config(config: Any) -> Any:
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def _looks_like_path(name: str) -> bool:
    return name.startswith((".", "/", "~", "\\")) or name.count("/") > 1 or name.endswith(".gguf")
