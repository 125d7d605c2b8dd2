"""Tasks of Inspect for the tests; read as a file, never imported by the tests."""

from __future__ import annotations

import random

from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.model import GenerateConfig
from inspect_ai.scorer import Score, Target, choice, includes, match, mean, metric, scorer
from inspect_ai.solver import TaskState, generate, multiple_choice, prompt_template, solver, system_message, use_tools
from inspect_ai.tool import tool

NAMES = ("Anna", "Ben", "Eva", "Tom")
SHORT = GenerateConfig(max_tokens=16)


def samples(count: int = 10) -> list[Sample]:
    return [
        Sample(
            input=f"{NAMES[n % 4]} has {n} apples. How many?", target="etaoinsrhl"[n % 10], id=n, metadata={"n": n + 1}
        )
        for n in range(count)
    ]


@task
def letters() -> Task:
    steps = [system_message("Answer with a letter."), prompt_template("{prompt}\nNumber {n}:"), generate()]
    return Task(dataset=samples(), solver=steps, scorer=includes(), config=SHORT, version=2)


@task
def choices() -> Task:
    found = [Sample(input=f"Number {n}?", choices=["one", "two"], target="AB"[n % 2], id=n) for n in range(4)]
    return Task(dataset=found, solver=multiple_choice(), scorer=choice(), config=SHORT)


@task
def options() -> Task:
    found = GenerateConfig(temperature=0.5, top_p=0.9, stop_seqs=["\n"], system_message="Be short.", max_connections=3)
    return Task(dataset=samples(3), solver=generate(max_tokens=7), scorer=match(), config=found)


@task
def greedy() -> Task:
    return Task(dataset=samples(3), scorer=match(), config=GenerateConfig(temperature=0.0, max_tokens=5))


@task
def twice() -> Task:
    return Task(dataset=samples(), solver=[generate(), generate()], scorer=match(), config=SHORT)


@solver
def chance():
    async def solve(state: TaskState, generate):
        state.user_prompt.text += str(random.random())
        return await generate(state)

    return solve


@task
def by_chance() -> Task:
    return Task(dataset=samples(), solver=chance(), scorer=match(), config=SHORT)


@solver
def silent():
    async def solve(state: TaskState, generate):
        return state

    return solve


@task
def asks_nothing() -> Task:
    return Task(dataset=samples(), solver=silent(), scorer=match())


@tool
def add():
    async def execute(x: int, y: int) -> int:
        """Add two numbers.

        Args:
            x: One.
            y: Another.
        """
        return x + y

    return execute


@task
def with_tools() -> Task:
    return Task(dataset=samples(), solver=[use_tools(add()), generate()], scorer=match(), config=SHORT)


@metric
def worst():
    def compute(scores) -> float:
        return min(score.score.as_float() for score in scores)

    return compute


@scorer(metrics=[worst()])
def of_all():
    async def score(state: TaskState, target: Target) -> Score:
        return Score(value=0.5)

    return score


@task
def of_the_worst() -> Task:
    return Task(dataset=samples(), scorer=of_all(), config=SHORT)


@scorer(metrics=[mean()])
def length():
    async def score(state: TaskState, target: Target) -> Score:
        return Score(value=len(state.output.completion))

    return score


@task
def lengths() -> Task:
    return Task(dataset=samples(3), scorer=length(), config=SHORT)


@task
def epochs() -> Task:
    return Task(dataset=samples(), scorer=match(), epochs=3, config=SHORT)


@task
def sandboxed() -> Task:
    return Task(dataset=samples(), scorer=match(), sandbox="local", config=SHORT)


@task
def unknown_option() -> Task:
    return Task(dataset=samples(), scorer=match(), config=GenerateConfig(max_tokens=4, best_of=3))


def no_task() -> int:
    return 3
