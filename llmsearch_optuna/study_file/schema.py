"""The JSON schema of study files, from the model that reads them: editors complete and check with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llmsearch_optuna.study_file.model import StudyFile
from llmsearch_optuna.task.library_task import LIBRARIES

SCHEMA_NAME = "study.schema.json"
PUBLISHED = Path(__file__).parent.parent / "data" / SCHEMA_NAME
"""The schema as it goes with the package; a test keeps it equal to the generated one."""

DIRECTIVE = f"#:schema ./{SCHEMA_NAME}"
"""The first line of a study file: tells editors (Taplo, Even Better TOML) where its schema is."""


def study_file_schema() -> dict[str, Any]:
    """Return the schema, with the names of all generation parameters where a space or a baseline has them."""
    found = StudyFile.model_json_schema()
    found["$defs"] |= {"Fixed": _parameters(searched=False), "Space": _parameters(searched=True), "Searched": _SEARCHED}
    space = found["properties"]["space"]
    space["anyOf"] = [_ref("Space"), {"type": "array", "minItems": 1, "items": _ref("Space")}]
    baseline = found["properties"]["baseline"]
    baseline["anyOf"] = [_ref("Fixed"), {"type": "string"}]
    found["properties"]["baselines"]["anyOf"] = [{"type": "object", "additionalProperties": _ref("Fixed")}]
    found["properties"]["try_first"]["anyOf"] = [{"type": "array", "items": _ref("Fixed")}]
    found["$defs"]["DataSection"] |= {"if": _IS_NO_LIBRARY_TASK, "then": {"required": ["metric"]}}
    return {"$schema": "http://json-schema.org/draft-07/schema#", "title": "llmsearch-optuna study file"} | {
        key: value for key, value in plain(found).items() if key != "title"
    }


def schema_text() -> str:
    """Return the schema as its file has it."""
    return json.dumps(study_file_schema(), indent=1, ensure_ascii=False, sort_keys=True) + "\n"


_IS_NO_LIBRARY_TASK = {"properties": {"path": {"pattern": f"^(?!({'|'.join(LIBRARIES)}):)"}}}
"""Other data come without a metric."""

_SEARCHED: dict[str, Any] = {
    "description": "Searched: {low = 0.1, high = 1.2}, with log = true or step = …, or {choices = […]}.",
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "low": {"type": "number"},
        "high": {"type": "number"},
        "step": {"type": "number", "exclusiveMinimum": 0},
        "log": {"type": "boolean"},
        "choices": {"type": "array", "minItems": 1},
    },
    "oneOf": [{"required": ["low", "high"]}, {"required": ["choices"]}],
}


def _parameters(*, searched: bool) -> dict[str, Any]:
    from llmsearch_optuna.engine.sampling.after_thinking import AFTER_THINKING
    from llmsearch_optuna.engine.sampling.param_specs import AFTER_NAMES, known_names, spec_of

    value = {"anyOf": [_ref("Searched"), {"not": {"type": "object"}}]} if searched else {}
    properties: dict[str, Any] = {}
    for name in sorted(known_names()):
        rule = spec_of(name)
        if rule.scope == "refused":
            continue
        described = {"description": f"It must be {rule.allowed}."}
        properties[name] = described | value
    properties[AFTER_THINKING] = {
        "description": "Other sampling parameters behind a thought.",
        "type": "object",
        "additionalProperties": False,
        "properties": {name: properties[name] for name in AFTER_NAMES},
    }
    return {"type": "object", "additionalProperties": False, "minProperties": 1, "properties": properties}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/$defs/{name}"}


def plain(value: Any) -> Any:
    """Without what TOML cannot say (null) and what only pydantic adds (titles of every key)."""
    if isinstance(value, list):
        return [plain(item) for item in value]
    if not isinstance(value, dict):
        return value
    kept = {k: plain(v) for k, v in value.items() if not (k == "title" and isinstance(v, str))}
    if kept.get("default", 0) is None:
        del kept["default"]
    options = [option for option in kept.get("anyOf", ()) if option != {"type": "null"}]
    if len(options) == 1 and "anyOf" in kept:
        del kept["anyOf"]
        return kept | (options[0] if isinstance(options[0], dict) else {})
    return kept | ({"anyOf": options} if options else {})
