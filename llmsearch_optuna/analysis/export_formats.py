"""Generation parameters in the format of the program that will serve or evaluate the model.

What a program cannot be told is refused by name, so that nothing is lost on the way. Pure functions: parameters in,
texts of files out.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from typing import Any

from llmsearch_optuna.backends.server.dialect import DIALECTS, LLAMA_CPP, Dialect
from llmsearch_optuna.backends.server.request_body import refusal, sampling_fields
from llmsearch_optuna.engine.sampling.param_specs import NAMES_BESIDE_HUGGING_FACE
from llmsearch_optuna.engine.sampling.params import GenerationParams
from llmsearch_optuna.errors import InputError, short

_MEANT_OTHERWISE = ("do_sample", "generation_seed")
"""Say how the others are meant, or belong to our own noise."""

_SEVERAL_CHOICES = ("vllm", "sglang", "openai")
"""Dialects that take ``n``, the number of completions of a request."""

_LLAMA_SERVER_FLAGS = {
    "max_tokens": "--predict",
    "temperature": "--temp",
    "top_k": "--top-k",
    "top_p": "--top-p",
    "min_p": "--min-p",
    "typical_p": "--typical",
    "top_n_sigma": "--top-nsigma",
    "repeat_penalty": "--repeat-penalty",
    "repeat_last_n": "--repeat-last-n",
    "presence_penalty": "--presence-penalty",
    "frequency_penalty": "--frequency-penalty",
    "dry_multiplier": "--dry-multiplier",
    "dry_base": "--dry-base",
    "dry_allowed_length": "--dry-allowed-length",
    "dry_penalty_last_n": "--dry-penalty-last-n",
    "dry_sequence_breakers": "--dry-sequence-breaker",
    "xtc_probability": "--xtc-probability",
    "xtc_threshold": "--xtc-threshold",
    "mirostat": "--mirostat",
    "mirostat_tau": "--mirostat-ent",
    "mirostat_eta": "--mirostat-lr",
    "thinking_budget_tokens": "--reasoning-budget",
}
_GGUF_KEYS = {
    "temperature": "temp",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repeat_penalty": "penalty_repeat",
    "repeat_last_n": "penalty_last_n",
    "xtc_probability": "xtc_probability",
    "xtc_threshold": "xtc_threshold",
    "mirostat": "mirostat",
    "mirostat_tau": "mirostat_tau",
    "mirostat_eta": "mirostat_eta",
}
"""A field of a llama.cpp request -> the end of its key ``general.sampling.*`` in a GGUF file."""

_VLLM_GENERATION_CONFIG = (
    *("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"),
)
"""What vLLM reads from a generation configuration; it reads ``max_new_tokens``, too, as a limit that holds for all."""

_MODELFILE = {
    "max_new_tokens": "num_predict",
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "typical_p": "typical_p",
    "repetition_penalty": "repeat_penalty",
    "repeat_last_n": "repeat_last_n",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "stop": "stop",
}
_MODELFILE_NEUTRAL = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repeat_penalty": 1.0}

_INSPECT = {
    "max_new_tokens": "max_tokens",
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "stop": "stop_seqs",
    "reasoning_effort": "reasoning_effort",
    "thinking_budget": "reasoning_tokens",
    "thinking_token_budget": "reasoning_tokens",
}


def files_for(program: str, params: GenerationParams, task_options: Mapping[str, Any] | None = None) -> dict[str, str]:
    """Return the files that tell a program to use these parameters: name -> text.

    >>> from llmsearch_optuna.engine.sampling.params import GenerationParams
    >>> warm = GenerationParams.of({"max_new_tokens": 8, "do_sample": True, "temperature": 0.7, "top_k": 0})
    >>> print(files_for("ollama", warm)["Modelfile"].splitlines()[1])
    PARAMETER temperature 0.7

    Args:
        program: One of `PROGRAMS`.
        params: What to use.
        task_options: What of the task was searched, as `search` takes it: prompt, system, chat_template_kwargs. It
            stands where the program's files have a place for it.

    Raises:
        InputError: The program is unknown, or cannot be told some of the parameters; names them.
    """
    if program not in PROGRAMS:
        raise InputError(f"--for {program!r} is unknown; give one of {', '.join(PROGRAMS)}")
    return PROGRAMS[program](params.drawing, task_options or {})


def _vllm(params: GenerationParams, task_options: Mapping[str, Any]) -> dict[str, str]:
    fields = _request_fields(DIALECTS["vllm"], params)
    asked = {**fields, **_template_kwargs(task_options)}
    config = {name: fields[name] for name in _VLLM_GENERATION_CONFIG}
    call = ["vllm", "serve", "MODEL", "--override-generation-config", json.dumps(config, sort_keys=True)]
    return {"request.json": _json(asked), "serve.sh": _script(call)}


def _sglang(params: GenerationParams, task_options: Mapping[str, Any]) -> dict[str, str]:
    return {"request.json": _json({**_request_fields(DIALECTS["sglang"], params), **_template_kwargs(task_options)})}


def _llama_cpp(params: GenerationParams, task_options: Mapping[str, Any]) -> dict[str, str]:
    fields = _request_fields(LLAMA_CPP, params)
    flags = [
        part
        for name, flag in _LLAMA_SERVER_FLAGS.items()
        if name in fields
        for value in (fields[name] if isinstance(fields[name], list) else [fields[name]])
        for part in (flag, str(value))
    ]
    template_kwargs = _template_kwargs(task_options)
    for value in template_kwargs.values():
        flags += ["--chat-template-kwargs", json.dumps(value, sort_keys=True)]
    keys = {f"general.sampling.{key}": fields[name] for name, key in _GGUF_KEYS.items() if name in fields}
    return {
        "request.json": _json({**fields, **template_kwargs}),
        "serve.sh": _script(["llama-server", "--model", "MODEL.gguf", *flags]),
        "gguf-metadata.json": _json(keys),
    }


def _ollama(params: GenerationParams, task_options: Mapping[str, Any]) -> dict[str, str]:
    _refuse_others("ollama", params, _MODELFILE)
    values = {**_MODELFILE_NEUTRAL, **_renamed(params, _MODELFILE)}
    lines = ["FROM MODEL"]
    for name, value in values.items():
        lines += [
            f"PARAMETER {name} {json.dumps(item) if isinstance(item, str) else item}"
            for item in (value if isinstance(value, list) else [value])
        ]
    if isinstance(system := task_options.get("system"), str):
        if '"""' in system or system.endswith('"'):
            raise InputError(
                "a Modelfile cannot hold a system message that has three quotation marks or ends with one: "
                f"{short(system)}"
            )
        lines.append(f'SYSTEM """{system}"""')
    return {"Modelfile": "\n".join(lines) + "\n"}


