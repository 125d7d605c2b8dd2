"""The commands on a study: run it, stop it, go on with it, read it, ship it."""

from __future__ import annotations

import json
from pathlib import Path

import optuna
import pytest

from llmsearch_optuna.cli.run import _count_of
from llmsearch_optuna.errors import InputError
from llmsearch_optuna.search_result import load_result
from llmsearch_optuna.workers import devices
from tests.cli.conftest import Stopped  # by the name under which a worker finds it

from .conftest import STUDY, WordEngine, run


def test_run_ends_with_the_table_and_where_everything_is(capsys, workplace):
    code, out, err = run(capsys, "run", "study.toml")
    assert code == 0, err
    result = load_result("studies/words.db")
    lines = out.splitlines()
    assert max(map(len, lines)) <= 80
    for name, trial in (("baseline", result.trials[0]), ("greedy", result.trials[1]), ("best", result.best_trial)):
        (line,) = [line for line in lines if line.startswith(f"{name} (trial {trial.number})")]
        assert f"{trial.value:.4f}" in line
    assert f"{result.best_score:.4f} ± {result.best_score_error:.4f}  " in line
    assert len({line.index("0.") for line in lines if line.startswith(("baseline (", "greedy (", "best ("))}) == 1
    verdict = result.verdict
    assert f"{verdict.winner_mean:.4f}" in out
    assert f"{verdict.difference:+.4f}" in out
    assert " ".join(verdict.sentence.split()) in " ".join(out.split())
    assert Path("studies/words.html").stat().st_size > 1_000_000
    assert "llmsearch-optuna dashboard studies/words.db" in out
    # Progress goes elsewhere, so that the table can be piped.
    assert "study words: 12 trials on 28 rows, rouge1 (higher is better)" in err
    assert err.count("[") >= 12
    assert "best so far" in err


def test_run_again_does_nothing_but_tell(capsys, workplace, monkeypatch):
    first = run(capsys, "run", "study.toml", "--quiet")
    engine = WordEngine()
    monkeypatch.setattr("llmsearch_optuna.study_file.arguments._model", lambda section: engine)
    second = run(capsys, "run", "study.toml", "--quiet")
    assert engine.calls == []
    assert first == second
    assert first[2] == ""


def test_run_with_other_values_of_the_command_line(capsys, workplace):
    Path("more.jsonl").write_text(Path("rows.jsonl").read_text(encoding="utf-8"), encoding="utf-8")
    arguments = ["--data", "more.jsonl", "--rows", "24", "--n-trials", "4", "--name", "other", "--storage", "o.db"]
    code, out, err = run(capsys, "run", "study.toml", *arguments, "--report", "r/other.html", "--json", "-q")
    assert code == 0, err
    found = json.loads(out)
    assert (found["study"], found["trials"], found["report"]) == ("other", 4, "r/other.html")
    assert Path("r/other.html").is_file()
    assert found["verdict"]["answer"] in ("better", "worse", "no evidence")
    assert found["best_params"]["max_new_tokens"] == 20
    result = load_result("o.db")
    assert found["best_score"] == result.best_score
    assert found["best_score_error"] == result.best_score_error > 0
    assert found["expected_score"] == result.expected_score == result.selection.score


def test_a_study_whose_baseline_cannot_decode_says_why_and_goes_on_once_it_can(capsys, workplace, monkeypatch):
    class Broken(WordEngine):
        def generate(self, prompts, params):
            raise RuntimeError("no power")

    monkeypatch.setattr("llmsearch_optuna.study_file.arguments._model", lambda section: Broken())
    arguments = ["run", "study.toml", "-q", "--n-trials", "2", "--json"]
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (1, "")
    assert "the baseline cannot decode" in err
    assert "no power" in err
    found = json.loads(run(capsys, "status", "words", "--json")[1])
    assert (found["baseline"], found["best"], found["verdict"]) == (None, None, None)
    monkeypatch.setattr("llmsearch_optuna.study_file.arguments._model", lambda section: WordEngine())
    code, out, _ = run(capsys, *arguments)
    assert (code, json.loads(out)["failures"]) == (0, {})


