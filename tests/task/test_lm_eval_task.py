"""lm-eval's own evaluation and ours on a local task: the same prompts, texts and scores; and what is refused."""

from __future__ import annotations

import copy
import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import FloatDistribution
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from llmsearch_optuna.api import score, search
from llmsearch_optuna.errors import InputError, StudyError
from llmsearch_optuna.search_result import SearchResult
from llmsearch_optuna.task.library_task import read_library_task
from llmsearch_optuna.task.task import Task
from tests.task.lm_eval_files import TASK, write_task

lm_eval = pytest.importorskip("lm_eval", reason="needs the extra lm-eval")

TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% if not loop.last %}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}\n<assistant>{% endif %}"
)
FILTERS = ("strict-match", "flexible-extract")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_task(tmp_path_factory.mktemp("task"))


@pytest.fixture(scope="module")
def chat_tokenizer(tiny_tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


@pytest.fixture(scope="module")
def saved(
    tiny_llama: LlamaForCausalLM, chat_tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_llama.save_pretrained(folder)
    chat_tokenizer.save_pretrained(folder)
    return folder


def evaluated(saved: Path, path: Path, **options: Any) -> Any:
    """What lm-eval says, one row a batch, so that no row ends later for the sake of another."""
    from lm_eval.tasks import TaskManager

    return lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(saved), "dtype": "float32"},
        tasks=[str(path)],
        device="cpu",
        batch_size=1,
        bootstrap_iters=0,
        task_manager=TaskManager(include_defaults=False),
        **options,
    )


@pytest.fixture(scope="module")
def plain(saved: Path, path: Path) -> Any:
    return evaluated(saved, path)


def compare(theirs: Any, ours: Any, filter_name: str) -> None:
    samples = [s for s in theirs["samples"]["apples"] if s["filter"] == filter_name]
    assert [s["doc_id"] for s in samples] == list(range(len(samples)))
    assert list(ours.prompts) == [s["arguments"][0][0] for s in samples]
    assert [c.text for c in ours.completions] == [s["resps"][0][0] for s in samples]
    assert list(ours.scores) == [s["exact_match"] for s in samples]
    assert ours.score == pytest.approx(theirs["results"]["apples"][f"exact_match,{filter_name}"], abs=1e-12)


