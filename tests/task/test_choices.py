"""What of a task can be chosen, how its values are called, and which rows belong together under several prompts."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmsearch_optuna.errors import InputError
from llmsearch_optuna.task.choices import TaskChoices, fixed_variables
from llmsearch_optuna.task.split import same_in_any, split_rows
from llmsearch_optuna.task.task import Task

ROWS = [{"q": f"word {n}", "short": "ab"[n % 2], "a": "x"} for n in range(6)]
CHAT = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"


def choices(prompt: Any = None, system: Any = None, **variables: Any) -> TaskChoices:
    return TaskChoices.of(prompt, system, variables or None)


def task(**described: Any) -> Task:
    return Task(**{"dataset": ROWS, "prompt": "Q: {q}", "reference": "a", "metric": "f1", **described})


@pytest.mark.parametrize(
    "prompt", ["one {q}", None, [{"role": "user", "content": "{q}"}], ["only {q}"], {"only": "one {q}"}, len]
)
def test_one_prompt_is_no_choice(prompt: Any) -> None:
    assert not choices(prompt)
    assert choices(prompt).combinations() == [{}]


def test_a_list_is_numbered_by_its_first_words_and_names_are_kept() -> None:
    def by_row(row: dict[str, Any]) -> str:
        return str(row["q"])

    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "Ask {q}"}]
    found = choices(["Summarize the dialogue in one short sentence, please: {q}", messages, by_row])
    assert found.first == {"prompt": "1. Summarize the dialogue in one short…"}
    (choice,) = found
    assert choice.labels[1:] == ("2. Ask {q}", "3. by_row")
    assert choices({"short": "a {q}", "long": "b {q}"}).combinations() == [{"prompt": "short"}, {"prompt": "long"}]
    assert next(iter(choices(system=["", None, "Be brief."]))).labels == ("1. ", "2. none", "3. Be brief.")


def test_variables_of_the_template_are_called_by_their_values() -> None:
    found = choices(enable_thinking=[True, False], effort=["low", "high"], tools=[[1]], kept=3)
    assert found.first == {"chat_template_kwargs.enable_thinking": True, "chat_template_kwargs.effort": "low"}
    chosen = {"chat_template_kwargs.enable_thinking": False, "chat_template_kwargs.effort": "high"}
    assert found.options(chosen) == {"chat_template_kwargs": {"enable_thinking": False, "effort": "high"}}
    assert found.place(chosen) == 3
    assert next(iter(choices(a=[None, {"b": 1}]))).labels == ("none", '{"b": 1}')


def test_a_list_of_dicts_is_one_value_and_several_of_them_are_chosen_from() -> None:
    one, two = {"type": "function", "function": {"name": "f"}}, {"type": "function", "function": {"name": "g"}}
    assert not TaskChoices.of("{q}", None, {"tools": [one, two]})
    assert fixed_variables({"tools": [one, two]}) == {"tools": [one, two]}
    (choice,) = TaskChoices.of("{q}", None, {"tools": [[one], [one, two]]})
    assert [choice.value_of(label) for label in choice.labels] == [[one], [one, two]]


def test_every_combination_has_its_place() -> None:
    found = choices(["a {q}", "b {q}", "c {q}"], [None, "s"], thinking=[True, False], effort=[1, 2.5, "x"])
    assert [found.place({**labels, "top_k": 3}) for labels in found.combinations()] == list(range(36))
    assert found.combinations()[0] == found.first


def test_a_value_can_be_named_by_itself() -> None:
    found = choices(["a {q}", "b {q}"])
    assert found.labelled({"prompt": "b {q}", "top_k": 3}) == {"prompt": "2. b {q}", "top_k": 3}
    with pytest.raises(InputError, match=r"prompt='c {q}' is none of '1. a {q}', '2. b {q}'"):
        found.labelled({"prompt": "c {q}"})


def test_what_is_stored_says_all_of_it() -> None:
    found = choices({"a": "x {q}", "b": "y {q}"}, {"no": None, "yes": "S"}, thinking=[True, False])
    assert TaskChoices.from_description(found.description) == found


@pytest.mark.parametrize(
    ("prompt", "system", "variables", "said"),
    [
        ([], "s", {}, None),
        ({}, None, {}, r"prompt=\{\} is empty"),
        (["a {q}", "a {q}"], None, {}, r"'1. a {q}' and '2. a {q}' are the same"),
        ({"": "a {q}", "b": "b {q}"}, None, {}, "'' is no name"),
        ({"role": "user", "content": "{q}"}, None, {}, "is one chat message; give a list of messages"),
        (None, [1, "s"], {}, "system: 1 is no text"),
        (None, [], {}, r"system=\[\] is empty"),
        (None, None, {"tools": {"type": "function"}}, "must be a list of tools"),
        (None, None, {"x": []}, "chat_template_kwargs.x is an empty list"),
        (None, None, {"x": [True, 1]}, "the values True and 1 are the same"),
        (None, None, {"x": [{1, 2}, "s"]}, "cannot be written as JSON"),
    ],
)
def test_wrong_inputs_are_said_in_words(prompt: Any, system: Any, variables: dict[str, Any], said: str | None) -> None:
    if said is None:  # no list of choices but one of messages, which is refused with the rows
        assert not choices(prompt, system)
        return
    with pytest.raises(InputError, match=said):
        choices(prompt, system, **variables)


def test_every_way_to_ask_is_prepared_as_it_would_be_alone() -> None:
    several = task(prompt={"one": "Q: {q}", "two": "Please: {q}"}, system=[None, "Be brief."]).prepare()
    for labels, prompt, system in [
        ({"prompt": "one", "system": "1. none"}, "Q: {q}", None),
        ({"prompt": "two", "system": "2. Be brief."}, "Please: {q}", "Be brief."),
    ]:
        alone, under = task(prompt=prompt, system=system).prepare(), several.under(labels)
        assert (under.prompts, under.occurrences) == (alone.prompts, alone.occurrences)
        assert under.add_special_tokens == alone.add_special_tokens
    assert several.prompts == several.variants[0].prompts == task().prepare().prompts


def test_one_way_to_ask_has_the_description_that_it_had_before() -> None:
    plain = task().prepare()
    assert "choices" not in plain.description
    assert task(prompt=["Q: {q}"], system=[None]).prepare().description == plain.description
    fixed = task(chat_template_kwargs={"enable_thinking": False}).prepare().description
    assert fixed == task(chat_template={"enable_thinking": False}).prepare().description
    assert "choices" in task(prompt=["Q: {q}", "R: {q}"]).prepare().description


def test_a_prompt_that_cannot_be_made_is_named() -> None:
    with pytest.raises(InputError, match=r"prompt='b': the prompt template: there is no column 'nowhere'"):
        task(prompt={"a": "Q: {q}", "b": "{nowhere}"}).read()
    with pytest.raises(InputError, match=r"prompt is not said, and there are several; name one of 'a', 'b'"):
        task(prompt={"a": "Q: {q}", "b": "R: {q}"}).prepare().under({})
    with pytest.raises(InputError, match=r"prompt='c' is none of 'a', 'b'"):
        task(prompt={"a": "Q: {q}", "b": "R: {q}"}).prepare().under({"prompt": "c"})
    with pytest.raises(InputError, match="chat_template=False switches it off"):
        task(chat_template=False, chat_template_kwargs={"thinking": [True, False]})


def test_a_variable_that_the_template_does_not_read_is_refused(tiny_tokenizer: Any) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = CHAT
    asked = task(chat_template_kwargs={"enable_thinking": [True, False]})
    with pytest.raises(InputError, match=r"enable_thinking=True and .*enable_thinking=False make the same prompts"):
        asked.prepare(tokenizer)
    tokenizer.chat_template = CHAT + "{% if enable_thinking %}<think>{% endif %}"
    first, second = asked.prepare(tokenizer).variants
    assert first.prompts[0] == "<user>Q: word 0<think>"
    assert second.prompts[0] == "<user>Q: word 0"


def test_rows_that_any_prompt_asks_alike_stay_together() -> None:
    prepared = task(prompt=["Q: {q}", "S: {short}"]).prepare()
    assert prepared.distinct == (0, 1, 0, 1, 0, 1)
    assert prepared.under({"prompt": "2. S: {short}"}).occurrences == (0, 0, 1, 1, 2, 2)
    assert prepared.under({"prompt": "1. Q: {q}"}).occurrences == (0,) * 6


texts = st.lists(st.lists(st.sampled_from("abcd"), min_size=25, max_size=25), min_size=1, max_size=3)


@given(texts, st.integers(0, 5))
def test_no_prompt_is_on_both_sides_of_the_split(ways: list[list[str]], seed: int) -> None:
    searched, held = split_rows(same_in_any(ways), 0.3, seed)
    assert sorted([*searched, *held]) == list(range(25))
    for of_rows in ways:
        assert not {of_rows[row] for row in searched} & {of_rows[row] for row in held}


@given(texts)
def test_groups_are_no_larger_than_they_must_be(ways: list[list[str]]) -> None:
    """The slow twin: spread each number over its neighbours until nothing changes."""
    groups = list(range(25))
    while True:
        spread = [
            min(groups[other] for other in range(25) if any(way[row] == way[other] for way in ways))
            for row in range(25)
        ]
        if spread == groups:
            break
        groups = spread
    numbers = {group: place for place, group in enumerate(dict.fromkeys(groups))}
    assert same_in_any(ways) == tuple(numbers[group] for group in groups)
