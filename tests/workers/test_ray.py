"""Workers on a Ray cluster of two nodes; what cannot be done there is refused before anything starts."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from llmsearch_optuna import progress
from llmsearch_optuna.cli import app
from llmsearch_optuna.engine.request import Completion
from llmsearch_optuna.errors import InputError, StudyError
from llmsearch_optuna.optimize.signals import StudyInterrupted
from llmsearch_optuna.search_result import load_result
from llmsearch_optuna.workers.ray_tasks import Share, check_ray, room, search_on_ray, share
from llmsearch_optuna.workers.ray_worker import Errand, check_node
from tests.cli.conftest import write_study
from tests.faults.study_child import SlowEngine, run, study_arguments
from tests.faults.test_kill import lines, signature, wait_for
from tests.optimize.studies import Recorder
from tests.postgres import empty_database, server
from tests.workers.ray_cluster import NODE, cluster

POSTGRES = "postgresql+psycopg://user@host/database"
TRIALS = 16


def test_a_study_in_a_file_is_refused_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"--ray auto: .* studies/s.db, .*--storage postgresql\+psycopg://"):
        check_ray(None, "s", "auto")
    with pytest.raises(InputError, match=r"in the file x\.db"):
        check_ray("sqlite:///x.db", "s", "auto")


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"--ray auto needs .*: pip install 'llmsearch-optuna\[ray\]'"):
        check_ray(POSTGRES, "s", "auto")


def test_no_cluster_is_started_for_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="--ray local: .*--workers alone is enough"):
        check_ray(POSTGRES, "s", "local")
    monkeypatch.setenv("RAY_ADDRESS", "local")
    with pytest.raises(InputError, match="--ray auto: no cluster is started here"):
        check_ray(POSTGRES, "s", "auto")
    check_ray(POSTGRES, "s", "10.0.0.1:6379")


def test_the_command_refuses_before_it_loads_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_study(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        app.main(["run", "study.toml", "--ray", "auto"])
    out, said = capsys.readouterr()
    assert (ended.value.code, out) == (1, "")
    assert said.startswith("error: --ray auto: the study is in the file studies/words.db")
    assert len(said.splitlines()) == 1


GPU = {"CPU": 8.0, "GPU": 2.0, "memory": 1e9}
CPU = {"CPU": 8.0, "memory": 1e9}
HEAD = {"CPU": 0.0}


@pytest.mark.parametrize(
    ("device", "nodes", "workers", "expected", "places"),
    [
        (None, [GPU, GPU, CPU], 3, Share(1, 1), 4),
        ("cuda", [GPU], 4, Share(1, 1), 2),
        ("cpu", [GPU], 4, Share(0, 2), 4),
        (None, [CPU, CPU], 2, Share(0, 8), 2),
        (None, [HEAD, CPU, {"CPU": 3.0}], 2, Share(0, 3), 3),
        (None, [CPU], 20, Share(0, 1), 8),
        (None, [HEAD], 2, Share(0, 1), 0),
    ],
)
def test_each_worker_asks_for_a_gpu_or_for_its_part_of_the_processors(
    device: str | None, nodes: list[dict[str, float]], workers: int, expected: Share, places: int
) -> None:
    assert share(device, nodes, workers) == expected
    assert room(expected, nodes) == places


def test_a_node_that_lacks_the_folder_or_has_another_version_says_so(tmp_path: Path) -> None:
    from llmsearch_optuna import __version__

    check_node(Errand(1, {}, str(tmp_path), __version__), "10.0.0.5")
    with pytest.raises(StudyError, match=r"10\.0\.0\.5 has no folder /nowhere, .*a folder that all nodes share"):
        check_node(Errand(1, {}, "/nowhere", __version__), "10.0.0.5")
    with pytest.raises(StudyError, match=rf"has llmsearch-optuna {__version__}, and this machine has 0\.0\.0"):
        check_node(Errand(1, {}, str(tmp_path), "0.0.0"), "10.0.0.5")


class NodeEngine(SlowEngine):
    """Writes down which node and which process decodes; takes its time until so many nodes do."""

    def __init__(self, places: str, nodes: int) -> None:
        super().__init__()
        self.places, self.nodes = places, nodes

    def generate(self, prompts: Sequence[str], params: Mapping[str, Any]) -> list[Completion]:
        import ray

        node = ray.get_runtime_context().get_node_id()
        with open(self.places, "a") as file:
            file.writelines(f"{node} {os.getpid()}\n" for _ in prompts)
        if len({line.split()[0] for line in lines(Path(self.places))}) < self.nodes:
            time.sleep(0.1 * len(prompts))
        return super().generate(prompts, params)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    return signature(run(str(tmp_path_factory.mktemp("alone") / "study.db"), None, TRIALS))


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    with server() as url:
        yield url


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[Any]:
    with cluster(2) as made:
        yield made


class Place:
    """A folder and a database for one study, and who has decoded how many of its rows where."""

    def __init__(self, folder: Path, url: str) -> None:
        self.url, self.places = url, folder / "places"

    def arguments(self, nodes: int = 1) -> dict[str, Any]:
        return study_arguments(self.url, None, TRIALS) | {"model": NodeEngine(str(self.places), nodes)}

    def rows_on(self, node: str) -> int:
        return sum(line.split()[0] == node for line in lines(self.places))

    def processes(self, node: str | None = None) -> set[int]:
        return {int(line.split()[1]) for line in lines(self.places) if node in (None, line.split()[0])}


@pytest.fixture
def place(postgres: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.chdir(tmp_path)
    return Place(tmp_path, empty_database(postgres))


@contextlib.contextmanager
def meanwhile(action: Callable[[], object]) -> Iterator[None]:
    """Run something beside the block; what it raises is raised at the end."""
    raised: list[BaseException] = []

    def act() -> None:
        try:
            action()
        except BaseException as problem:
            raised.append(problem)

    thread = threading.Thread(target=act)
    thread.start()
    try:
        yield
    finally:
        thread.join()
    if raised:
        raise raised[0]


def kill(processes: set[int]) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


@pytest.mark.faults
def test_a_node_dies_in_the_middle_and_the_study_is_that_of_one_process(
    two_nodes: Any, place: Place, alone: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    head = two_nodes.head_node.node_id
    (victim,) = two_nodes.worker_nodes

    def kill_node() -> None:
        wait_for(lambda: min(place.rows_on(head), place.rows_on(victim.node_id)) >= 10, 120)
        kill(place.processes(victim.node_id))
        two_nodes.remove_node(victim, allow_graceful=False)
        assert not result_is_there(place.url), "the node died too late"

    told = Recorder()
    with meanwhile(kill_node), caplog.at_level(logging.WARNING, "llmsearch_optuna"):
        result = search_on_ray(place.arguments(nodes=2), 2, two_nodes.address, told)
    assert signature(result) == alone
    assert signature(load_result(place.url)) == alone
    said = [r.getMessage() for r in caplog.records if "is started again" in r.getMessage()]
    assert said
    assert all("has ended (its " in text for text in said)
    ended = [event.number for event in told.events if isinstance(event, progress.TrialEnded)]
    assert sorted(ended) == list(range(TRIALS))
    assert isinstance(told.events[-1], progress.StudyEnded)
    two_nodes.add_node(**NODE)


def result_is_there(url: str) -> bool:
    return any(look.verdict is not None for look in load_result(url).looks)


@pytest.mark.faults
def test_ctrl_c_ends_the_task_and_a_worker_that_is_killed_is_started_again(
    two_nodes: Any, place: Place, alone: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    def interrupt() -> None:
        wait_for(lambda: len(lines(place.places)) >= 100, 120)
        os.kill(os.getpid(), signal.SIGINT)

    with meanwhile(interrupt), pytest.raises(StudyInterrupted, match="of 16 trials; all finished rows are safe"):
        search_on_ray(place.arguments(), 1, two_nodes.address, Recorder())
    begun = time.monotonic()
    wait_for(lambda: not any(psutil.pid_exists(process) for process in place.processes()), 20)
    assert time.monotonic() - begun < 10
    safe = len(lines(place.places))
    killed = place.processes()

    def kill_the_only_worker() -> None:
        wait_for(lambda: len(lines(place.places)) > safe + 50, 120)
        killed.update(place.processes())
        kill(place.processes())

    with meanwhile(kill_the_only_worker), caplog.at_level(logging.WARNING, "llmsearch_optuna"):
        result = search_on_ray(place.arguments(), 1, two_nodes.address, Recorder())
    assert signature(result) == alone
    assert place.processes() - killed, "the rest was decoded by a worker that was started again"
    assert "worker 1 has ended (its process on its node " in caplog.text


@pytest.mark.faults
def test_what_a_worker_cannot_do_is_said_in_its_words(two_nodes: Any, place: Place) -> None:
    wrong = place.arguments() | {"space": {"temperature": 0.7}}
    with pytest.raises(StudyError) as caught:
        search_on_ray(wrong, 1, two_nodes.address, Recorder())
    assert "max_new_tokens" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.faults
def test_an_address_where_no_cluster_answers_is_named(place: Place) -> None:
    pytest.importorskip("ray", reason="needs the extra `ray`")
    with pytest.raises(StudyError, match=r"--ray 127\.0\.0\.1:1: no cluster can be used there .*ray start --head"):
        search_on_ray(place.arguments(), 2, "127.0.0.1:1", Recorder())
