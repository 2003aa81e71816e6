"""The study database: what goes in comes out, nothing acknowledged is lost, and misuse is one line."""

from __future__ import annotations

import math
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pytest

from tests.fakes import cases
from tests.tuner.builders import answered, failed, forced, measurement, recall
from tuner.serving.config import ServingConfig
from tuner.store import SCHEMA_VERSION, Store
from tuner.stored import ValidationFailure

ROOT = Path(__file__).parents[2]

CONFIG = ServingConfig("bundled", {"model": "m"}, {"kv_window": None, "kv_cache_dtype": "int8"})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "study.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    with Store(path) as opened:
        opened.create_study("s", "name: s\n", "abc", {"reference_key": "k", "note": "é"})
        yield opened


def _execute(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(statement)
        connection.commit()


def test_a_study_comes_back_as_it_was(store: Store) -> None:
    store.create_study("later", "name: later\n", "def", {}, time_scale=1.5)
    info = store.study_info("s")
    assert (info.spec, info.space_hash, info.time_scale) == ("name: s\n", "abc", None)
    assert info.provenance == {"reference_key": "k", "note": "é"}
    store.set_time_scale("s", 3.0)
    store.set_spec("s", "budget: {trials: 9}")
    assert (store.study_info("s").time_scale, store.study_info("s").spec) == (3.0, "budget: {trials: 9}")
    assert store.study_info("later").time_scale == 1.5
    assert store.study_names() == ("s", "later")


def test_a_measurement_comes_back_as_it_was(store: Store, path: Path) -> None:
    saved = measurement(
        [answered(0.1, [0.2, 0.0]), failed("timeout", sent=None)],
        [forced("a", [-0.1, -2.0]), recall("b", False)],
        config=CONFIG,
        stopped="hopeless",
        warm=False,
        engine_metrics={"preemptions": 2.0},
    )
    first = store.save_measurement("s", 4, saved, quality_key="q")
    second = store.save_measurement("s", None, measurement(purpose="calibration"))
    with Store(path, create=False) as reader:
        found = reader.measurements("s")
    assert [(m.id, m.trial, m.quality_key) for m in found] == [(first, 4, "q"), (second, None, None)]
    assert found[0].measurement == saved
    assert found[0].measurement.config.fingerprint == CONFIG.fingerprint


def test_a_log_probability_that_is_no_number_survives(store: Store) -> None:
    store.save_measurement("s", 0, measurement((), [forced("a", [math.nan, -math.inf])]))
    (probe,) = store.measurements("s")[0].measurement.probes
    assert math.isnan(probe.logprobs[0]) and probe.logprobs[1] == -math.inf


def test_quality_records_are_the_newest_with_the_key_that_has_any(store: Store) -> None:
    saved = [("q", [recall("a", True)]), ("q", [recall("a", False)]), ("q", []), ("other", [recall("z", True)])]
    for key, probes in saved:
        store.save_measurement("s", 0, measurement((), probes), quality_key=key)
    assert store.quality_records("s", "q") == (recall("a", False),)
    assert store.quality_records("s", "unknown") is None


def test_probes_of_one_quality_key_are_kept_once(store: Store, path: Path) -> None:
    listed = np.random.default_rng(0).bytes(200_000)
    probes = [replace(forced("a", [-0.1]), listed_logprobs=listed)]
    for trial in range(10):
        store.save_measurement("s", trial, measurement((), probes), quality_key="q")
    store.save_measurement("s", 10, measurement((), probes), quality_key="other")
    assert [m.measurement.probes for m in store.measurements("s")] == [tuple(probes)] * 11
    store.close()
    assert path.stat().st_size < 3 * len(listed)


def test_failures_and_references_come_back(store: Store) -> None:
    store.save_failure("s", 3, "out_of_memory", "needs 2 GiB", {"launch": 1.5}, CONFIG)
    (failure,) = store.failures("s")
    assert (failure.trial, failure.reason, failure.detail) == (3, "out_of_memory", "needs 2 GiB")
    assert (failure.seconds, failure.config) == ({"launch": 1.5}, CONFIG)

    store.save_reference("k", [recall("a", True)])
    store.save_reference("k", [recall("a", False)])
    assert store.reference("k") == (recall("a", True),)
    assert store.reference("unknown") is None


def test_a_failed_validation_comes_back_and_is_no_failed_trial(store: Store, path: Path) -> None:
    failure = ValidationFailure(3, "holdout", "holdout", 1.5, "engine_hung", "no token")
    store.close()
    _execute(path, "DROP TABLE tune_validation_failures")
    with Store(path) as opened:
        opened.save_validation_failure("s", failure)
        assert opened.validation_failures("s") == (failure,)
        assert opened.failures("s") == ()


def test_studies_do_not_see_each_others_measurements(store: Store) -> None:
    store.create_study("other", "", "", {})
    store.save_measurement("other", 0, measurement())
    assert store.measurements("s") == () and len(store.measurements("other")) == 1


def test_optuna_lives_in_the_same_file(store: Store, path: Path) -> None:
    assert store.trials("s") == ()
    study = optuna.create_study(study_name="s", storage=store.optuna_storage(), directions=["maximize", "minimize"])
    study.enqueue_trial({"x": 2})
    told, running = study.ask(), study.ask()
    told.suggest_int("x", 1, 3)
    running.suggest_int("x", 1, 3)
    study.tell(told, [1.0, 2.0])
    study.enqueue_trial({"x": 3})
    with Store(path) as reader:
        assert [(t.number, t.running) for t in reader.trials("s")] == [(0, False), (1, True)]
        assert reader.trials("s")[0].params == {"x": 2}
        assert reader.optuna_trials("s")[0].values == [1.0, 2.0]
    with closing(sqlite3.connect(path)) as connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
    assert {"tune_measurements", "trials", "studies"} <= tables


def test_writers_wait_for_each_other_and_readers_for_nobody(store: Store, path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)

    def write(writer: int) -> None:
        with Store(path) as mine:
            for _ in range(20):
                mine.save_measurement("s", writer, measurement([answered()]))
                mine.measurements("s")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    assert sorted(m.trial or 0 for m in store.measurements("s")) == [0] * 20 + [1] * 20 + [2] * 20 + [3] * 20


def test_a_second_owner_is_refused_until_the_first_lets_go(store: Store, path: Path) -> None:
    with Store(path) as other:
        store.acquire_lease("s", "one", 60.0)
        store.renew_lease("s", "one", 90.0)
        with pytest.raises(ValueError, match=r"^study 's' is being run by one for \d+ s more; stop it, or wait$"):
            other.acquire_lease("s", "two", 60.0)
        other.release_lease("s", "two")
        held = other.lease("s")
        assert held is not None and held.owner == "one" and held.expires > time.time() + 60

        store.release_lease("s", "one")
        assert other.lease("s") is None
        other.acquire_lease("s", "two", 60.0)
        with pytest.raises(ValueError, match="run by two"):
            store.renew_lease("s", "one", 60.0)


def test_an_expired_lease_is_taken_over(store: Store) -> None:
    store.acquire_lease("s", "dead", -1.0)
    store.acquire_lease("s", "heir", 60.0)
    held = store.lease("s")
    assert held is not None and held.owner == "heir"


def test_misuse_is_one_line(store: Store, path: Path) -> None:
    with pytest.raises(ValueError, match="study 's' exists"):
        store.create_study("s", "", "", {})
    with pytest.raises(ValueError, match="no study 't'; there is: s"):
        store.measurements("t")
    with pytest.raises(ValueError, match="no study 't'"):
        store.acquire_lease("t", "one", 1.0)


def test_a_newer_schema_is_refused(store: Store, path: Path) -> None:
    store.close()
    _execute(path, f"UPDATE tune_schema SET version = {SCHEMA_VERSION + 1}")
    with pytest.raises(ValueError, match=r"schema version 2 is a newer servetune's; this one reads up to 1$"):
        Store(path)


def test_a_damaged_record_names_itself(store: Store, path: Path) -> None:
    store.save_measurement("s", 0, measurement([answered()]))
    _execute(path, "UPDATE tune_measurements SET raw = x'00ff'")
    with pytest.raises(ValueError, match="^measurement 1 cannot be read"):
        store.measurements("s")


@pytest.mark.parametrize(
    "url, message",
    cases(
        [
            ("other database", "mysql://localhost/x", "expected sqlite or postgresql"),
            ("no URL", "://", "expected a file, or a URL"),
            ("nothing but memory", "sqlite://", "a study lives in a file"),
            ("folder that is not there", "{tmp}/absent/study.db", "cannot be opened: unable to open database file"),
            ("folder", "{tmp}", "cannot be opened: unable to open database file"),
        ]
    ),
)
def test_databases_that_cannot_be(tmp_path: Path, url: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Store(url.replace("{tmp}", str(tmp_path)))


def test_files_that_are_no_database(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("These are my notes. " * 50)
    with pytest.raises(ValueError, match="cannot be opened: file is not a database"):
        Store(path)
    with pytest.raises(ValueError, match="absent.db: no such file"):
        Store(tmp_path / "absent.db", create=False)
    assert not (tmp_path / "absent.db").exists()
    _execute(tmp_path / "foreign.db", "CREATE TABLE t (x)")
    with pytest.raises(ValueError, match="holds no studies"):
        Store(tmp_path / "foreign.db", create=False)


WRITER = """
import sys
from tests.tuner.builders import answered, measurement
from tuner.store import Store

with Store(sys.argv[1]) as store:
    for trial in range(10_000):
        records = [answered(0.1, [0.01] * 50, name=f"{trial}-{i}") for i in range(20)]
        store.save_measurement("s", trial, measurement(records))
        print(trial, flush=True)
"""


@pytest.mark.parametrize("acknowledged", [2, 40])
def test_kill_9_loses_nothing_that_was_acknowledged(store: Store, path: Path, acknowledged: int) -> None:
    command = [sys.executable, "-c", WRITER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as writer:
        assert writer.stdout is not None
        seen = [int(writer.stdout.readline()) for _ in range(acknowledged)]
        writer.send_signal(signal.SIGKILL)
        seen += [int(line) for line in writer.stdout if line.endswith("\n")]
    assert writer.returncode == -signal.SIGKILL
    with Store(path) as reader:
        kept = [m.trial for m in reader.measurements("s")]
        assert kept[: len(seen)] == seen and len(kept) <= len(seen) + 1
        assert reader.save_measurement("s", 99, measurement()) > 0


INTERRUPTED_CLOSING = """
import sqlalchemy, tuner.database
engine = sqlalchemy.create_engine("sqlite://", poolclass=sqlalchemy.NullPool)
def interrupted(connection):
    raise KeyboardInterrupt
engine.dialect.do_close = interrupted
try:
    with engine.connect():
        pass
except KeyboardInterrupt:
    print("raised")
"""


def test_a_ctrl_c_that_meets_a_closing_connection_prints_no_traceback() -> None:
    done = subprocess.run([sys.executable, "-c", INTERRUPTED_CLOSING], capture_output=True, text=True, cwd=ROOT)
    assert (done.stdout, done.stderr) == ("raised\n", "")