@pytest.mark.parametrize("name", FILTERS)
def test_the_same_prompts_texts_and_scores_as_lm_eval(
    plain: Any, path: Path, name: str, tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    ours = score(tiny_llama, f"lm_eval:{path}#{name}", {}, tiny_tokenizer)
    compare(plain, ours, name)
    assert any(c.finish_reason == "stop" for c in ours.completions), "some row must end at a stop string"
    assert any(c.finish_reason == "length" for c in ours.completions), "some row must end at max_gen_toks"
    assert ours.score == 1 / 12, "one row is right under either filter, and not the same one"


@pytest.mark.parametrize("system", [None, "Answer with one letter."])
def test_a_chat_template_is_applied_as_lm_eval_applies_it(
    system: str | None,
    saved: Path,
    path: Path,
    tiny_llama: LlamaForCausalLM,
    chat_tokenizer: PreTrainedTokenizerFast,
) -> None:
    theirs = evaluated(saved, path, apply_chat_template=True, limit=4, system_instruction=system)
    ours = score(tiny_llama, f"lm_eval:{path}", {}, chat_tokenizer, chat_template=True, limit=4, system=system)
    compare(theirs, ours, "strict-match")
    assert ours.prompts[0].count("<assistant>") == 3, "the examples are turns"


def test_a_prefix_of_the_answer_is_continued(
    tmp_path: Path, saved: Path, tiny_llama: LlamaForCausalLM, chat_tokenizer: PreTrainedTokenizerFast
) -> None:
    path = write_task(tmp_path, TASK + 'gen_prefix: "The letter is"\n', test_rows=3)
    for wraps in (False, True):
        theirs = evaluated(saved, path, apply_chat_template=wraps)
        ours = score(tiny_llama, f"lm_eval:{path}", {}, chat_tokenizer, chat_template=wraps)
        compare(theirs, ours, "strict-match")
        assert all(prompt.endswith("The letter is") for prompt in ours.prompts)


def test_without_a_word_no_chat_template_is_applied(
    plain: Any, path: Path, tiny_llama: LlamaForCausalLM, chat_tokenizer: PreTrainedTokenizerFast
) -> None:
    compare(plain, score(tiny_llama, f"lm_eval:{path}", {}, chat_tokenizer), "strict-match")


def test_the_task_says_what_is_in_use_and_parameters_are_laid_over_it(
    path: Path, tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    found = score(tiny_llama, f"lm_eval:{path}", {"max_new_tokens": 5, "stop": ["ck"]}, tiny_tokenizer, limit=3)
    assert found.params["max_new_tokens"] == 5
    assert found.params["stop"] == ["ck"]
    assert len(found.scores) == 3
    task = Task.of(f"lm_eval:{path}").read()
    assert task.generation == {"max_new_tokens": 24, "stop_strings": ("Question:", "e"), "do_sample": False}


def test_settings_for_sampling_are_taken_over(tmp_path: Path) -> None:
    text = TASK.replace("  do_sample: false\n  temperature: 0.0\n", "  temperature: 0.5\n  top_p: 0.9\n")
    task = read_library_task(f"lm_eval:{write_task(tmp_path, text)}")
    assert task.generation["do_sample"] is True
    assert (task.generation["temperature"], task.generation["top_p"]) == (0.5, 0.9)


def studied(folder: Path, path: Path, model: Any, tokenizer: Any, **changed: Any) -> SearchResult:
    given: dict[str, Any] = {
        "space": {"do_sample": True, "temperature": FloatDistribution(0.2, 2.0)},
        "n_trials": 4,
        "storage": f"sqlite:///{folder}/s.db",
        "progress": False,
    } | changed
    return search(model, f"lm_eval:{path}#flexible-extract", given.pop("space"), tokenizer, **{"holdout": 0.3} | given)


def test_a_search_goes_on_only_with_the_same_task(
    tmp_path: Path, tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    path = write_task(tmp_path)
    first = studied(tmp_path, path, tiny_llama, tiny_tokenizer)
    baseline = first.trials[0]
    assert first.opened.records.settings()["metric"] == "exact_match,flexible-extract"
    assert "with what the task says" in first.opened.records.settings()["baseline_note"]
    assert baseline.value == 1 / 12
    assert len(studied(tmp_path, path, tiny_llama, tiny_tokenizer, n_trials=5).trials) == 5
    write_task(tmp_path, TASK.replace("version: 1.0", "version: 2.0"))
    with pytest.raises(StudyError, match="metric"):
        studied(tmp_path, path, tiny_llama, tiny_tokenizer, n_trials=5)


def test_one_of_our_metrics_takes_the_place_of_the_tasks_own(
    path: Path, tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    found = score(tiny_llama, f"lm_eval:{path}", {}, tiny_tokenizer, metric="contains")
    assert list(found.scores) == [
        float(answer in c.text.lower()) for answer, c in zip(found.references, found.completions, strict=True)
    ]


def test_which_score_is_taken_is_said(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        read_library_task(f"lm_eval:{path}")
    said = next(r.message for r in caplog.records if "several scores" in r.message)
    assert "taken is exact_match,strict-match" in said
    assert "exact_match,flexible-extract" in said
    assert "bleu" not in said, "it cannot be taken"


@pytest.mark.parametrize(
    ("change", "address", "message"),
    [
        (("", ""), "#lenient", "'lenient' is neither a filter .strict-match, flexible-extract. nor a metric"),
        (("", ""), "#bleu", "'bleu' is no mean over the rows' scores.*#exact_match"),
        (("num_fewshot: 2", "num_fewshot: 2\nrepeats: 3"), "", "asks 3 times for each row"),
        (("num_fewshot: 2", "num_fewshot: 2\nunsafe_code: true"), "", "runs code"),
        (("output_type: generate_until", "output_type: loglikelihood"), "", "compares likelihoods"),
        (("  max_gen_toks: 24", "  max_gen_toks: 24\n  num_beams: 0"), "", "num_beams=0"),
        (("dataset_path: json", "dataset_path: no/such-data"), "", "cannot be loaded.*a YAML file whose"),
        (("task: apples", "group: fruit\ntask:\n  - apples"), "", "is a group of tasks"),
    ],
)
def test_what_cannot_be_done_is_said(
    tmp_path: Path, change: tuple[str, str], address: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    path = write_task(tmp_path, TASK.replace(*change))
    with pytest.raises(InputError, match=f"(?s){message}"):
        read_library_task(f"lm_eval:{path}{address}")


def test_names_of_groups_and_tags_and_no_task_are_said() -> None:
    for name, message in (
        ("math_word_problems", "is a tag of several tasks"),
        ("mmlu", "is a group of several tasks"),
        ("gsm8kk", "no task 'gsm8kk'; did you mean .*gsm8k"),
        ("nowhere/task.yaml", "there is no file"),
        ("", "names no task"),
    ):
        with pytest.raises(InputError, match=message):
            read_library_task(f"lm_eval:{name}")


def test_what_the_task_says_itself_is_not_said_again(path: Path) -> None:
    for given in ({"prompt": "{doc}"}, {"split": "train"}, {"subset": "main"}):
        with pytest.raises(InputError, match="has no effect here"):
            Task.of(f"lm_eval:{path}", **given).read()


def test_prompts_can_be_looked_at_before(path: Path) -> None:
    shown = str(Task.of(f"lm_eval:{path}").preview(1))
    assert "Question: Tom has 3 apples" in shown
    assert json.dumps(Task.of(f"lm_eval:{path}").read().prepare().description)


def test_the_example_of_the_page_runs(tmp_path: Path, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text(encoding="utf-8")
    example = next(text for text in re.findall(r"^```python\n(.*?)^```", page, re.M | re.S) if "lm_eval:" in text)
    write_task(tmp_path)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(example.replace("HuggingFaceTB/SmolLM2-135M-Instruct", str(saved)), "tasks.md", "exec"), names)
    assert names["result"].trials[0].value == 1 / 12
