"""Writes the recommended parameters as the program reads them that will use them, and the evidence beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import GenerationConfig

from llmsearch_optuna.analysis.export_formats import files_for
from llmsearch_optuna.engine.sampling.after_thinking import is_after_thinking
from llmsearch_optuna.engine.sampling.params import OWN_NAMES, SERVER_NAMES, GenerationParams
from llmsearch_optuna.optimize.confirm import confirmations
from llmsearch_optuna.optimize.locked_rows import SPECIAL_TOKENS
from llmsearch_optuna.storage.whole_file import write_whole

if TYPE_CHECKING:
    from llmsearch_optuna.analysis.view import StudyView

EVIDENCE = "evidence.json"


def save_generation_config(result: StudyView, folder: str | Path) -> Path:
    """Write `generation_config.json` and `evidence.json` into a folder; returns the path of the first.

    The configuration holds what plain ``model.generate(**inputs)`` applies. The rest (stop strings, which need the
    tokenizer; parameters that are this library's own) stands in the evidence, with the call that applies it.
    """
    target = Path(folder)
    params = GenerationParams.of(result.recommended_params)
    defaults: Mapping[str, Any] = result.settings.get("model_defaults", {})
    special = {name: defaults[name] for name in SPECIAL_TOKENS if defaults.get(name) is not None}
    plain = {name: value for name, value in params.to_hugging_face().items() if name != "stop_strings"}
    evidence = _evidence_text(result, params)
    text = GenerationConfig(**(special | plain)).to_json_string(use_diff=True)
    path = write_whole(target / "generation_config.json", text, "the configuration")
    write_whole(target / EVIDENCE, evidence, "the evidence")
    return path


def save_for(result: StudyView, program: str, folder: str | Path) -> list[Path]:
    """Write the recommended parameters as a program reads them, and the evidence beside them; returns the paths.

    Args:
        result: The study.
        program: ``"transformers"``, or one of `export_formats.PROGRAMS`.
        folder: Where to.

    Raises:
        InputError: The program is unknown, or cannot be told some of the parameters; names them, and writes nothing.
    """
    if program == "transformers":
        config = save_generation_config(result, folder)
        return [config, config.parent / EVIDENCE]
    params = GenerationParams.of(result.recommended_params)
    texts = files_for(program, params, result.recommended_task_options)
    texts = {**texts, EVIDENCE: _evidence_text(result, params)}
    return [write_whole(Path(folder) / name, text, f"the parameters for {program}") for name, text in texts.items()]


def _evidence_text(result: StudyView, params: GenerationParams) -> str:
    return json.dumps(_evidence(result, params), indent=2, default=str) + "\n"


def _evidence(result: StudyView, params: GenerationParams) -> dict[str, Any]:
    verdict = result.verdict
    elsewhere = {
        name: value
        for name, value in params.canonical.items()
        if name in OWN_NAMES + SERVER_NAMES or is_after_thinking(name)
    }
    return {
        "recommended_params": params.canonical,
        **({"task_options": task_options} if (task_options := result.recommended_task_options) else {}),
        "not_in_generation_config": elsewhere,
        "call": _call(params.drawing, elsewhere),
        "verdict": None if verdict is None else verdict.to_json(),
        "confirmations": [found.to_json() for found in confirmations(result.opened)],
        "summary": result.summary,
        "best_params": result.best_params,
        "baseline_params": result.baseline_params,
        "study": {"name": result.study.study_name, "storage": result.opened.url, "trials": len(result.trials)},
        "settings": result.settings,
        "versions": result.opened.versions,
    }


def _call(params: GenerationParams, elsewhere: Mapping[str, Any]) -> str:
    """The call that decodes with all recommended parameters, once the configuration is loaded."""
    drawn = f", num_return_sequences={params.samples}" if params.samples > 1 else ""
    if not set(elsewhere) - {"generation_seed", "samples"}:
        return f"model.generate(**inputs{drawn})"
    if set(elsewhere) <= {"stop", "generation_seed", "samples"}:
        return f"model.generate(**inputs{drawn}, stop_strings={list(params.stop)!r}, tokenizer=tokenizer)"
    engine = "llmsearch_optuna.Engine(model, tokenizer)"
    if params.samples > 1:
        return f"llmsearch_optuna.score({engine}, data, {params.canonical!r}, ...)"
    return f"{engine}.generate(prompts, {params.canonical!r})"
