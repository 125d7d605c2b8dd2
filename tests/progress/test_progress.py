"""Progress: plain lines, the live view, and that nothing can drive the terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from llmsearch_optuna.progress import (
    PowerKnown,
    Quiet,
    RowsScored,
    StudyEnded,
    StudyStarted,
    Terminal,
    TrialEnded,
    TrialStarted,
    VerdictStarted,
    WorkMeasured,
    describe_params,
    describe_work,
    printable,
    short_time,
)


class Clock:
    """A clock that moves when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def study(**changes: object) -> StudyStarted:
    values = dict(
        study_name="demo", n_trials=4, finished_trials=0, rows=40, storage="sqlite:///demo.db", metric="rouge1"
    )
    return StudyStarted(**{**values, **changes})


BASELINE = {"max_new_tokens": 40, "do_sample": False}
SAMPLED = {"max_new_tokens": 40, "do_sample": True, "temperature": 0.71234567}


def run_plain(events: list[object], clock: Clock | None = None) -> str:
    out = io.StringIO()
    with Terminal(Console(file=out, width=80, force_terminal=False), clock=clock or Clock()) as terminal:
        for event in events:
            terminal.on(event)
    return out.getvalue()


def test_plain_lines_tell_the_story_once():
    text = run_plain(
        [
            study(),
            TrialStarted(number=0, params=BASELINE, kind="greedy", rows=40),
            RowsScored(number=0, rows_done=40, rows_total=40, mean=0.21),
            TrialEnded(number=0, state="complete", value=0.21, seconds=12.0, is_best=True),
            TrialStarted(number=1, params=SAMPLED, kind="sampling", rows=40),
            RowsScored(number=1, rows_done=16, rows_total=40, mean=0.1, incumbent_mean=0.22),
            TrialEnded(number=1, state="pruned", value=0.1, reason="no chance", seconds=3.0),
            TrialStarted(number=2, params=SAMPLED, kind="sampling", rows=40),
            TrialEnded(number=2, state="failed", value=None, reason="row 7 is too long", seconds=0.2),
            VerdictStarted(rows=17, replicates=3),
            StudyEnded(result_summary="no evidence"),
        ]
    )
    assert not {"\x1b", "\r"} & set(text)  # no bar where nobody looks
    lines = text.splitlines()
    assert lines[0] == "study demo: 4 trials on 40 rows, rouge1 (higher is better)"
    assert lines[1] == "stored in sqlite:///demo.db"
    assert "[1/4] trial 0    0.2100 best so far greedy max_new_tokens=40 do_sample=False (12 s)" in lines[2]
    # What equals the baseline is not repeated, and the running look shows where the trial was stopped.
    assert "pruned after 16 of 40 rows sampling do_sample=True temperature=0.7123 (3.0 s)" in lines[3]
    assert "failed: row 7 is too long;" in lines[4]
    assert "17 held-out rows, 3 times where something is sampled" in lines[5]
    assert lines[6] == "no evidence"
    assert len(lines) == 7


@pytest.mark.parametrize("is_terminal", [True, False])
def test_sentences_are_told_in_full(is_terminal: bool):
    """Lines of the log are cut at the terminal's edge; what the rows can show and how it ended are not."""
    power = "On 18 held-out rows a true difference of 0.05 would be found. " + "Rows needed about 2,000 " * 5 + "END1"
    out = io.StringIO()
    terminal = Terminal(Console(file=out, width=80, force_terminal=is_terminal), clock=Clock())
    for event in (study(), PowerKnown(text=power), StudyEnded(result_summary="No evidence " * 20 + "END2")):
        terminal.on(event)
    assert "END1" in out.getvalue()
    assert "END2" in out.getvalue()


def test_plain_lines_show_the_time_left():
    clock = Clock()
    out = io.StringIO()
    terminal = Terminal(Console(file=out, width=80), clock=clock)
    terminal.on(study())
    terminal.on(TrialStarted(number=0, params=BASELINE, kind="greedy", rows=40))
    clock.now += 60
    terminal.on(TrialEnded(number=0, state="complete", value=0.2, seconds=60))
    assert "about 3 min left" in out.getvalue()


def test_plain_lines_show_that_a_long_trial_is_alive():
    clock = Clock()
    out = io.StringIO()
    terminal = Terminal(Console(file=out, width=80), clock=clock)
    terminal.on(study())
    terminal.on(TrialStarted(number=0, params=BASELINE, kind="greedy", rows=40))
    for rows in (8, 16, 24, 32):
        clock.now += 20
        terminal.on(RowsScored(number=0, rows_done=rows, rows_total=40, mean=0.25))
    lines = [line for line in out.getvalue().splitlines() if line.startswith("trial 0")]
    assert [line.split()[2] for line in lines] == ["16/40", "32/40"]


def test_a_resumed_study_says_so_and_minimizing_is_named():
    text = run_plain([study(finished_trials=3, direction="minimize", best_number=1, best_value=0.4)])
    assert "lower is better" in text
    assert "3 trials are there already" in text