def test_an_interrupted_run_says_how_to_go_on_and_goes_on(capsys, workplace, monkeypatch):
    class Interrupted(WordEngine):
        def generate(self, prompts, params):
            if len(self.calls) > 60:
                raise KeyboardInterrupt
            return super().generate(prompts, params)

    monkeypatch.setattr("llmsearch_optuna.study_file.arguments._model", lambda section: Interrupted())
    code, out, err = run(capsys, "run", "study.toml")
    assert (code, out) == (130, "")
    assert "Run the same command again to go on." in err.splitlines()[-1]
    assert "Traceback" not in err
    status = run(capsys, "status", "words")[1]
    assert "not yet" in status
    monkeypatch.setattr("llmsearch_optuna.study_file.arguments._model", lambda section: WordEngine())
    assert run(capsys, "run", "study.toml", "-q")[0] == 0
    assert len(load_result("studies/words.db").trials) == 12


def test_a_changed_study_is_refused_with_what_changed(capsys, workplace):
    run(capsys, "run", "study.toml", "-q", "--n-trials", "3")
    Path("study.toml").write_text(STUDY.replace("Repeat:", "Say again:"), encoding="utf-8")
    code, _, err = run(capsys, "run", "study.toml", "-q")
    assert code == 1
    assert "prompt" in err
    assert "Traceback" not in err


def test_data_can_be_left_to_the_command_line(capsys, workplace):
    Path("study.toml").write_text(STUDY.replace('path = "rows.jsonl"\n', ""), encoding="utf-8")
    code, _, err = run(capsys, "run", "study.toml")
    assert code == 1
    assert "give --data PATH" in err


def test_the_study_knows_its_file_and_the_dashboard_its_note(finished):
    result = load_result(str(finished))
    assert result.study.user_attrs["study_file"] == STUDY
    assert result.study.metric_names == ["rouge1"]
    page = finished.with_suffix(".html").read_text(encoding="utf-8")
    assert "Repeat: {words}" in page
    assert result.verdict.headline in page.replace("&#x27;", "'")


@pytest.mark.parametrize("study", ["database", "name", "file", "url"])
def test_status_finds_a_study_by_whatever_names_it(capsys, finished, monkeypatch, study):
    monkeypatch.chdir(finished.parent.parent)
    named = {"database": "studies/words.db", "name": "words", "file": "study.toml", "url": f"sqlite:///{finished}"}
    code, out, err = run(capsys, "status", named[study])
    assert code == 0, err
    result = load_result(str(finished))
    assert "12 of 12" in out
    assert f"{result.trials[0].value:.4f} rouge1" in out
    assert f"{result.best_score:.4f} ± {result.best_score_error:.4f} rouge1" in out
    assert max(map(len, out.splitlines())) <= 80


def test_status_tells_what_is_in_hand_and_how_to_go_on(capsys, workplace, monkeypatch):
    class Interrupted(WordEngine):
        def generate(self, prompts, params):
            if len(self.calls) > 60:
                assert "1 process" in run(capsys, "status", "words")[1]
                raise KeyboardInterrupt
            return super().generate(prompts, params)

    monkeypatch.setattr("llmsearch_optuna.study_file.arguments._model", lambda section: Interrupted())
    assert run(capsys, "run", "study.toml", "-q")[0] == 130
    code, out, err = run(capsys, "status", "words")
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 80
    assert "nobody; run the same command again to go on" in out
    assert "/28 rows" in out
    facts = json.loads(run(capsys, "status", "words", "--json")[1])
    assert facts["workers"] == 0
    assert facts["in_hand"][0]["rows_total"] == 28
    assert facts["states"]["running"] == len(facts["in_hand"])


def test_status_as_json(capsys, finished):
    facts = json.loads(run(capsys, "status", str(finished), "--json")[1])
    assert facts["trials"] == facts["n_trials"] == sum(facts["states"].values()) == 12
    assert facts["best"]["score"] >= facts["baseline"]["score"]
    result = load_result(str(finished))
    assert facts["best"]["score_error"] == result.best_score_error > 0
    assert facts["best"]["expected_score"] == result.expected_score
    assert facts["work"]["rows_per_second"] > 0
    assert facts["work"]["memory"] > 10**7
    assert facts["in_hand"] == []


