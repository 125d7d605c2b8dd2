"""Tasks: prompts of every form, the chat template, references, lengths, and what each mistake is told."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from llmsearch_optuna.errors import InputError
from llmsearch_optuna.metrics.scoring import MetricError
from llmsearch_optuna.models.tokenization import PromptTokens
from llmsearch_optuna.task.task import Task

ROWS = [
    {"dialogue": "Anna: Hi {Ben}!", "summary": "Anna greets Ben.", "id": 1},
    {"dialogue": "Ben: The train leaves at seven.", "summary": "Ben names the time.", "id": 2},
]
CHAT = (
    "{{ bos_token }}{% for message in messages %}[{{ message['role'] }}]{{ message['content'] }}"
    "{% if not loop.last or add_generation_prompt %}[/]{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.fixture
def chat_tokenizer(tiny_tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = CHAT
    return tokenizer


def task(**described: Any) -> Task:
    return Task(
        **{"dataset": ROWS, "prompt": "Sum up: {dialogue}", "reference": "summary", "metric": "f1", **described}
    )


def test_a_template_is_filled_from_the_row() -> None:
    prepared = task().prepare()
    assert prepared.prompts == ("Sum up: Anna: Hi {Ben}!", "Sum up: Ben: The train leaves at seven.")
    assert prepared.references == ("Anna greets Ben.", "Ben names the time.")
    assert prepared.rows == tuple(ROWS)
    assert prepared.add_special_tokens == (True, True)
    assert len(prepared) == 2


def test_a_chat_template_wraps_the_prompt_once(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    prepared = task().prepare(chat_tokenizer)
    assert prepared.prompts[0] == "<s>[user]Sum up: Anna: Hi {Ben}![/][assistant]"
    assert prepared.add_special_tokens == (False, False)
    ids = chat_tokenizer(prepared.prompts[0], add_special_tokens=False)["input_ids"]
    assert ids.count(chat_tokenizer.bos_token_id) == 1


def test_the_chat_template_can_be_turned_off(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    prepared = task(chat_template=False).prepare(chat_tokenizer)
    assert prepared.prompts[0] == "Sum up: Anna: Hi {Ben}!"
    assert prepared.add_special_tokens == (True, True)


def test_a_system_message_comes_first(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    assert task(system="Be brief.").prepare(chat_tokenizer).prompts[0].startswith("<s>[system]Be brief.[/][user]Sum up")
    assert task(system="Be brief.").prepare().prompts[0] == "Be brief.\n\nSum up: Anna: Hi {Ben}!"


def test_a_chat_template_gets_the_variables_it_is_given(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    chat_tokenizer.chat_template = CHAT + "{% if enable_thinking == false %}<no thinking>{% endif %}"
    prepared = task(chat_template={"enable_thinking": False}).prepare(chat_tokenizer)
    assert prepared.prompts[0].endswith("[assistant]<no thinking>")
    assert prepared.description != task().prepare(chat_tokenizer).description


@pytest.mark.parametrize("given", ["chatml", "{{ messages }}", 1, 0, ["a"]])
def test_what_is_no_switch_is_not_taken_for_one(given: Any) -> None:
    with pytest.raises(InputError, match=r"chat_template=.* must be True, False, or a dict .* \{'chat_template'"):
        task(chat_template=given)


def test_another_template_is_given_by_its_text_or_its_name(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    given = {"chat_template": "{{ messages[0]['content'] }}!"}
    assert task(chat_template=given).prepare(chat_tokenizer).prompts[0] == "Sum up: Anna: Hi {Ben}!!"
    with pytest.raises(InputError, match="no template 'rag'; it has one template without a name"):
        task(chat_template={"chat_template": "rag"}).prepare(chat_tokenizer)
    chat_tokenizer.chat_template = {"default": CHAT, "rag": "{{ messages[0]['content'] }}?"}
    assert task(chat_template={"chat_template": "rag"}).prepare(chat_tokenizer).prompts[0].endswith("}!?")
    with pytest.raises(InputError, match="no template 'tool'; its templates are 'default', 'rag'"):
        task(chat_template={"chat_template": "tool"}).prepare(chat_tokenizer)


IN_CHAT_FORMAT = [
    {"prompt": "[user]Hi[/][assistant]", "reference": "a"},
    {"prompt": "<s>[user]Ho[/][assistant]", "reference": "b"},
    {"prompt": "What does [user] mean?", "reference": "c"},
]


def test_prompts_that_are_in_the_chats_format_are_not_wrapped_again(
    chat_tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    def prepared(**described: Any) -> Any:
        return Task(IN_CHAT_FORMAT, metric="f1", **described).prepare(chat_tokenizer)

    with caplog.at_level("WARNING", "llmsearch_optuna"):
        found = prepared()
    assert found.prompts == (
        "[user]Hi[/][assistant]",
        "<s>[user]Ho[/][assistant]",
        "<s>[user]What does [user] mean?[/][assistant]",
    )
    assert found.add_special_tokens == (True, False, False), "each has one token that begins the text"
    assert "2 of 3 prompts (row 0, 1) are in the chat's format already" in caplog.text
    caplog.clear()
    with caplog.at_level("WARNING", "llmsearch_optuna"):
        assert prepared(chat_template=True).prompts[0] == "<s>[user][user]Hi[/][assistant][/][assistant]"
        assert prepared(chat_template=False).prompts[0] == "[user]Hi[/][assistant]"
    assert not caplog.text
    assert prepared(chat_template=True).description["chat_template"] == found.description["chat_template"]


def test_special_tokens_of_the_template_inside_a_text_are_told(
    chat_tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    chat_tokenizer.add_special_tokens({"extra_special_tokens": ["<|turn|>"]})
    chat_tokenizer.chat_template = (
        "{% for m in messages %}<|turn|>{{ m['role'] }}: {{ m['content'] }}{% endfor %}<|turn|>"
    )
    rows = [{"prompt": "Sum up: <|turn|>user: hi", "reference": "a"}, {"prompt": "fine", "reference": "b"}]
    with caplog.at_level("WARNING", "llmsearch_optuna"):
        found = Task(rows, metric="f1").prepare(chat_tokenizer)
    assert found.prompts[0] == "<|turn|>user: Sum up: <|turn|>user: hi<|turn|>"
    assert "1 of 2 prompts (row 0) has special tokens of the chat template" in caplog.text


def test_messages_are_templates_each(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    messages = [
        {"role": "user", "content": "Example: Hi"},
        {"role": "assistant", "content": "A greeting."},
        {"role": "user", "content": "{dialogue}"},
    ]
    prepared = task(prompt=messages).prepare(chat_tokenizer)
    assert prepared.prompts[0] == (
        "<s>[user]Example: Hi[/][assistant]A greeting.[/][user]Anna: Hi {Ben}![/][assistant]"
    )


def test_an_answer_that_was_begun_is_gone_on_with(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    messages = [{"role": "user", "content": "{dialogue}"}, {"role": "assistant", "content": "In short:"}]
    assert task(prompt=messages).prepare(chat_tokenizer).prompts[0].endswith("[assistant]In short:")


def test_a_function_may_return_text_or_messages(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    def text(row: dict[str, Any]) -> str:
        return f"No. {row['id']}"

    def messages(row: dict[str, Any]) -> list[dict[str, str]]:
        return [{"role": "user", "content": f"No. {row['id']}"}]

    assert task(prompt=text).prepare().prompts == ("No. 1", "No. 2")
    for function in (text, messages):
        assert task(prompt=function).prepare(chat_tokenizer).prompts[1] == "<s>[user]No. 2[/][assistant]"


def test_messages_keep_names_and_parts_for_the_chat_template(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    chat_tokenizer.chat_template = (
        "{% for m in messages %}[{{ m['name'] }}]"
        "{{ m['content'] if m['content'] is string else m['content'] | map(attribute='text') | join('+') }}{% endfor %}"
    )

    def parts(row: dict[str, Any]) -> list[dict[str, Any]]:
        content = [{"type": "text", "text": text} for text in ("No.", str(row["id"]))]
        return [{"role": "user", "name": "Anna", "content": content}]

    assert task(prompt=parts).prepare(chat_tokenizer).prompts == ("[Anna]No.+1", "[Anna]No.+2")
    templates = [{"role": "user", "name": "Ben", "content": "{dialogue}"}]
    assert task(prompt=templates).prepare(chat_tokenizer).prompts[0] == "[Ben]Anna: Hi {Ben}!"
    with pytest.raises(InputError, match="must be a template; for other contents give a function of the row"):
        task(prompt=[{"role": "user", "content": [{"type": "text", "text": "{dialogue}"}]}]).prepare(chat_tokenizer)


def test_a_function_with_the_tokenizer_returns_ready_text(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    def templated(tokenizer: Any, dialogue: str) -> str:
        chat = [{"role": "user", "content": dialogue.upper()}]
        return str(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))

    def plain(tokenizer: Any, **columns: Any) -> str:
        return f"{columns['id']} of {tokenizer.eos_token}"

    prepared = task(prompt=templated).prepare(chat_tokenizer)
    assert prepared.prompts[0] == "<s>[user]ANNA: HI {BEN}![/][assistant]"
    assert prepared.add_special_tokens[0] is False
    prepared = task(prompt=plain).prepare(chat_tokenizer)
    assert prepared.prompts[0] == "1 of </s>"
    assert prepared.add_special_tokens[0] is True
    with pytest.raises(InputError, match="plain takes a tokenizer, and there is none"):
        task(prompt=plain).prepare()


def test_a_column_called_prompt_needs_no_template(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    rows: list[dict[str, Any]] = [{"prompt": "Hi", "reference": "Hello"}]
    prepared = Task(rows, metric="f1").prepare()
    assert (prepared.prompts, prepared.references) == (("Hi",), ("Hello",))
    rows = [{"prompt": [{"role": "user", "content": "Hi"}], "reference": "Hello"}]
    assert Task(rows, metric="f1").prepare(chat_tokenizer).prompts == ("<s>[user]Hi[/][assistant]",)


def test_several_reference_columns_make_a_dict_and_a_function_anything() -> None:
    def scorer(y_true: list[dict[str, Any]], y_pred: list[str]) -> list[float]:
        return [float(str(true["id"]) in text) for true, text in zip(y_true, y_pred, strict=True)]

    prepared = task(reference=["summary", "id"], metric=scorer).prepare()
    assert prepared.references[0] == {"summary": "Anna greets Ben.", "id": 1}
    assert prepared.metric.score_rows(["1", "1"], prepared.references, prepared.rows) == [1.0, 0.0]
    assert task(reference=lambda row: row["summary"].split()).prepare().references[0] == ["Anna", "greets", "Ben."]


def test_completions_are_postprocessed_before_they_are_scored() -> None:
    prepared = task(postprocess=lambda text: text.split("Answer:")[-1], metric="exact_match").prepare()
    assert prepared.metric.score_rows(["Hm. Answer: Anna greets Ben."], prepared.references[:1], ROWS[:1]) == [1.0]
    assert "postprocess" in prepared.description["metric"]


def test_postprocessing_that_fails_names_the_row() -> None:
    prepared = task(postprocess=lambda text: text[: text.index(".")]).prepare()
    with pytest.raises(MetricError, match=r"postprocess raised ValueError.* on row 4"):
        prepared.metric.score_rows(["no full stop", "a."], prepared.references, ROWS, numbers=[4, 9])
    with pytest.raises(InputError, match="postprocess must return a text, but returned 3"):
        task(postprocess=lambda text: 3).prepare()


def test_the_description_is_json_and_notices_every_change() -> None:
    def described(**changed: Any) -> str:
        return json.dumps(task(**changed).prepare().description, sort_keys=True)

    changes: list[dict[str, Any]] = [
        {"dataset": [*ROWS[:1], {**ROWS[1], "dialogue": "Ben: Eight."}]},
        {"dataset": [*ROWS[:1], {**ROWS[1], "summary": "Another."}]},
        {"prompt": "Summarise: {dialogue}"},
        {"reference": "dialogue"},
        {"metric": "rouge1"},
        {"metric": lambda predictions, references: [1.0] * len(predictions)},
        {"direction": "minimize"},
        {"postprocess": str.strip},
        {"system": "Be brief."},
        {"name": "another"},
    ]
    assert len({described(), *(described(**change) for change in changes)}) == len(changes) + 1
    assert described() == described()
    assert described(dataset=[{**row, "id": 0} for row in ROWS]) == described()


def test_a_users_metric_may_read_any_column_so_all_count() -> None:
    def scorer(y_true: list[dict[str, Any]], y_pred: list[str]) -> list[float]:
        return [1.0 for _ in y_pred]

    changed = [{**row, "id": 0} for row in ROWS]
    assert task(metric=scorer).prepare().description != task(metric=scorer, dataset=changed).prepare().description


def test_a_prompt_function_counts_by_the_prompts_it_makes() -> None:
    one = task(prompt=lambda row: "Q: " + row["dialogue"]).prepare()
    same = task(prompt=lambda row: f"Q: {row['dialogue']}").prepare()
    assert one.description == same.description


def test_a_task_can_be_changed_where_something_is_said() -> None:
    changed = Task.of(task(), metric="rouge1", system=None)
    assert (changed.metric, changed.prompt) == ("rouge1", "Sum up: {dialogue}")
    assert Task.of(ROWS, prompt="{id}").dataset is ROWS
    with pytest.raises(InputError, match="a task has no promt"):
        Task.of(ROWS, promt="{id}")


@pytest.mark.parametrize(
    ("described", "complaint"),
    [
        (
            {"prompt": "{dialog}"},
            r"prompt template: there is no column 'dialog'; did you mean 'dialogue'\? The columns",
        ),
        ({"prompt": "dialogue"}, r"names no column.*for the column write '\{dialogue\}'"),
        ({"prompt": "{}"}, "must name its columns"),
        ({"prompt": "{dialogue"}, "is broken"),
        ({"prompt": None}, r"prompt= is missing: give a template such as 'Summarize: \{dialogue\}'"),
        ({"prompt": 5}, "is no template, function or list"),
        ({"prompt": lambda row: 5}, "row 0: the prompt function must return a text or a list of chat messages"),
        ({"prompt": lambda row: row["nothing"]}, "row 0: the prompt function fails: KeyError"),
        ({"prompt": lambda row: ""}, "row 0: its prompt is an empty text"),
        ({"prompt": lambda row: [{"role": "user"}]}, "is no chat message"),
        ({"prompt": lambda row: [{"role": "user", "content": ["text"]}]}, "is no chat message"),
        ({"prompt": "{question}"}, r"there is no column 'question'\. The columns are 'dialogue', 'summary', 'id'"),
        ({"prompt": [{"role": "user", "content": "Hi"}]}, "name no column"),
        ({"prompt": [{"role": "user", "content": "{dialogue}"}]}, "there is no tokenizer; give the prompt as one text"),
        ({"reference": "sumary"}, "reference=: there is no column 'sumary'; did you mean 'summary'"),
        ({"reference": ["summary", "ids"]}, "no column 'ids'; did you mean 'id'"),
        ({"reference": 3}, "must be a column"),
        ({"reference": lambda row: row["x"]}, "row 0: the reference function fails: KeyError"),
        ({"reference": None}, "give reference="),
        ({"metric": None}, "metric= is missing: give one of rouge1"),
        ({"metric": "f2"}, "did you mean 'f1'"),
        ({"dataset": []}, "is empty"),
        ({"dataset": [ROWS[0], {**ROWS[1], "dialogue": None}]}, "row 1: the column 'dialogue' .* is empty"),
        ({"dataset": [ROWS[0], {"summary": "x"}]}, "row 1: the prompt template: there is no column 'dialogue'"),
        ({"dataset": [ROWS[0], {**ROWS[1], "summary": float("nan")}]}, "'summary' is empty in row 1"),
        ({"max_prompt_tokens": 5}, "there is no tokenizer"),
    ],
)
def test_mistakes_are_told_before_anything_is_decoded(described: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        task(**described).prepare()


@pytest.mark.parametrize(
    ("described", "complaint"),
    [
        ({"direction": "up"}, "direction='up' must be"),
        ({"postprocess": 3}, "postprocess=3"),
        ({"max_prompt_tokens": 0}, "max_prompt_tokens=0"),
    ],
)
def test_a_task_refuses_what_it_cannot_be(described: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        task(**described)


def test_a_function_that_wants_a_column_that_is_not_there() -> None:
    def prompt(tokenizer: Any, dialog: str) -> str:
        return dialog

    with pytest.raises(InputError, match="prompt wants a column: there is no column 'dialog'; did you mean 'dialogue'"):
        task(prompt=prompt).prepare()


def test_a_chat_template_that_refuses_says_so(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    chat_tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        "{{ messages[0]['content'] }}"
    )
    with pytest.raises(InputError, match=r"row 0: .* refuses the messages \(system, user\): System role not supported"):
        task(system="Be brief.").prepare(chat_tokenizer)


def test_messages_need_a_chat_template(tiny_tokenizer: PreTrainedTokenizerFast, chat_tokenizer: Any) -> None:
    messages = [{"role": "user", "content": "{dialogue}"}]
    with pytest.raises(InputError, match="this tokenizer has none"):
        task(prompt=messages).prepare(tiny_tokenizer)
    with pytest.raises(InputError, match="chat_template=False turns it off"):
        task(prompt=messages, chat_template=False).prepare(chat_tokenizer)


def test_a_chat_template_with_todays_date_is_warned_about(
    chat_tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    chat_tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }}" + CHAT
    task().prepare(chat_tokenizer)
    assert "today's date" in caplog.text


def test_long_rows_lose_the_beginning_of_their_longest_text(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [*ROWS, {"dialogue": "So it begins. " * 40 + "And here it ends.", "summary": "Long.", "id": 3}]
    prepared = task(dataset=rows, max_prompt_tokens=80).prepare(chat_tokenizer)
    assert prepared.cut_rows == (2,)
    assert prepared.prompts[2].startswith("<s>[user]Sum up: ")
    assert prepared.prompts[2].endswith("And here it ends.[/][assistant]")
    assert prepared.rows[2] == rows[2]
    counts = prepared.token_counts(PromptTokens(chat_tokenizer))
    assert max(counts) <= 80
    assert counts[2] >= 78
    with pytest.raises(InputError, match="row 0: its prompt has more than max_prompt_tokens=5 tokens even without"):
        task(max_prompt_tokens=5).prepare(chat_tokenizer)


def test_a_preview_shows_prompts_and_references(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    from rich.console import Console

    preview = task(dataset=[{**ROWS[0], "dialogue": "<b>[bold]"}, *ROWS]).preview(2, chat_tokenizer)
    assert "data: 3 rows, the first 2" in str(preview)
    assert "--- row 0, " in str(preview)
    assert ">>> reference: Anna greets Ben." in str(preview)
    assert "&lt;b&gt;[bold]" in preview._repr_html_()
    assert "word-break:normal" in preview._repr_html_()  # notebooks cut words in two otherwise
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(preview)
    assert "<b>[bold]" in console.export_text()


def test_a_preview_does_not_need_a_metric() -> None:
    assert len(Task(ROWS, prompt="{dialogue}").preview(10).rows) == 2


def test_names_for_studies_are_tame(tmp_path: Any) -> None:
    path = tmp_path / "my rows (2).jsonl"
    path.write_text("\n".join(json.dumps(row) for row in ROWS))
    assert task(dataset=str(path)).study_part == "my-rows-2"
    assert task(name="über/alles").study_part == "über-alles"
    assert task(dataset=str(path), limit=1).prepare().name == "my-rows-2"


@pytest.mark.parametrize("template", ["{text:.2f}", "{text.real.missing}", "{text[key]}", "{text!z}"])
def test_a_template_that_cannot_be_filled_names_the_row(template: str) -> None:
    with pytest.raises(InputError, match=r"row \d: the prompt template .* cannot be filled|is broken"):
        Task([{"text": 1.0}, {"text": "a b"}], prompt=template, metric="f1").prepare()
