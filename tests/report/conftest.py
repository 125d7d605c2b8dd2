"""A study that never ran, with everything that a report can show, nasty texts included."""

from __future__ import annotations

import numpy as np
import pytest

from llmsearch_optuna.report import Example, Holdout, ReportData, TrialPoint

NASTY = (
    "</script><script>document.title='owned'</script> \"quotes\" & 'more' \x1b[31m\x00 "
    "\u202egnp.exe \u05e9\u05dc\u05d5\u05dd 😀 <b>"
)


def make_report_data(*, trials: int = 24, seed: int = 3) -> ReportData:
    """A study of three branches whose score rises with num_beams and falls with the temperature."""
    rng = np.random.default_rng(seed)
    points = []
    for number in range(trials):
        kind = ("greedy", "sampling", "beam")[2 if number % 5 in (2, 4) else 0 if number < 2 else 1]
        params: dict[str, object] = {"branch": kind}
        value = 0.22
        if kind == "sampling":
            params |= {"temperature": float(rng.uniform(0.2, 1.5)), "top_p": float(rng.uniform(0.5, 1.0))}
            value -= 0.05 * params["temperature"] - 0.03 * params["top_p"]
        if kind == "beam":
            params |= {"num_beams": int(rng.integers(2, 7)), "length_penalty": float(rng.uniform(-1, 2))}
            value += 0.012 * params["num_beams"] + 0.01 * params["length_penalty"]
        value += float(rng.normal(0, 0.008))
        state = "failed" if number == 9 else "pruned" if kind == "sampling" and number % 3 == 0 else "complete"
        rows = {"failed": 7, "pruned": 16, "complete": 42}[state]
        steps = [k for k in (8, 16, 24, 32, 42) if k <= rows]
        curve = tuple((k, value + float(rng.normal(0, 0.04 / k**0.5))) for k in steps)
        points.append(
            TrialPoint(
                number=number,
                state=state,
                value=None if state == "failed" else value,
                params=params,
                kind=kind,
                rows=rows,
                seconds=float(rng.uniform(3, 20)),
                tokens=float(rng.uniform(20, 60)),
                reason={"failed": f"row 7: the metric raised {NASTY}", "pruned": "chance below 2 %"}.get(state),
                curve=curve if state != "failed" else (),
                role={0: "baseline", 1: "greedy"}.get(number, ""),
            )
        )
    best = max((p for p in points if p.state == "complete"), key=lambda p: p.value)
    differences = tuple(float(x) for x in np.round(rng.normal(0.06, 0.11, 18), 3))
    arabic, hebrew = "\u0627\u0644\u0633\u0644\u0627\u0645", "\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd"
    question = "The user asks a question about the train."
    texts = [
        ("They meet at the station at seven.", "Anna and Ben will meet at the station at half past seven."),
        (f"{question} {question}", "Ben bought two tickets."),
        (NASTY, NASTY.replace("more", "less")),
        (f"Report {arabic} end", hebrew),
        ("same text", "same text"),
    ]
    examples = tuple(
        Example(
            row=i,
            prompt="Summarize the dialogue.\n"
            + "Anna: When does the train leave?\nBen: At half past seven. " * 12
            + NASTY,
            reference="Anna and Ben take the train at half past seven." if i % 2 else NASTY,
            baseline_text=texts[i % len(texts)][0],
            best_text=texts[i % len(texts)][1],
            baseline_score=0.25,
            best_score=0.25 + differences[i],
        )
        for i in range(18)
    )
    common = {"max_new_tokens": 40, "stop": ["\n\n", NASTY]}
    return ReportData(
        study_name="smollm2-dialogues",
        metric="rouge1",
        model="SmolLM2-135M-Instruct",
        dataset="60 bundled dialogues",
        rows=42,
        verdict_sentence="Better: on 18 unseen rows the best parameters score 0.286 in rouge1, the baseline 0.221 "
        "(+0.065, 95 % interval +0.012 to +0.118).",
        verdict="better",
        recommends_best=True,
        trials=tuple(points),
        best_number=best.number,
        best_params={**common, **best.params},
        baseline_params={**common, "do_sample": False},
        recommended_params={**common, **best.params},
        holdout=Holdout(
            baseline_mean=0.221,
            best_mean=0.286,
            difference=float(np.mean(differences)),
            low=0.012,
            high=0.118,
            p_value=0.021,
            decoded="Both were decoded 3 times with fresh noise.",
            differences=differences,
        ),
        importances={"branch": 0.46, "num_beams": 0.27, "temperature": 0.15, "top_p": 0.08, "length_penalty": 0.04},
        costs=(
            ("wall time", "6 min 12 s"),
            ("forward passes", "5,634"),
            ("tokens replayed instead of computed", "4,932 (47 %)"),
            ("rows spared by pruning", "208 of 1,008"),
        ),
        examples=examples,
        examples_from="the holdout",
        fingerprint="9f8a1c",
        versions={"llmsearch-optuna": "0.1.0", "transformers": "5.23.0"},
        storage="sqlite:///studies/smollm2-dialogues.db",
        study_file='[study]\nname = "smollm2-dialogues"\nstop = ["</script>"]\n',
    )


@pytest.fixture
def report_data() -> ReportData:
    return make_report_data()