def test_report_goes_where_it_is_sent(capsys, finished, tmp_path):
    code, out, _ = run(capsys, "report", str(finished), "-o", str(tmp_path / "new" / "r.html"))
    assert (code, out) == (0, f"report: {tmp_path}/new/r.html\n")
    assert (tmp_path / "new" / "r.html").stat().st_size > 1_000_000


def test_stored_completions_are_scored_again(capsys, finished, tmp_path):
    page = tmp_path / "r.html"
    code, out, err = run(capsys, "report", str(finished), "--rescore", "chrf", "--rescore", "rouge2", "-o", str(page))
    assert code == 0, err
    assert max(map(len, out.splitlines()[:-1])) <= 80
    result = load_result(str(finished))
    for metric in ("chrf", "rouge2"):
        found = result.rescore(metric).set_index("number")[metric]
        assert f"{found[0]:.4f}" in out
        assert f"{metric}, holdout" in page.read_text()
        assert f"{found[0]:.4f}</td>" in page.read_text()
    code, _, err = run(capsys, "report", str(finished), "--rescore", "rouge9", "-o", str(page))
    assert (code, "rouge9" in err) == (1, True)


def test_a_report_that_cannot_be_written_is_said_in_words(capsys, finished, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err = run(capsys, "report", str(finished), "-o", str(tmp_path / "file" / "r.html"))
    assert code == 1
    assert "the report cannot be written" in err


def test_export_writes_what_is_recommended_and_why(capsys, finished, tmp_path):
    code, out, _ = run(capsys, "export", str(finished), "--output", str(tmp_path / "tuned"))
    assert code == 0
    result = load_result(str(finished))
    winner = result.verdict.recommends_winner
    assert f"{'the winner' if winner else 'the baseline'}'s parameters" in out
    config = json.loads((tmp_path / "tuned" / "generation_config.json").read_text(encoding="utf-8"))
    assert config["max_new_tokens"] == 20
    assert json.loads((tmp_path / "tuned" / "evidence.json").read_text(encoding="utf-8"))["summary"] == result.summary


def test_score_of_the_baseline_and_of_other_parameters(capsys, workplace):
    code, out, err = run(capsys, "score", "study.toml", "--rows", "8", "--completions", "2")
    assert code == 0, err
    assert out.count("\nrow ") == 2
    base = json.loads(run(capsys, "score", "study.toml", "--json")[1])
    Path("p.json").write_text('{"temperature": 1.9, "transformers_version": "5"}', encoding="utf-8")
    worse = json.loads(run(capsys, "score", "study.toml", "--params", "p.json", "--json")[1])
    better = json.loads(run(capsys, "score", "study.toml", "--params", "p.json", "temperature=0.7", "--json")[1])
    assert worse["params"]["temperature"] == 1.9
    assert better["params"]["temperature"] == 0.7
    assert better["score"] > worse["score"]
    assert len(base["scores"]) == len(base["completions"]) == 40


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("temperature", "'temperature' is no parameter; write NAME=VALUE"),
        ("temprature=1", "Did you mean 'temperature'"),
        ("temperature=hot", "temperature='hot'"),
        ("--params=nowhere.json", "nowhere.json cannot be read"),
        ("--params=rows.jsonl", "rows.jsonl cannot be read"),
    ],
)
def test_score_answers_mistakes_in_words(capsys, workplace, argument, message):
    code, _, err = run(capsys, "score", "study.toml", argument)
    assert code == 1
    assert message in err


def test_dashboard_says_where_it_is_and_ends_quietly(capsys, finished, monkeypatch):
    from llmsearch_optuna import dashboard

    def interrupted(opened, *, port):
        assert isinstance(opened.study, optuna.Study)
        raise KeyboardInterrupt

    monkeypatch.setattr(dashboard, "serve", interrupted)
    code, _, err = run(capsys, "dashboard", str(finished), "--port", "8099")
    assert code == 0
    assert "http://127.0.0.1:8099/dashboard" in err


