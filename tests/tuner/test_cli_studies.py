"""status, studies, space, doctor and serve, through the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from typer.testing import CliRunner, Result

from tests.tuner.builders import answered, forced, measurement
from tuner.cli.__main__ import app
from tuner.results import load_results
from tuner.serving.config import ServingConfig
from tuner.spec import parse_spec
from tuner.standing import standing
from tuner.store import Store
from tuner.validation import next_turn

ROOT = Path(__file__).parents[2]
REFERENCE = tuple(forced(f"f{i}", [-0.5, -0.5]) for i in range(10))
SPEC = parse_spec(
    {
        "name": "s", "model": "m", "traffic": {"trace": "t"}, "slos": {"chat": {"ttft": 1.0, "attainment": 0.9}},
        "quality": {"probes": "p"}, "search_space": {}, "tail": {"slo_class": "chat"}, "budget": {"trials": 4},
    },
    source="test", base=Path("/"),
)  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The directory of a run that nobody runs: a baseline that misses its SLO and one feasible trial of four."""
    directory = tmp_path / "runs" / "s"
    directory.mkdir(parents=True)
    with Store(directory / "study.db") as store:
        store.create_study("s", SPEC.model_dump_json(), "hash", {"reference_key": "key"}, time_scale=2.0)
        store.save_reference("key", REFERENCE)
        study = optuna.create_study(
            study_name="s", storage=store.optuna_storage(), directions=["maximize"] * 3, load_if_exists=True
        )
        for ttft, purpose, seqs in ((1.5, "baseline", 4), (0.5, "trial", 8)):
            number = study.ask().number
            study.tell(number, [1.0, 1.0, 1.0])
            records = [answered(ttft, name=f"c{i}") for i in range(20)]
            config = ServingConfig("bundled", {"model": "m"}, {"max_num_seqs": seqs})
            measured = measurement(records=records, probes=REFERENCE, purpose=purpose, config=config)
            store.save_measurement("s", number, measured)
    return directory


def _invoke(*args: str | Path) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args])


def test_status_tells_phase_states_and_best(run: Path) -> None:
    (found,) = json.loads(_invoke("status", run, "--json").stdout)
    assert found["phase"] == "stopped" and found["runner"] is None and found["eta_seconds"] is None
    assert found["trials"] == {"infeasible": 1, "feasible": 1}
    assert (found["asked"], found["budget"], found["time_scale"]) == (1, 4, 2.0)
    assert found["baseline_goodput"] == 0.0 and found["best_trial"] == 1
    told = dict(line.split(maxsplit=1) for line in _invoke("status", run).stdout.splitlines())
    assert told["phase"].strip() == "stopped" and told["states"].strip() == "1 feasible, 1 infeasible"
    assert "ETA" not in told, "nobody runs it"


def test_what_is_read_by_a_program_is_not_wrapped(run: Path) -> None:
    (line,) = (one for one in _invoke("studies", "show", run).stdout.splitlines() if one.startswith("1 "))
    assert line.split()[1] == "feasible" and line.rstrip().endswith("max_num_seqs=8")
    (shown,) = json.loads(_invoke("studies", "show", run, "--json").stdout)
    first, second = shown["trials"]
    assert (first["state"], second["knobs"], second["quality"]) == ("infeasible", {"max_num_seqs": 8}, 1.0)


