"""The page for people who know llmsearch keeps its word: every block of ours runs, in the order of the page."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

PAGE = (Path(__file__).parents[2] / "notebooks" / "coming-from-llmsearch.md").read_text(encoding="utf-8")
THEIRS = re.findall(r"^```py\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
OURS = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"


@pytest.fixture
def workplace(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tiny_llama: LlamaForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> Path:
    """A folder with the page's data, and a tiny model in the place of its model."""
    model = tmp_path / "tiny-model"
    tiny_llama.save_pretrained(model)
    tiny_tokenizer.save_pretrained(model)
    rows = [
        {"id": str(n), "dialogue": f"Anna: Do you have {n} apples?\nBen: Yes.", "summary": f"Ben has {n} apples."}
        for n in range(24)
    ]
    for name, part in (("dialogues", rows), ("test", rows[:6])):
        lines = "".join(json.dumps(row) + "\n" for row in part)
        (tmp_path / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return model


def test_every_block_of_ours_runs(workplace: Path) -> None:
    names: dict[str, Any] = {}
    for block in OURS:
        exec(compile(block.replace(MODEL, str(workplace)), "coming-from-llmsearch.md", "exec"), names)
    assert [t.state.name for t in names["result"].trials].count("FAIL") == 0
    assert len(names["result"].trials) == 9  # the baseline, which is greedy, and the four points of the grid in each half
    assert len(names["at_random"].trials) == 3
    assert len(names["folded"].trials[0].user_attrs["fold_scores"]) == 3
    assert names["before"].score == 0.0
    assert len(names["stopped"].completions) == 24
    assert names["params"].inert == ("temperature",)
    assert names["mine"].completions[0].text == "Summarize: Anna: Do "
    assert json.loads(Path("tuned/generation_config.json").read_text())["max_new_tokens"] == 20
    assert Path("report.html").is_file()


def test_both_sides_are_there_and_can_be_read() -> None:
    assert len(THEIRS) == len(OURS) > 12
    for block in THEIRS:
        ast.parse(block.replace("    ...,\n", "").replace("(\n    ..., ", "("))


LLMSEARCH = """
Tuner model tokenizer dataset column_mapping input_cols eval_cols scorer device prompt_template sample_preprocessor
tokenizer_encode_args tokenizer_decode_args batch_size output_preproc callbacks_after_inference is_encoder_decoder
greater_is_better seed disable_batch_size_cache disable_generation_param_checks sample_ratio
tokenizer_max_length_quantile custom_pred_function preprocess_dataset get_default_tokenizer_encode_args get_score
get_value_at_quantile LLMEstimatorWrapper optimal_batch_size model_generation_param_keys fit predict get_params
set_params MultiTokenStoppingCriteria sequence_ids reset json_dump json_load yaml_load process_dataset_with_map
print_call_stack clone_monkey_patch check_sample_parameter identify_and_validate_gen_params
check_if_gen_param_rules_satisfy check_if_param_req_satisfy get_sample_hyp_space get_logger set_verbosity_info
set_verbosity_warning set_verbosity_debug disable_default_handler enable_default_handler add_handler remove_handler
LLMSEARCH_VERBOSITY Cache get_traceback batch_without_oom_error gc_cuda should_reduce_batch_size is_cuda_out_of_memory
is_cudnn_snafu is_out_of_cpu_memory get_gpu_information get_total_available_ram ModelDownloader download_model_from_hf
get_device seed_everything run_inference batcher encoder_decoder_parser decoder_parser TailFreeLogitsWarper
TopALogitsWarper MirostatLogitsWarper hijack_samplers generation_config_init_patch get_logits_warper_patch
__sklearn_clone__ generation_seed tfs top_a
"""
"""Every public class, function, argument and parameter of llmsearch 0.1.0, read off its sources."""


def test_nothing_of_llmsearch_is_left_unsaid() -> None:
    said = set(re.findall(r"\w+", PAGE))
    assert [name for name in LLMSEARCH.split() if name not in said] == []


def test_every_name_of_ours_that_the_table_has_is_there() -> None:
    from llmsearch_optuna import Engine, SearchResult, Task
    from llmsearch_optuna.engine.sampling import mirostat
    from llmsearch_optuna.engine.sampling.params import GenerationParams

    here = "\n".join(line.split("|")[2] for line in PAGE.split("## Everything else")[1].splitlines() if "|" in line)
    owners = {"result": SearchResult, "engine": Engine, "Task(...)": Task}
    for owner, name in re.findall(r"`(result|engine|Task\(\.\.\.\))\.(\w+)", here):
        assert hasattr(owners[owner], name)
    assert hasattr(mirostat, "MirostatLogitsWarper")
    assert {"kind", "inert"} <= set(dir(GenerationParams))
