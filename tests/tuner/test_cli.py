"""The command line, front door to back: a run with a fake engine, kill -9 and --resume, bad input in one line."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from engine.config import load_config
from tests.fakes import PATIENCE, cases, engine_launcher, write_study
from tests.tuner.clocks import hangs_are_told
from tests.tuner.test_process import gone
from tuner.cli import interrupt
from tuner.cli.__main__ import app
from tuner.results import load_results
from tuner.store import Store

TUNE = [sys.executable, "-m", "tuner.cli"]
ROOT = Path(__file__).parents[2]


def study_file(directory: Path, **changes: Any) -> Path:
    """A study of the fake engine: few trials, each a replay of 0.25 s, in bounds that it meets on a busy machine."""
    values = write_study(directory)
    values["engine"] = {"launcher": list(engine_launcher()), "launch_timeout": PATIENCE, "hang_timeout": PATIENCE}
    values["traffic"] |= {"tune_window": [0, 1], "holdout_window": [1, 2], "drain_timeout": PATIENCE}
    values["slos"] = {"chat": {"ttft": PATIENCE, "tpot": PATIENCE, "attainment": 0.9}}
    values["budget"] = {"trials": 4, "startup_trials": 2, "finalists": 1, "examine": False}
    path = directory / "study.yaml"
    path.write_text(yaml.safe_dump(values | changes, sort_keys=False))
    return path


def tune(*args: str | Path) -> Result:
    """The command in this process; see kill_after_trials for one of its own."""
    return CliRunner().invoke(app, list(map(str, args)))


def started(directory: Path) -> list[int]:
    """Process ids of the engines that were started, and of what they started."""
    path = directory / "model" / "starts.txt"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def states(run: Path) -> list[str]:
    with Store(run / "study.db", create=False) as store:
        return [trial.state.name for trial in store.optuna_trials("fake")]


def kill_after_trials(directory: Path, count: int, number: signal.Signals, *args: str) -> tuple[int, str]:
    """Run a study and send it a signal when `count` trials are told. Returns its exit status and its last words.

    It is to make many more trials than that, lest it end first; afterwards its file says again what it said.
    """
    study = directory / "study.yaml"
    few = study.read_text()
    values = yaml.safe_load(few)
    values["budget"]["trials"] = 1000
    study.write_text(yaml.safe_dump(values, sort_keys=False))
    command = [*TUNE, "run", str(study), "--out", str(directory / "runs"), *args]
    log = directory / "tune.log"
    # A shell's background job, which a CI run may be, ignores SIGINT, and its children inherit that.
    options: dict[str, Any] = {"cwd": ROOT, "preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    with log.open("w") as output, subprocess.Popen(command, stdout=output, stderr=output, **options) as process:
        while log.read_text().count("goodput ") < count:
            assert process.poll() is None, log.read_text()
            time.sleep(0.02)
        process.send_signal(number)
        status = process.wait(PATIENCE)
    study.write_text(few)
    return status, log.read_text()


def test_a_run_leaves_what_it_promises(tmp_path: Path) -> None:
    done = tune("run", study_file(tmp_path), "--out", tmp_path / "runs")
    assert done.exit_code == 0, done.stderr
    run = tmp_path / "runs" / "fake"
    assert "(4/4)" in done.stderr and "baseline" in done.stdout and "goodput" in done.stdout
    assert "\x1b" not in done.stdout + done.stderr
    files = (
        "study.db",
        "study.yaml",
        "engine.log",
        "report.html",
        "recommended.yaml",
        "deploy/engine.yaml",
        "deploy/vllm.yaml",
    )
    assert [name for name in files if not (run / name).is_file()] == []
    assert load_config(run / "recommended.yaml").model == str(tmp_path / "model")
    assert [gone(pid) for pid in started(tmp_path)] == [True]
    again = tune("run", tmp_path / "study.yaml", "--out", tmp_path / "runs")
    assert again.exit_code == 2 and "expected --resume to go on or --fresh" in again.stderr
    later = tune("recommend", run)
    assert later.exit_code == 0 and later.stdout.splitlines()[0] in done.stdout
    assert tune("report", run, "--out", tmp_path / "r.html", "--csv", tmp_path / "csv").exit_code == 0
    assert (tmp_path / "r.html").stat().st_size > 1000
    assert len((tmp_path / "csv" / "trials.csv").read_text().splitlines()) == 6, "a heading, the baseline, four trials"
    exported = tune("export", run, "--to", "vllm", "--out", tmp_path / "there")
    assert exported.exit_code == 0 and (tmp_path / "there" / "vllm.yaml").is_file()
    told = json.loads(tune("recommend", run, "--json").stdout)
    assert told["alternatives"][0]["trial"] == told["trial"]
    assert "alternative" in done.stdout and "goodput of" in done.stdout


@pytest.mark.usefixtures("any_lag")
def test_another_trial_is_exported_with_what_is_against_it(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    study = study_file(tmp_path)
    assert tune("run", study, "--out", runs).exit_code == 0
    there, one = tmp_path / "there", json.loads(tune("recommend", runs / "fake", "--json").stdout)["trial"]
    other = next(number for number in range(5) if number != one)
    command = ("export", runs / "fake", "--to", "engine", "--out", there, "--trial", str(other))
    assert tune(*command).exit_code == 0
    head = (there / "engine.yaml").read_text().splitlines()[:2]
    assert f"trial {other}, configuration" in head[0]
    assert head[1].startswith(f"# Trial {other} ") and head[1].endswith(f"; the study recommends {one}.")
    tight = tmp_path / "tight.yaml"
    slos = {"chat": {"ttft": 0.0001, "attainment": 0.9}}
    tight.write_text(yaml.safe_dump(yaml.safe_load(study.read_text()) | {"slos": slos}))
    refused = tune(*command, "--study", tight)
    assert refused.exit_code == 3 and f"Not deployable: Trial {other} is infeasible: misses slo:chat" in refused.stderr
    (there / "alerts.yaml").unlink()
    assert tune(*command, "--study", tight, "--force").exit_code == 0
    assert "Not deployable: Trial" in (there / "engine.yaml").read_text().splitlines()[1]
    assert not (there / "alerts.yaml").exists(), "thresholds of what was held; nothing was"
    closest = tune("export", runs / "fake", "--to", "vllm", "--out", there, "--study", tight, "--force")
    assert closest.exit_code == 0 and "misses slo:chat" in (there / "vllm.yaml").read_text()
    unknown = tune("export", runs / "fake", "--to", "vllm", "--out", there, "--trial", "99")
    assert unknown.exit_code == 2 and "trial 99: expected one that was measured" in unknown.stderr


def test_fresh_starts_over_and_touches_nothing_else(tmp_path: Path) -> None:
    study = study_file(tmp_path, budget={"trials": 1, "finalists": 0, "examine": False})
    run = tmp_path / "runs" / "fake"
    assert tune("run", study, "--out", tmp_path / "runs").exit_code == 0
    (run / "notes.txt").write_text("mine")
    assert tune("run", run / "study.yaml", "--out", tmp_path / "runs", "--fresh").exit_code == 0
    assert states(run) == ["COMPLETE"] * 2
    assert (run / "notes.txt").read_text() == "mine"


def test_an_interruption_that_was_lost_ends_the_run_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The KeyboardInterrupt never came; the signal's number is in the pipe that watches."""
    run, came = tmp_path / "runs" / "fake", itertools.count()
    monkeypatch.setattr(interrupt, "interrupted", lambda: len(states(run)) == 3 and next(came) == 0)
    done = tune("run", study_file(tmp_path), "--out", tmp_path / "runs")
    assert done.exit_code == 130 and "interrupted; go on with: tune resume" in done.stderr
    assert states(run)[2:] == ["FAIL", "WAITING"]