def test_live_view_shows_trial_incumbent_and_best():
    out = io.StringIO()
    console = Console(file=out, width=100, force_terminal=True, color_system=None, legacy_windows=False)
    clock = Clock()
    with Terminal(console, clock=clock) as terminal:
        terminal.on(study())
        terminal.on(TrialStarted(number=0, params=BASELINE, kind="greedy", rows=40))
        clock.now += 60
        terminal.on(TrialEnded(number=0, state="complete", value=0.2, seconds=60, is_best=True))
        terminal.on(TrialStarted(number=1, params=SAMPLED, kind="sampling", rows=40))
        terminal.on(RowsScored(number=1, rows_done=20, rows_total=40, mean=0.25, incumbent_mean=0.22))
        probe = Console(width=100, file=io.StringIO())
        probe.print(terminal._render())
        shown = probe.file.getvalue()
    assert "1/4 trials" in shown
    assert "about 2 min left" in shown  # two and a half trials at one minute each
    assert "trial 1  20/40 rows  0.2500 (incumbent 0.2200)  sampling" in shown
    assert "best  trial 0  0.2000" in shown


WORK = WorkMeasured(rows_per_second=4.234, replayed_share=0.466, memory=2_140_000_000, gpu_memory=71_900_000_000)


def test_live_view_shows_how_the_work_goes_in_a_line_of_80_columns_and_not_during_the_verdict():
    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None, legacy_windows=False)
    with Terminal(console, clock=Clock()) as terminal:
        terminal.on(study())
        terminal.on(TrialStarted(number=0, params=BASELINE, kind="greedy", rows=40))
        terminal.on(WORK)
        shown = rendered(terminal)
        assert "4.2 rows/s   2.1 GB memory   71.9 GB on the GPU   47% of tokens replayed" in shown
        assert len(shown.splitlines()) == 3
        assert max(map(len, shown.splitlines())) <= 80
        for number in range(4):
            terminal.on(TrialEnded(number=number, state="complete", value=0.2))
        assert "4/4 trials" in rendered(terminal)
        assert "left" not in rendered(terminal)
        terminal.on(VerdictStarted(rows=17, replicates=3))
        assert "rows/s" not in rendered(terminal)


def rendered(terminal: Terminal) -> str:
    probe = Console(width=80, file=io.StringIO())
    probe.print(terminal._render())
    return probe.file.getvalue()


def test_plain_lines_show_how_the_work_goes_once_a_minute():
    clock = Clock()
    out = io.StringIO()
    terminal = Terminal(Console(file=out, width=80), clock=clock)
    terminal.on(WORK)  # before the study: nothing to say it of
    terminal.on(study())
    for _ in range(8):
        clock.now += 20
        terminal.on(WORK)
        terminal.on(WorkMeasured())
    lines = [line for line in out.getvalue().splitlines() if "rows/s" in line]
    assert lines == ["4.2 rows/s   2.1 GB memory   71.9 GB on the GPU   47% of tokens replayed"] * 2


def test_of_the_work_only_what_is_known_is_said():
    assert describe_work(WorkMeasured()) == ""
    assert describe_work(WorkMeasured(rows_per_second=0.0523, replayed_share=0.0)) == (
        "0.052 rows/s   0% of tokens replayed"
    )
    assert describe_work(WorkMeasured(rows_per_second=143.2)) == "143 rows/s"


def test_live_view_gives_the_cursor_back_when_interrupted():
    out = io.StringIO()
    console = Console(file=out, width=80, force_terminal=True)
    with pytest.raises(KeyboardInterrupt), Terminal(console, clock=Clock()) as terminal:
        terminal.on(study())
        raise KeyboardInterrupt
    assert terminal._live is None
    assert out.getvalue().rindex("\x1b[?25h") > out.getvalue().rindex("\x1b[?25l")


def test_events_without_a_study_are_ignored():
    Quiet().on(study())
    assert run_plain([TrialEnded(number=3, state="complete", value=1.0)]) == ""


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (9.96, "10 s"), (99.6, "2 min"), (150, "2 min"), (7200, "2 h 0 min")]
)
def test_short_time(seconds, text):
    assert short_time(seconds) == text


def test_no_text_can_drive_the_terminal():
    assert printable("a\x1b[2Jb\n") == "a\\x1b[2Jb\\n"
    assert printable("é 😀 ok") == "é 😀 ok"
    assert describe_params({"stop": ["\n\x1b"], "n": 3, "x": None}) == 'stop=["\\n\\u001b"] n=3 x=null'
    special = {"eos_token_id": 2, "n": 3}
    assert describe_params(special) == "n=3"
    assert describe_params(special, hide={"eos_token_id": 5}) == "eos_token_id=2 n=3"
    text = run_plain([study(study_name="a\x1b[31m[bold]b")])
    assert "\x1b" not in text
    assert "[bold]b" in text


def test_a_special_token_in_a_list_of_one_is_not_another_one() -> None:
    assert describe_params({"eos_token_id": [2], "top_k": 5}, hide={"eos_token_id": 2}) == "top_k=5"
    assert describe_params({"eos_token_id": [2, 3]}, hide={"eos_token_id": 2}) == "eos_token_id=[2, 3]"
