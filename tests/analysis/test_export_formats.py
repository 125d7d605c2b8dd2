"""Parameters in other programs' formats: each is read back as the program reads it."""

from __future__ import annotations

import ast
import json
import shlex
from inspect import cleandoc
from typing import Any

import pytest

from llmsearch_optuna.analysis.export_formats import PROGRAMS, files_for
from llmsearch_optuna.engine.sampling.params import GenerationParams
from llmsearch_optuna.errors import InputError

WARM = {"max_new_tokens": 40, "do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 0}


def params(**values: Any) -> GenerationParams:
    return GenerationParams.of(WARM | values)


def command(text: str) -> list[str]:
    first, line = text.splitlines()
    assert first == "#!/bin/sh"
    return shlex.split(line)


def after(words: list[str], flag: str) -> str:
    return words[words.index(flag) + 1]


def parameters_of(modelfile: str) -> dict[str, Any]:
    """A Modelfile's parameters, as Ollama reads them: a name that is repeated has several values."""
    found: dict[str, Any] = {}
    for line in modelfile.splitlines():
        word, _, rest = line.partition(" ")
        if word == "PARAMETER":
            name, _, value = rest.partition(" ")
            found.setdefault(name, []).append(json.loads(value))
    return {name: values if name == "stop" else values[0] for name, values in found.items()}


def test_vllm_reads_overrides_of_its_generation_config() -> None:
    files = files_for("vllm", params(repetition_penalty=1.1, stop=["\n"]))
    assert json.loads(after(command(files["serve.sh"]), "--override-generation-config")) == {
        "temperature": 0.7, "top_p": 0.9, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.1,
        "presence_penalty": 0.0, "frequency_penalty": 0.0,
    }  # fmt: skip
    request = json.loads(files["request.json"])
    assert (request["max_tokens"], request["stop"], request["presence_penalty"]) == (40, ["\n"], 0.0)


def test_llama_cpp_reads_flags_and_keys_of_a_gguf_file() -> None:
    files = files_for("llama.cpp", params(repetition_penalty=1.1, repeat_last_n=128, xtc_probability=0.2))
    words = command(files["serve.sh"])
    flags = dict(zip(words[1::2], words[2::2], strict=True))
    assert flags["--temp"] == "0.7"
    assert flags["--min-p"] == "0.0"
    assert (flags["--repeat-penalty"], flags["--repeat-last-n"], flags["--xtc-probability"]) == ("1.1", "128", "0.2")
    keys = json.loads(files["gguf-metadata.json"])
    assert keys["general.sampling.penalty_repeat"] == 1.1
    assert keys["general.sampling.temp"] == 0.7
    assert json.loads(files["request.json"])["repeat_penalty"] == 1.1


def test_ollama_reads_a_modelfile() -> None:
    files = files_for("ollama", params(repetition_penalty=1.1, stop=["\n\n", 'say "no"']))
    assert parameters_of(files["Modelfile"]) == {
        "temperature": 0.7, "top_k": 0, "top_p": 0.9, "min_p": 0.0, "repeat_penalty": 1.1, "num_predict": 40,
        "stop": ["\n\n", 'say "no"'],
    }  # fmt: skip
    greedy = GenerationParams.of({"max_new_tokens": 40})
    assert parameters_of(files_for("ollama", greedy)["Modelfile"])["temperature"] == 0.0


def test_a_client_of_openai_is_a_call_in_python() -> None:
    tree = ast.parse(files_for("openai", params(presence_penalty=0.5))["request.py"])
    (call,) = (
        node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("create")
    )
    said = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    assert (said["temperature"], said["top_p"], said["presence_penalty"], said["max_tokens"]) == (0.7, 0.9, 0.5, 40)


def test_lm_eval_reads_gen_kwargs() -> None:
    words = command(files_for("lm-eval", params(stop=["\n"], typical_p=0.9))["evaluate.sh"])
    assert json.loads(after(words, "--gen_kwargs")) == {
        "do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 0, "typical_p": 0.9, "max_gen_toks": 40,
        "until": ["\n"],
    }  # fmt: skip
    greedy = command(files_for("lm-eval", GenerationParams.of({"max_new_tokens": 8}))["evaluate.sh"])
    assert json.loads(after(greedy, "--gen_kwargs")) == {"do_sample": False, "max_gen_toks": 8}


def test_inspect_reads_a_generate_config() -> None:
    config = json.loads(files_for("inspect", params(stop=["\n"]))["generate_config.json"])
    assert config == {"temperature": 0.7, "top_p": 0.9, "max_tokens": 40, "stop_seqs": ["\n"]}


@pytest.mark.parametrize(
    ("program", "values", "lost"),
    [
        ("vllm", {"typical_p": 0.9}, "vllm does not take typical_p"),
        ("sglang", {"top_n_sigma": 1.0}, "sglang does not take top_n_sigma"),
        ("llama.cpp", {"epsilon_cutoff": 0.1}, "llama.cpp does not take epsilon_cutoff"),
        ("ollama", {"tfs": 0.9, "top_a": 0.1}, "ollama does not take tfs, top_a"),
        ("openai", {"top_k": 5}, "openai does not take top_k"),
        ("lm-eval", {"presence_penalty": 0.5}, "lm-eval does not take presence_penalty"),
        ("inspect", {"min_p": 0.1}, "inspect does not take min_p"),
    ],
)
def test_what_a_program_cannot_be_told_is_refused_by_name(program: str, values: dict[str, Any], lost: str) -> None:
    with pytest.raises(InputError, match=lost):
        files_for(program, params(**values))


def test_an_unknown_program_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(InputError, match="give one of vllm, sglang, llama.cpp, ollama, openai, lm-eval, inspect"):
        files_for("tgi", params())


@pytest.mark.parametrize("program", PROGRAMS)
def test_greedy_is_greedy_everywhere(program: str) -> None:
    text = "".join(files_for(program, GenerationParams.of({"max_new_tokens": 8})).values())
    assert any(said in cleandoc(text) for said in ('"temperature": 0.0', "temperature 0.0", '"do_sample": false'))


ASKED = {
    "prompt": "Sum up: {text}",
    "system": 'Be "brief",\nplease.',
    "chat_template_kwargs": {"enable_thinking": False},
}
CHOSEN = {"prompt": "short", "system": "brief", "chat_template_kwargs.enable_thinking": False}


@pytest.mark.parametrize("program", PROGRAMS)
def test_what_was_chosen_of_the_task_changes_no_parameter(program: str) -> None:
    plain, chosen = files_for(program, params()), files_for(program, params(**CHOSEN))
    assert plain == chosen


def test_what_was_chosen_of_the_task_stands_where_there_is_a_place() -> None:
    files = {program: files_for(program, params(**CHOSEN), ASKED) for program in PROGRAMS}
    for program in ("vllm", "sglang", "llama.cpp"):
        assert json.loads(files[program]["request.json"])["chat_template_kwargs"] == {"enable_thinking": False}
    serve = command(files["llama.cpp"]["serve.sh"])
    assert json.loads(after(serve, "--chat-template-kwargs")) == {"enable_thinking": False}
    assert files["ollama"]["Modelfile"].endswith('SYSTEM """Be "brief",\nplease."""\n')
    assert json.loads(files["inspect"]["generate_config.json"])["system_message"] == ASKED["system"]
    line = files["lm-eval"]["evaluate.sh"].removeprefix("#!/bin/sh\n")
    assert after(shlex.split(line), "--system_instruction") == ASKED["system"]
    (call,) = [
        node for node in ast.walk(ast.parse(files["openai"]["request.py"]))
        if isinstance(node, ast.keyword) and node.arg == "messages"
    ]  # fmt: skip
    assert ast.literal_eval(call.value) == [
        {"role": "system", "content": ASKED["system"]}, {"role": "user", "content": ASKED["prompt"]}
    ]  # fmt: skip


@pytest.mark.parametrize("system", ['Say "yes"', 'Three """ marks'])
def test_a_modelfile_refuses_a_message_that_it_cannot_hold(system: str) -> None:
    with pytest.raises(InputError, match="a Modelfile cannot hold a system message"):
        files_for("ollama", params(), {"system": system})


@pytest.mark.parametrize("program", ["vllm", "sglang", "openai"])
def test_the_number_of_samples_is_the_number_of_choices(program: str) -> None:
    assert json.loads(files_for(program, params(samples=8))["request.json"])["n"] == 8
    assert "n" not in json.loads(files_for(program, params())["request.json"])


@pytest.mark.parametrize("program", ["llama.cpp", "ollama", "lm-eval", "inspect"])
def test_samples_that_a_program_cannot_draw_are_refused(program: str) -> None:
    with pytest.raises(InputError, match="samples"):
        files_for(program, params(samples=8))