def test_kill_9_and_resume_lose_no_finished_trial(tmp_path: Path) -> None:
    study_file(tmp_path)
    model = tmp_path / "model"
    (model / "faults.json").write_text(json.dumps([{"when": {}, "do": "child"}]))
    status, _ = kill_after_trials(tmp_path, 3, signal.SIGKILL)
    assert status == -signal.SIGKILL
    assert len(started(tmp_path)) == 2
    assert all(gone(pid) for pid in started(tmp_path))
    run = tmp_path / "runs" / "fake"
    with Store(run / "study.db", create=False) as store:
        kept = {t.number: t.objectives for t in load_results(store, "fake").trials if t.objectives is not None}
    assert len(kept) >= 3
    resumed = tune("run", tmp_path / "study.yaml", "--out", tmp_path / "runs", "--resume")
    assert resumed.exit_code == 0, resumed.stderr
    assert "RUNNING" not in states(run) and "WAITING" not in states(run)
    with Store(run / "study.db", create=False) as store:
        after = load_results(store, "fake")
    assert {t.number: t.objectives for t in after.trials if t.number in kept} == kept
    assert sum(t.objectives is not None for t in after.trials) == max(5, len(kept))
    assert all(gone(pid) for pid in started(tmp_path))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_keeps_everything_and_says_how_to_go_on(tmp_path: Path, number: signal.Signals) -> None:
    budget = {"trials": 4, "startup_trials": 2, "finalists": 1}
    study_file(tmp_path, budget=budget)
    status, said = kill_after_trials(tmp_path, 2, number)
    assert status == 130
    assert said.splitlines()[-1] == (
        f"interrupted; go on with: tune resume {tmp_path / 'study.yaml'} --out {tmp_path / 'runs'}"
    )
    assert "Traceback" not in said
    run = tmp_path / "runs" / "fake"
    front = sorted((run / "front").iterdir())
    written = [line.removeprefix("wrote ") for line in said.splitlines() if line.startswith("wrote ")]
    assert front and sorted(written) == [str(path) for path in [*front, run / "report.html"]]
    assert all(load_config(path).model == str(tmp_path / "model") for path in front)
    assert "RUNNING" not in states(run)
    assert all(gone(pid) for pid in started(tmp_path))
    kept = tmp_path / "runs/fake/study.yaml"
    kept.write_text(yaml.safe_dump(yaml.safe_load(kept.read_text()) | {"budget": budget}, sort_keys=False))
    resumed = tune("resume", "--out", tmp_path / "runs")  # the only one there that was stopped
    assert resumed.exit_code == 0, resumed.stderr
    assert states(tmp_path / "runs" / "fake").count("COMPLETE") >= 5
    assert list((run / "front").iterdir()) == [], "what followed is handed over instead"
    done = tune("resume", "--out", tmp_path / "runs")
    assert done.exit_code == 2 and "expected one run that was stopped, none of 1 was" in done.stderr