def test_dashboard_names_the_extra_when_it_is_missing(capsys, finished, monkeypatch):
    monkeypatch.setattr("llmsearch_optuna.dashboard.is_installed", lambda: False)
    code, _, err = run(capsys, "dashboard", str(finished))
    assert code == 1
    assert "pip install 'llmsearch-optuna[dashboard]'" in err


def test_a_bundle_is_opened_elsewhere_and_goes_on_there(capsys, workplace):
    assert run(capsys, "run", "study.toml", "-q", "--rows", "30", "--n-trials", "4")[0] == 0
    code, out, err = run(capsys, "export", "words", "--bundle", "handed/on.zip")
    assert (code, err) == (0, "")
    code, out, _ = run(capsys, "import", "handed/on.zip", "-o", "elsewhere")
    assert code == 0
    assert "llmsearch-optuna run elsewhere/study.toml --storage elsewhere/study.db" in out
    assert "4 of 4" in run(capsys, "status", "elsewhere/study.db")[1]
    code, _, err = run(capsys, "run", "elsewhere/study.toml", "--storage", "elsewhere/study.db", "-q")
    assert (code, err) == (0, "")
    assert run(capsys, "report", "elsewhere/study.db")[0] == 0
    code, _, err = run(capsys, "export", "words")
    assert (code, err) == (1, "error: give either --output FOLDER or --bundle FILE.zip\n")


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.faults)])
def test_a_bundle_of_a_study_that_was_stopped_goes_on_elsewhere(capsys, workplace, monkeypatch, workers):
    monkeypatch.setattr("llmsearch_optuna.study_file.arguments._model", lambda section: Stopped())
    assert run(capsys, "run", "study.toml", "-q", "--n-trials", "6", "--workers", str(workers))[0] != 0
    assert run(capsys, "export", "words", "--bundle", "b.zip")[0] == 0
    out = run(capsys, "import", "b.zip", "-o", "elsewhere")[1]
    assert "go on with: llmsearch-optuna run elsewhere/study.toml --storage elsewhere/study.db" in out
    assert "n_trials = 6" in Path("elsewhere/study.toml").read_text(encoding="utf-8")
    monkeypatch.setattr("llmsearch_optuna.study_file.arguments._model", lambda section: WordEngine())
    code, _, err = run(capsys, "run", "elsewhere/study.toml", "--storage", "elsewhere/study.db", "-q")
    assert (code, err) == (0, "")
    assert "6 of 6" in run(capsys, "status", "elsewhere/study.db")[1]


def test_two_studies_are_compared_in_a_table_and_on_a_page(capsys, workplace):
    for name, prompt in (("words", "Repeat:"), ("others", "Repeat: ")):
        Path("study.toml").write_text(STUDY.replace("Repeat:", prompt), encoding="utf-8")
        assert run(capsys, "run", "study.toml", "-q", "--name", name, "--n-trials", "4")[0] == 0
    code, out, err = run(capsys, "compare", "words", "others", "-o", "both.html")
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 80
    assert "rows" in out.splitlines()[0]
    assert out.splitlines()[-1] == "comparison: both.html"
    assert Path("both.html").stat().st_size > 1_000_000


def test_auto_is_one_worker_for_each_gpu(monkeypatch):
    monkeypatch.setattr(devices, "visible_gpus", lambda device: ["0", "1", "2"])
    assert _count_of("auto", None, None) == 3
    monkeypatch.setattr(devices, "visible_gpus", lambda device: [])
    assert _count_of("auto", None, None) == 1
    assert _count_of("4", "auto", None) == 4


@pytest.mark.parametrize(
    ("workers", "ray", "why"),
    [("0", None, "number from 1 on"), ("x", None, "number from 1 on"), ("auto", "auto", "say how many")],
)
def test_what_stands_for_no_workers_is_refused(capsys, workplace, workers, ray, why):
    with pytest.raises(InputError, match=why):
        _count_of(workers, ray, None)
    if ray is None:
        code, _, err = run(capsys, "run", "study.toml", "--workers", workers)
        assert code != 0
        assert err == f"error: --workers {workers} must be auto, or a number from 1 on\n"