def _openai(params: GenerationParams, task_options: Mapping[str, Any]) -> dict[str, str]:
    fields = _request_fields(DIALECTS["openai"], params)
    messages = ",\n        ".join(json.dumps(message, ensure_ascii=False) for message in _messages(task_options))
    arguments = "".join(f"    {name}={value!r},\n" for name, value in fields.items())
    call = (
        "from openai import OpenAI\n\n"
        "client = OpenAI()\n"
        "completion = client.chat.completions.create(\n"
        '    model="MODEL",\n'
        f"    messages=[{messages}],\n"
        f"{arguments})\n"
        "print(completion.choices[0].message.content)\n"
    )
    return {"request.json": _json(fields), "request.py": call}


def _lm_eval(params: GenerationParams, task_options: Mapping[str, Any]) -> dict[str, str]:
    _refuse_others(
        "lm-eval", params, [name for name in params if name == "stop" or name not in NAMES_BESIDE_HUGGING_FACE]
    )
    values = {"do_sample": False, **params.to_hugging_face()}
    values["max_gen_toks"] = values.pop("max_new_tokens")
    if "stop_strings" in values:
        values["until"] = values.pop("stop_strings")
    call = ["lm-eval", "run", "--model", "hf", "--model_args", "pretrained=MODEL", "--tasks", "TASK"]
    if isinstance(system := task_options.get("system"), str):
        call += ["--system_instruction", system]
    return {
        "gen_kwargs.json": _json(values),
        "evaluate.sh": _script([*call, "--gen_kwargs", json.dumps(values, sort_keys=True)]),
    }


def _inspect(params: GenerationParams, task_options: Mapping[str, Any]) -> dict[str, str]:
    _refuse_others("inspect", params, [*_INSPECT, *(["top_k"] if params.get("top_k") == 0 else [])])
    values = {"temperature": 1.0, "top_p": 1.0, **_renamed(params, _INSPECT)}
    if values.get("top_k") == 0:
        del values["top_k"]
    if isinstance(system := task_options.get("system"), str):
        values["system_message"] = system
    return {
        "generate_config.json": _json(values),
        "evaluate.sh": _script(["inspect", "eval", "TASK", "--generate-config", "generate_config.json"]),
    }


PROGRAMS: Mapping[str, Callable[[GenerationParams, Mapping[str, Any]], dict[str, str]]] = {
    "vllm": _vllm,
    "sglang": _sglang,
    "llama.cpp": _llama_cpp,
    "ollama": _ollama,
    "openai": _openai,
    "lm-eval": _lm_eval,
    "inspect": _inspect,
}


def _template_kwargs(task_options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: task_options[name] for name in ("chat_template_kwargs",) if task_options.get(name)}


def _messages(task_options: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What a chat begins with; ``PROMPT`` where no prompt was searched, and columns in braces where one was."""
    prompt, system = task_options.get("prompt", "PROMPT"), task_options.get("system")
    said = prompt if isinstance(prompt, list) else [{"role": "user", "content": str(prompt)}]
    return said if system is None else [{"role": "system", "content": system}, *said]


def _request_fields(dialect: Dialect, params: GenerationParams) -> dict[str, Any]:
    asked = params.one_sample if dialect.name in _SEVERAL_CHOICES else params
    if (problem := refusal(dialect, asked)) is not None:
        raise InputError(f"these parameters cannot be exported: {problem}")
    return {**sampling_fields(dialect, asked), **({"n": params.samples} if params.samples > 1 else {})}


def _refuse_others(program: str, params: GenerationParams, names: Any) -> None:
    lost = [name for name in params if name not in names and name not in _MEANT_OTHERWISE]
    if lost:
        raise InputError(f"these parameters cannot be exported: {program} does not take {', '.join(lost)}")


def _renamed(params: GenerationParams, names: Mapping[str, str]) -> dict[str, Any]:
    values = {names[name]: value for name, value in params.items() if name in names}
    return values if params.get("do_sample") is True else {**values, "temperature": 0.0}


def _json(values: Mapping[str, Any]) -> str:
    return json.dumps(values, indent=2, sort_keys=True) + "\n"


def _script(call: list[str]) -> str:
    return "#!/bin/sh\n" + shlex.join(call) + "\n"