def test_an_interruption_before_the_first_record_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(spec: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tuner.plan.make_plan", interrupted)
    study, runs = study_file(tmp_path), tmp_path / "two words"
    found = tune("run", study, "--out", runs)
    assert found.exit_code == 130 and not runs.exists()
    assert found.stderr == f"interrupted before it began; go on with: tune run {study} --out '{runs}'\n"


def test_resume_takes_a_run_or_a_study_file(tmp_path: Path) -> None:
    study = study_file(tmp_path, budget={"trials": 1, "finalists": 0, "examine": False})
    runs = tmp_path / "runs"
    nothing = tune("resume", study, "--out", runs)
    assert nothing.exit_code == 2 and "fake: holds no study to go on with" in nothing.stderr
    assert tune("run", study, "--out", runs).exit_code == 0
    study_file(tmp_path, budget={"trials": 2, "finalists": 0, "examine": False})
    assert tune("resume", study, "--out", runs).exit_code == 0 and len(states(runs / "fake")) == 3
    again = tune("resume", runs / "fake")  # by the file it began with: its one trial is done
    assert again.exit_code == 0 and len(states(runs / "fake")) == 3


def test_engine_failures_end_trials_and_not_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    faults = [
        {"when": {"kv_cache_dtype": "int8"}, "do": "crash"},
        {"when": {"kv_cache_dtype": "float16"}, "do": "oom_later"},
        {"when": {"kv_cache_dtype": "bfloat16"}, "do": "hang"},
        {"when": {"kv_cache_dtype": "fp8_e4m3"}, "do": "refuse"},
    ]
    kinds = ["auto", "int8", "float16", "bfloat16", "fp8_e4m3"]
    space = {"parameters": {"kv_cache_dtype": {"type": "choice", "choices": kinds}}}
    study = study_file(tmp_path, search_space=space)
    (tmp_path / "model" / "faults.json").write_text(json.dumps(faults))
    monkeypatch.setattr("tuner.serving.testbed.DYING_SECONDS", PATIENCE)
    hangs_are_told(monkeypatch, tmp_path / "model", seconds=2.0)
    done = tune("run", study, "--out", tmp_path / "runs")
    assert done.exit_code == 0, done.stderr
    with Store(tmp_path / "runs" / "fake" / "study.db", create=False) as store:
        reasons = {t.knobs["kv_cache_dtype"]: t.reason for t in load_results(store, "fake").trials}
    assert reasons == {
        "auto": None, "int8": "engine_crashed", "float16": "out_of_memory", "bfloat16": "engine_hung",
        "fp8_e4m3": "config_rejected",
    }  # fmt: skip


@pytest.mark.usefixtures("any_lag")
def test_nothing_feasible_is_said_and_has_its_own_status(tmp_path: Path) -> None:
    study = study_file(tmp_path, slos={"chat": {"ttft": 0.0001, "attainment": 0.9}})
    done = tune("run", study, "--out", tmp_path / "runs")
    run = tmp_path / "runs" / "fake"
    assert done.exit_code == 0 and "nothing is feasible" in done.stdout
    assert not (run / "recommended.yaml").exists() and (run / "report.html").exists()
    assert tune("recommend", run).exit_code == 3
    exported = tune("export", run, "--to", "vllm", "--out", tmp_path / "there")
    assert exported.exit_code == 3 and "nothing is feasible" in exported.stderr
    assert not (tmp_path / "there").exists()


def test_an_engine_that_never_comes_up_is_a_failure_of_its_own(tmp_path: Path) -> None:
    study = study_file(tmp_path, engine={"launcher": [sys.executable, "-c", "import sys; sys.exit(4)"]})
    done = tune("run", study, "--out", tmp_path / "runs")
    assert done.exit_code == 4
    assert done.stderr.splitlines()[-1] == "tune: launch_failed: exit status 4: no last words"


def test_replay_prints_what_was_good(server: tuple[str, Path]) -> None:
    url, trace = server
    options = [
        "--url",
        url,
        "--time-scale",
        "8",
        "--window",
        "0:4",
        "--slo",
        f"chat.ttft={PATIENCE:g}",
        "--drain-timeout",
        f"{PATIENCE:g}",
        "--slo",
        "chat.attainment=0.5",
    ]
    shown = CliRunner().invoke(app, ["replay", str(trace), *options])
    assert shown.exit_code == 0, shown.stderr
    assert "offered 40 (80.00/s over 0.5 s), good 40" in shown.stdout and "send lag p99" in shown.stdout
    found = json.loads(CliRunner().invoke(app, ["replay", str(trace), *options, "--json"]).stdout)
    assert found["classes"]["chat"]["good"] == 40
    strict = CliRunner().invoke(
        app, ["replay", str(trace), "--url", url, "--time-scale", "8", "--slo", "chat.ttft=0.0001"]
    )
    assert "offered 80" in strict.stdout and "good 0" in strict.stdout


SYNTH = ["synth", "--arrivals", "poisson", "--rate", "2", "--seconds", "9"]
REPLAY = ["replay", "{dir}/trace.jsonl", "--url", "http://x"]
BAD = [
    ("no study file", ["run", "{dir}/none.yaml"], "none.yaml: cannot be read"),
    ("no YAML", ["run", "{dir}/broken.yaml"], "broken.yaml: line 1, column 8: not YAML"),
    ("no text", ["run", "{dir}/bytes.yaml"], "bytes.yaml: not UTF-8 text"),
    ("a space that is no text", ["space", "show", "{dir}/bytes.yaml"], "bytes.yaml: not UTF-8 text"),
    ("an engine file of bytes", ["replay", "{dir}/trace.jsonl", "--engine", "{dir}/bytes.yaml"], "not UTF-8 text"),
    ("a speed without end", [*REPLAY, "--time-scale", "inf"], "--time-scale inf: expected a number above 0"),
    ("a negative drain", [*REPLAY, "--drain-timeout", "-1"], "--drain-timeout -1: expected seconds from 0 on"),
    ("a drain of no number", [*REPLAY, "--drain-timeout", "nan"], "--drain-timeout nan: expected seconds from 0 on"),
    ("a window after the end", [*REPLAY, "--window", "900:901"], "--window 900:901: "),
    ("a cut after the end", ["trace", "split", "{dir}/trace.jsonl", "--seconds", "900"], "trace.jsonl: a cut at"),
    ("a key misspelt", ["run", "{dir}/key.yaml"], "key.yaml: budget.trails: unknown key; did you mean trials?"),
    ("a file that is no trace", ["run", "{dir}/trace.yaml"], "broken.yaml: line 1"),
    ("resume and fresh", ["run", "{dir}/study.yaml", "--resume", "--fresh"], "--resume and --fresh"),
    ("a key twice", ["run", "{dir}/twice.yaml"], "twice.yaml: line 2, column 1: name: expected once, but line 1"),
    ("no model there", ["run", "{dir}/model.yaml"], "model.yaml: model: {dir}/nowhere: expected a checkpoint"),
    ("a model for the engine", ["run", "{dir}/own.yaml"], "own.yaml: engine.settings.model: expected model: of"),
    ("a knob misspelt", ["run", "{dir}/knob.yaml"], "max_num_sqs: the bundled engine has no such setting; did"),
    ("a value that no engine takes", ["run", "{dir}/value.yaml"], "kv_cache_dtype: the engine takes no 'int7': Input"),
    ("probes that are a trace", ["run", "{dir}/probes.yaml"], "trace.jsonl:1: "),
    ("probes of bytes", ["run", "{dir}/bytes-probes.yaml"], "bytes.yaml: not UTF-8 text; expected probes"),
    ("nothing to go on with", ["resume", "{dir}/done/dmo"], "dmo: no run here (study.db is missing); did you mean "),
    ("a database that is a directory", ["status", "{dir}/odd"], "odd: no run here (study.db is missing); "),
    (
        "an export into a file",
        ["export", "{dir}/done/demo", "--to", "vllm", "--out", "{dir}/key.yaml"],
        "--out {dir}/key.yaml: is a file; expected a directory, old or new",
    ),
    (
        "an export below a file",
        ["export", "{dir}/done/demo", "--to", "vllm", "--out", "{dir}/key.yaml/a/b"],
        "--out {dir}/key.yaml/a/b: {dir}/key.yaml is a file; expected a directory",
    ),
    ("tables into a file", ["report", "{dir}/done/demo", "--csv", "{dir}/key.yaml"], "--csv {dir}/key.yaml: is a file"),
    ("a report over a directory", ["report", "{dir}/done/demo", "--out", "{dir}"], "--out {dir}: is a directory"),
    (
        "a report over what it reads",
        ["whatif", "{dir}/done/demo", "--slo", "{dir}/key.yaml", "--report", "{dir}/key.yaml"],
        "--report {dir}/key.yaml: would replace what is read",
    ),
    ("a page over its trace", ["trace", "inspect", "{dir}/trace.jsonl", "--html", "{dir}/trace.jsonl"], "would rep"),
    ("probes for a trace", ["trace", "inspect", "{dir}/study.yaml"], "line 1: expected a header line as one JSON"),
    *(
        (f"a server by {words}", [*command, url], f"{command[-1]} {url}: expected http://HOST:PORT{hint}\n")
        for words, command, url, hint in (
            ("its address", REPLAY[:-1], "localhost:8000", "; did you mean http://localhost:8000?"),
            ("its name", ["record", "--out", "o", "--upstream"], "gpu-7", "; did you mean http://gpu-7?"),
            ("a port that is none", ["quality", "--url-b"], "http://localhost:99999", ""),
            ("another protocol", REPLAY[:-1], "ftp://localhost", ""),
            ("half a URL", REPLAY[:-1], "http://", ""),
        )
    ),
    ("no run there", ["recommend", "{dir}/nowhere"], "nowhere: no run here (study.db is missing); tune run STUDY.yaml"),
    ("a run misspelt", ["status", "{dir}/done/dmo"], "dmo: no run here (study.db is missing); did you mean "),
    ("all runs for a run", ["report", "{dir}/done"], "no run here (study.db is missing); runs: {dir}/done/demo"),
    ("a checkpoint to serve", ["serve", "{dir}/model"], "model: a checkpoint; expected a file, such as engine.yaml"),
    ("a run to serve misspelt", ["serve", "{dir}/done/dmo"], "did you mean {dir}/done/demo?"),
    ("no directory of runs", ["studies", "list", "--runs", "{dir}/nowhere"], "nowhere: no such directory"),
    ("a run that is no database", ["report", "{dir}/text.db"], "text.db: cannot be opened"),
    ("an unknown target", ["export", "{dir}/nowhere", "--to", "vllm", "--out", "{dir}/x"], "nowhere"),
    ("neither server nor engine", ["replay", "{dir}/trace.jsonl"], "--url and --engine: expected one of them"),
    ("no server", ["replay", "{dir}/trace.jsonl", "--url", "http://127.0.0.1:9"], "is the server running?"),
    (
        "a window without end",
        ["replay", "{dir}/trace.jsonl", "--url", "http://x", "--window", "0:inf"],
        "--window 0:inf: expected START:END",
    ),
    ("a trace of no length", ["replay", "{dir}/moment.jsonl", "--url", "http://x"], "spans no time"),
    (
        "a proxy for everybody",
        ["record", "--upstream", "http://127.0.0.1:9", "--out", "{dir}/t.jsonl", "--listen", "0.0.0.0:0"],
        "others could reach the server through it",
    ),
    (
        "a port that is none",
        ["record", "--upstream", "http://127.0.0.1:9", "--out", "{dir}/t.jsonl", "--listen", "127.0.0.1:99999"],
        "expected a port from 0 to 65535",
    ),
    ("a speed of zero", ["run", "{dir}/still.yaml"], "traffic.time_scale"),
    ("a floor for no slice", ["run", "{dir}/floor.yaml"], "quality.floors.Recall: no probe"),
    ("windows that overlap", ["run", "{dir}/overlap.yaml"], "traffic.holdout_window: [0.5, 2.0] overlaps"),
    ("no window", ["replay", "{dir}/trace.jsonl", "--url", "http://x", "--window", "5"], "expected START:END"),
    (
        "an unknown class", ["replay", "{dir}/trace.jsonl", "--url", "http://x", "--slo", "docs.ttft=1"],
        "--slo docs.ttft=1: expected CLASS.METRIC=VALUE with a class of chat",
    ),
    (
        "an unknown metric", ["replay", "{dir}/trace.jsonl", "--url", "http://x", "--slo", "chat.tpto=1"],
        "ttft_per_1k_prompt_tokens, itl_quantile, fluidity; did you mean tpot?",
    ),
    (
        "a bound that is no number", ["replay", "{dir}/trace.jsonl", "--url", "http://x", "--slo", "chat.ttft=fast"],
        "--slo chat.ttft=fast: expected a number after '='",
    ),
    (
        "an attainment above one", ["replay", "{dir}/trace.jsonl", "--url", "http://x", "--slo", "chat.attainment=2"],
        "--slo chat.attainment: Input should be less than 1 (given: 2.0)",
    ),
    (
        "fluidity without deadlines", ["replay", "{dir}/trace.jsonl", "--url", "http://x", "--slo", "chat.fluidity=1"],
        "--slo chat.fluidity needs ttft and tpot",
    ),
    ("a capacity of what", ["capacity", "{dir}/trace.jsonl", "--url", "http://x"], "--slo: expected at least one"),
    (
        "no precision", ["capacity", "{dir}/trace.jsonl", "--slo", "chat.ttft=1", "--precision", "0"], "--precision 0:",
    ),
    ("a negative scale", ["replay", "{dir}/trace.jsonl", "--url", "http://x", "--time-scale", "-1"], "--time-scale -1"),
    ("an engine file that is bad", ["replay", "{dir}/trace.jsonl", "--engine", "{dir}/key.yaml"], "unknown setting"),
    (
        "an address without port",
        ["record", "--upstream", "http://127.0.0.1:9", "--listen", "localhost", "--out", "{dir}/o.jsonl"],
        "--listen localhost: expected HOST:PORT",
    ),
    *(
        (f"{name} over what it reads", ["trace", *command], "would replace what is read")
        for name, command in (
            ("import", ["import", "{dir}/trace.jsonl", "--format", "azure", "--out", "{dir}/trace.jsonl"]),
            ("split", ["split", "{dir}/trace.jsonl", "--tune", "{dir}/../{name}/trace.jsonl"]),
            ("scale", ["scale", "{dir}/trace.jsonl", "--time-scale", "2", "--out", "{dir}/trace.jsonl"]),
            ("anonymize", ["anonymize", "{dir}/trace.jsonl", "--out", "{dir}/trace.jsonl"]),
            ("synth", [*SYNTH, "--lengths-from", "{dir}/trace.jsonl", "--out", "{dir}/trace.jsonl"]),
        )
    ),
    (
        "both parts in one file",
        ["trace", "split", "{dir}/trace.jsonl", "--tune", "{dir}/o.jsonl", "--held-out", "{dir}/o.jsonl"],
        "--held-out {dir}/o.jsonl: would replace",
    ),
    ("a directory for a file", ["trace", "scale", "{dir}/trace.jsonl", "--out", "{dir}"], "expected a file"),
    ("a file nowhere", ["trace", *SYNTH, "--out", "{dir}/no/o.jsonl"], "{dir}/no is no directory"),
    (
        "no CSV", ["trace", "import", "{dir}/study.yaml", "--format", "azure", "--out", "{dir}/o.jsonl"],
        "expected the columns",
    ),
]  # fmt: skip


@pytest.fixture(scope="module")
def mistakes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("mistakes")
    study_file(directory)
    (directory / "broken.yaml").write_text("name: [")
    (directory / "bytes.yaml").write_bytes(b"\xff\xfe")
    (directory / "twice.yaml").write_text("name: a\nname: b\n")
    (directory / "odd/study.db").mkdir(parents=True)
    (directory / "text.db").write_text("this is no database, however long one reads it")
    (directory / "done/demo").mkdir(parents=True)
    (directory / "done/demo/study.db").touch()
    (directory / "model/config.json").touch()
    values = yaml.safe_load((directory / "study.yaml").read_text())
    (directory / "key.yaml").write_text(yaml.safe_dump(values | {"budget": {"trails": 3}}, sort_keys=False))
    (directory / "trace.yaml").write_text(
        yaml.safe_dump(values | {"traffic": {"trace": "broken.yaml"}}, sort_keys=False)
    )
    changed = {
        "model.yaml": {"model": "nowhere"},
        "own.yaml": {"engine": {"settings": {"model": "m"}}},
        "knob.yaml": {"search_space": {"parameters": {"max_num_sqs": {"type": "int", "low": 1, "high": 4}}}},
        "value.yaml": {"search_space": {"parameters": {"kv_cache_dtype": {"type": "choice", "choices": ["int7"]}}}},
        "probes.yaml": {"quality": {"probes": "trace.jsonl"}},
        "bytes-probes.yaml": {"quality": {"probes": "bytes.yaml"}},
        "still.yaml": {"traffic": values["traffic"] | {"time_scale": 0}},
        "overlap.yaml": {"traffic": values["traffic"] | {"holdout_window": [0.5, 2.0]}},
        "floor.yaml": {"quality": values["quality"] | {"floors": {"Recall": {"min_recall": 0.5}}}},
    }
    for name, changes in changed.items():
        (directory / name).write_text(yaml.safe_dump(values | changes, sort_keys=False))
    moment = '{"id": "a", "arrival": 0.0, "tenant": "t", "slo_class": "c", "prompt": "x", "max_tokens": 1}'
    (directory / "moment.jsonl").write_text(f'{{"servetune_trace": 1, "provenance": {{}}}}\n{moment}\n')
    return directory


@pytest.mark.parametrize(("args", "message"), cases(BAD))
def test_bad_input_is_told_in_one_line(
    mistakes: Path, args: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(mistakes)  # where there are no runs of the reader's own
    trace = (mistakes / "trace.jsonl").read_bytes()
    command = [arg.format(dir=mistakes, name=mistakes.name) for arg in args]
    if args[0] == "run":
        command += ["--out", str(mistakes / "runs")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("tune: ") and message.format(dir=mistakes) in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (mistakes / "runs").exists() and (mistakes / "trace.jsonl").read_bytes() == trace


def test_help_answers_without_the_heavy_libraries() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from tuner.cli.__main__ import app\n"
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0\n"
        "heavy = {'torch', 'optuna', 'pandas', 'plotly', 'scipy', 'sqlalchemy', 'numpy', 'aiohttp'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert shown.stdout == "[]\n"