def test_a_reader_that_has_seen_enough_is_no_failure(run: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "tuner.cli", "studies", "show", str(run), "--json"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_status_of_a_running_study(run: Path) -> None:
    with Store(run / "study.db") as store:
        store.acquire_lease("s", f"{os.uname().nodename}:{os.getpid()}", 900)
    (found,) = json.loads(_invoke("status", run, "--json").stdout)
    assert found["phase"] == "search" and found["runner"].endswith(str(os.getpid()))
    assert found["eta_seconds"] >= 0, "three trials are left"
    refused = _invoke("studies", "delete", run, "--yes")
    assert refused.exit_code == 2 and "is being run by" in refused.stderr


def test_a_study_is_finished_once_its_last_measurement_is_there(run: Path) -> None:
    asked = []
    with Store(run / "study.db") as store:
        while (turn := next_turn(load_results(store, "s"))) is not None:
            assert standing(store, "s").phase == "stopped"
            records = [answered(0.5 if turn.trial else 1.5, name=f"c{i}") for i in range(20)]
            measured = measurement(records=records, probes=REFERENCE, purpose=turn.purpose, time_scale=turn.time_scale)
            store.save_measurement("s", turn.trial, measured)
            asked.append((turn.trial, turn.purpose))
    assert asked[-2:] == [(0, "recorded_rate"), (1, "recorded_rate")], "the baseline, then what is recommended"
    (found,) = json.loads(_invoke("status", run, "--json").stdout)
    assert found["phase"] == "finished"


def test_a_study_before_its_first_trial(tmp_path: Path) -> None:
    with Store(tmp_path / "study.db") as store:
        store.create_study("s", SPEC.model_dump_json(), "hash", {})
    (found,) = json.loads(_invoke("status", tmp_path, "--json").stdout)
    assert (found["phase"], found["trials"], found["best_goodput"]) == ("stopped", {}, None)


def test_list_show_delete(run: Path) -> None:
    (listed,) = json.loads(_invoke("studies", "list", "--runs", run.parent, "--json").stdout)
    assert listed["study"] == "s"
    shown = _invoke("studies", "show", run).stdout
    assert "infeasible" in shown and "feasible" in shown
    kept = CliRunner().invoke(app, ["studies", "delete", str(run)], input="n\n")
    assert kept.exit_code == 1 and "s" in _invoke("studies", "list", "--runs", run.parent).stdout
    assert _invoke("studies", "delete", run, "--yes").stdout == "deleted s\n"
    with Store(run / "study.db") as store:
        assert store.study_names() == () and store.optuna_trials("s") == ()
        assert store.reference("key") is not None, "a reference belongs to a model, not to a study"
    assert "no study" in _invoke("status", run).stderr
    listed_after = _invoke("studies", "list", "--runs", run.parent)
    assert listed_after.exit_code == 0 and listed_after.stdout.endswith("no studies\n")
    (run.parent / "empty").mkdir()
    assert _invoke("studies", "list", "--runs", run.parent / "empty").stdout.endswith("no studies\n")
    assert _invoke("studies", "list", "--runs", run / "nothing").exit_code == 2


@pytest.mark.parametrize("source", [[], [ROOT / "examples/demo/study.yaml"], [ROOT / "search_spaces/engine.yaml"]])
def test_space_show(source: list[Path]) -> None:
    rows = json.loads(_invoke("space", "show", *source, "--json").stdout)
    by_name = {row["name"]: row for row in rows}
    assert by_name["max_num_seqs"]["unit"] == "sequences" and by_name["max_num_seqs"]["cost"] == "hot"
    assert by_name["kv_sink_tokens"]["when"] == {"kv_window": "not_null"}
    assert "max_num_seqs" in _invoke("space", "show", *source).stdout


def test_space_show_of_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text("parameters: {a: {type: itn, low: 1, high: 2}}")
    found = _invoke("space", "show", tmp_path / "space.yaml")
    assert found.exit_code == 2 and "did you mean int" in found.stderr


def test_doctor_finds_this_machine_fit_to_run(tmp_path: Path) -> None:
    found = _invoke("doctor", "--out", tmp_path / "not" / "yet", "--json")
    assert found.exit_code == 0, found.output
    verdicts = {check["name"]: check["verdict"] for check in json.loads(found.stdout)}
    assert verdicts["torch"] == verdicts["disk"] == verdicts["ports"] == "ok"


def _no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = {"python": "3", "platform": "p", "packages": {"optuna": "5"}, "gpus": [], "cpu_cores": 8, "cpu": "c"}
    monkeypatch.setattr("tuner.doctor.environment", lambda: machine)


def _busy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuner.doctor.cpu_pressure", lambda: 0.4)


def _little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuner.doctor.available_host_bytes", lambda: 2**29)


def _one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = {"python": "3", "platform": "p", "packages": {}, "gpus": ["H100"], "cpu_cores": 1, "cpu": "c"}
    monkeypatch.setattr("tuner.doctor.environment", lambda: machine)


@pytest.mark.parametrize(
    ("broken", "name", "verdict", "status"),
    [
        (_no_torch, "torch", "failure", 1),
        (_busy, "cpu contention", "warning", 0),
        (_little_memory, "memory", "warning", 0),
        (_one_core, "cpu cores", "warning", 1),
    ],
)
def test_doctor_names_what_is_wrong_and_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    broken: Callable[[pytest.MonkeyPatch], None],
    name: str,
    verdict: str,
    status: int,
) -> None:
    broken(monkeypatch)
    found = _invoke("doctor", "--out", tmp_path, "--json")
    (check,) = [check for check in json.loads(found.stdout) if check["name"] == name]
    assert check["verdict"] == verdict and check["advice"]
    assert found.exit_code == status


def test_serve_becomes_the_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "recommended.yaml").write_text("model: m\n")
    started: list[list[str]] = []
    monkeypatch.setattr("tuner.cli.machine.os.execv", lambda path, command: started.append(command))
    assert _invoke("serve", tmp_path, "--port", "0").exit_code == 0
    (command,) = started
    assert command[:5] == [sys.executable, "-m", "engine", "--config", str(tmp_path / "recommended.yaml")]
    assert command[5:] == ["--host", "127.0.0.1", "--port", "0"]


def test_serve_without_a_recommendation(tmp_path: Path) -> None:
    found = _invoke("serve", tmp_path)
    assert found.exit_code == 2 and "expected an engine.yaml or a run with a recommendation" in found.stderr
