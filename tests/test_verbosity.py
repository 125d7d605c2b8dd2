"""How much is said, and where to."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from llmsearch_optuna import Engine, set_verbosity
from llmsearch_optuna.errors import InputError


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    logger = logging.getLogger("llmsearch_optuna")
    level, handlers = logger.level, list(logger.handlers)
    yield
    logger.setLevel(level)
    logger.handlers[:] = handlers


def test_debug_shows_each_input_and_output(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    engine = Engine(tiny_llama, tiny_tokenizer)
    texts = ["How many apples", "Anna asks Ben"]
    set_verbosity("info")
    engine.generate(texts, {"max_new_tokens": 3})
    assert caplog.messages == []
    set_verbosity("debug")
    made = engine.generate(texts, {"max_new_tokens": 3})
    engine.generate(texts, {"max_new_tokens": 3, "guidance_scale": 1.5})
    for row, completion in enumerate(made):
        line = f"row {row}, replicate 0: {texts[row]!r} -> {completion.text!r} (3 tokens, {completion.finish_reason})"
        assert line in caplog.messages
    assert len([m for m in caplog.messages if m.startswith("row ")]) == 4


@pytest.mark.parametrize(("level", "number"), [("DEBUG", 10), ("warning", 30), ("critical", 50), (25, 25)])
def test_levels_are_those_of_logging(level: str, number: int) -> None:
    set_verbosity(level)  # type: ignore[arg-type]
    assert logging.getLogger("llmsearch_optuna").level == number
    assert not logging.getLogger("llmsearch_optuna.engine").isEnabledFor(number - 1)


@pytest.mark.parametrize("level", ["loud", True, None, 1.5])
def test_another_level_is_refused(level: object) -> None:
    with pytest.raises(InputError, match="verbosity .* is unknown; give one of 'debug', 'info'"):
        set_verbosity(level)  # type: ignore[arg-type]


SCRIPT = """
import io, logging, sys
from llmsearch_optuna import set_verbosity
{setup}
set_verbosity("info")
set_verbosity("debug")
logging.getLogger("llmsearch_optuna.x").debug("once %s", "only")
"""


@pytest.mark.parametrize(
    ("setup", "expected"),
    [
        ("", "DEBUG llmsearch_optuna.x: once only\n"),
        ("logging.basicConfig(format='mine %(message)s')", "mine once only\n"),
        ("sys.stderr = sys.stdout", ""),
    ],
)
def test_messages_come_once_and_where_the_program_wants_them(setup: str, expected: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(setup=setup)], capture_output=True, text=True, timeout=120, check=True
    )
    assert ran.stderr == expected
    if not expected:
        assert ran.stdout == "DEBUG llmsearch_optuna.x: once only\n"
