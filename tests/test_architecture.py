"""Who may import whom (docs/architecture.md), read from the syntax trees."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("tuner", "engine", "search_spaces", "reports")

PROBES = ("tuner.scoring.probes", "tuner.scoring.speculation")
"""Types of raw answers."""
TRAFFIC, CONFIG, SCORING = "tuner.traffic", "tuner.serving.config", "tuner.scoring"
ALLOWED: dict[str, tuple[str, ...]] = {
    "tuner.errors": (),
    "tuner.terminal": (),
    "tuner.pareto": (),
    "tuner.environment": (),
    "tuner.traffic": (TRAFFIC,),
    "tuner.scoring": (SCORING, "tuner.traffic.trace", "tuner.serving.measurement"),
    "tuner.spec": ("engine.yaml_file",),
    "tuner.serving.measurement": (CONFIG, *PROBES, "tuner.traffic.trace"),
    "tuner.serving": ("tuner.serving", TRAFFIC, "tuner.errors", *PROBES, "engine.config"),
    "tuner.serving.adapters": ("tuner.serving", "tuner.errors", "engine.config", "engine.memory"),
    "tuner.serving.export": (
        "tuner.serving.export",
        CONFIG,
        "tuner.serving.engine_file",
        "engine.config",
        "engine.memory",
    ),
    "tuner.stored": (CONFIG, "tuner.serving.measurement", "tuner.traffic.trace", *PROBES),
    "tuner.schema": (),
    "tuner.database": ("tuner.schema",),
    "tuner.store": (
        "tuner.database",
        "tuner.schema",
        "tuner.stored",
        CONFIG,
        "tuner.serving.measurement",
        "tuner.traffic.trace",
        SCORING,
    ),
    "tuner.ladder": (),
    "tuner.scored": ("tuner.spec", SCORING, CONFIG, "tuner.serving.measurement"),
    "tuner.results": (
        "tuner.scored",
        "tuner.store",
        "tuner.stored",
        "tuner.spec",
        "tuner.pareto",
        "tuner.stopping",
        "tuner.drift",
        SCORING,
        "tuner.serving.measurement",
        CONFIG,
    ),
    "tuner.finals": (),
    "tuner.threshold": (),
    "tuner.drift": ("tuner.finals", "tuner.proposals", "tuner.scored", "tuner.spec", "tuner.stored"),
    "tuner.capacity": (
        "tuner.threshold",
        "tuner.early_stop",
        "tuner.errors",
        "tuner.serving.testbed",
        SCORING,
        TRAFFIC,
    ),
    "tuner.fairness": ("tuner.capacity", "tuner.serving.testbed", SCORING, TRAFFIC),
    "tuner.worth": ("tuner.finals", "tuner.ladder", "tuner.proposals", "tuner.results", SCORING),
    "tuner.reasons": ("tuner.finals", "tuner.results", "tuner.worth", SCORING),
    "tuner.alternatives": ("tuner.results", "tuner.scored", "tuner.worth", "tuner.pareto", "tuner.serving.adapters"),
    "tuner.recommend": (
        "tuner.alternatives",
        "tuner.finals",
        "tuner.results",
        "tuner.scored",
        "tuner.reasons",
        "tuner.worth",
        SCORING,
        "tuner.serving.measurement",
    ),
    "tuner.warm_start": ("tuner.plan", "tuner.recommend", "tuner.results", "tuner.store"),
    "tuner.retune": ("tuner.recommend", "tuner.worth", "tuner.results", "tuner.serving.measurement", TRAFFIC),
    "tuner.verification": (
        "tuner.results",
        "tuner.scored",
        "tuner.spec",
        "tuner.store",
        "tuner.stored",
        SCORING,
        "tuner.serving.measurement",
    ),
    "tuner.whatif": (
        "engine.yaml_file",
        "tuner.recommend",
        "tuner.worth",
        "tuner.results",
        "tuner.scored",
        "tuner.spec",
        "tuner.store",
        "tuner.serving.measurement",
        SCORING,
    ),
    "tuner.study_file": ("tuner.traffic.trace",),
    "tuner.doctor": ("tuner.environment", "engine.memory"),
    "tuner.standing": (
        "tuner.search",
        "tuner.results",
        "tuner.resume",
        "tuner.spec",
        "tuner.stopping",
        "tuner.store",
        "tuner.stored",
        "tuner.validation",
    ),
    # The engine's scheduler on a virtual clock, in this process: see docs/architecture.md.
    "tuner.simulation": (
        "engine.profile",
        "engine.simulator",
        "engine.tokenizer",
        "tuner.serving",
        SCORING,
        TRAFFIC,
    ),
    "tuner.prediction": ("tuner.ladder", "tuner.serving", "tuner.simulation", SCORING, TRAFFIC),
    "tuner.screening": ("search_spaces", "tuner.proposals", "tuner.surrogate"),
    "tuner.profiling": (
        "engine.profile",
        "engine.step_log",
        "search_spaces",
        "tuner.errors",
        "tuner.plan",
        "tuner.serving",
    ),
    "tuner.reference": ("tuner.scoring.probes", "tuner.serving", "tuner.stored", TRAFFIC),
    "tuner.surrogate": ("search_spaces",),
    "tuner.answers": (),
    "tuner.proposals": ("search_spaces", "tuner.answers", "tuner.surrogate"),
    "tuner.stopping": ("tuner.pareto",),
    "tuner.search": (
        "search_spaces",
        "tuner.answers",
        "tuner.spec",
        "tuner.results",
        "tuner.proposals",
        "tuner.stopping",
    ),
    # The study's own room: its parts, and what they stand on.
    **dict.fromkeys(
        (
            "tuner.study",
            "tuner.bench",
            "tuner.climb",
            "tuner.knee",
            "tuner.sentinel",
            "tuner.plan",
            "tuner.outcome",
            "tuner.early_stop",
            "tuner.resume",
            "tuner.validation",
            "tuner.examination",
            "tuner.verify",
            "tuner.guide",
        ),
        (
            "engine.profile",
            "tuner.answers",
            "tuner.guide",
            "tuner.prediction",
            "tuner.proposals",
            "tuner.screening",
            "tuner.simulation",
            "tuner.verification",
            "tuner.bench",
            "tuner.climb",
            "tuner.knee",
            "tuner.sentinel",
            "tuner.drift",
            "tuner.finals",
            "tuner.ladder",
            "tuner.plan",
            "tuner.outcome",
            "tuner.scored",
            "tuner.early_stop",
            "tuner.resume",
            "tuner.validation",
            "tuner.examination",
            "tuner.reasons",
            "tuner.worth",
            "tuner.spec",
            "tuner.search",
            "tuner.stopping",
            "tuner.store",
            "tuner.stored",
            "tuner.results",
            "tuner.reference",
            "tuner.recommend",
            "tuner.environment",
            "tuner.errors",
            "tuner.serving",
            SCORING,
            TRAFFIC,
            "search_spaces",
        ),
    ),
    # The front door's parts: nothing but the command line imports them.
    **dict.fromkeys(
        ("tuner.console", "tuner.deliver", "tuner.loadtest", "tuner.quality_check"),
        ("tuner", "reports", "engine.config"),
    ),
    "tuner.cli": ("",),
    "search_spaces": ("search_spaces", "engine.yaml_file"),
    "tuner.anova": (),
    "reports": (
        "reports",
        "tuner.store",
        "tuner.stored",
        "tuner.results",
        "tuner.scored",
        "tuner.alternatives",
        "tuner.reasons",
        "tuner.recommend",
        "tuner.worth",
        "tuner.finals",
        "tuner.pareto",
        "tuner.anova",
        "tuner.stopping",
        "tuner.retune",
        "tuner.verification",
        SCORING,
    ),
    **dict.fromkeys(
        ("reports.trace_page", "reports.trace_arrivals", "reports.trace_lengths"),
        ("reports", "tuner.traffic.inspection", "tuner.traffic.statistics"),
    ),
    "engine": ("engine",),
}
"""The longest matching prefix rules. "" allows everything."""

FRONT_DOOR = ("tuner.cli", "tuner.console", "tuner.deliver", "tuner.loadtest", "tuner.quality_check")

TRITON = (
    "engine.kernels.attention",
    "engine.kernels.compute",
    "engine.kernels.merge",
    "engine.kernels.page_masses",
    "engine.kernels.quantized_product",
    "engine.kernels.rms_norm",
    "engine.kernels.rotate_store",
    "engine.kernels.sampling",
    "engine.kernels.silu_mul",
)
"""GPU kernels, which the torch path never imports: it runs where there is no triton."""

ONLY_IN: dict[str, tuple[str, ...]] = {
    "torch": (
        "engine.model_runner",
        "engine.sampled_tokens",
        "engine.row_results",
        "engine.paged_model",
        "engine.cuda_graphs",
        "engine.static_batch",
        "engine.speculative",
        "engine.checkpoint",
        "engine.packed_weights",
        "engine.weights",
        "engine.models",
        "engine.layers",
        "engine.kernels",
        "engine.mini",
    ),
    "triton": TRITON,
    "plotly": ("reports",),
    "typer": ("tuner.cli",),
    "optuna": ("tuner.study", "tuner.climb", "tuner.search", "tuner.sentinel", "tuner.store"),
    "sqlalchemy": ("tuner.store", "tuner.schema", "tuner.database"),
    "pickle": (),
    "marshal": (),
    "shelve": (),
}


def modules() -> dict[str, Path]:
    """Dotted name of every module of ours, packages by their own name."""
    found = {}
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(path: Path) -> list[str]:
    """Every module that a file imports, `from a import b` as a.b when that is a module of ours."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [name if name in MODULES else node.module for name in names]
    return found


def within(name: str, prefix: str) -> bool:
    return prefix == "" or name == prefix or name.startswith(prefix + ".")


def rule_of(name: str) -> tuple[str, ...]:
    matching = [prefix for prefix in ALLOWED if within(name, prefix)]
    assert matching, f"{name}: no room of this house; add it to the rules or move it"
    return ALLOWED[max(matching, key=len)]


@pytest.mark.parametrize("name", [n for n in MODULES if "." in n or n in ROOMS])
def test_imports_follow_the_rules(name: str) -> None:
    if name == "tuner":
        return
    ours = {imported for imported in imports(MODULES[name]) if imported.split(".")[0] in ROOMS}
    forbidden = {i for i in ours if i != name and not any(within(i, allowed) for allowed in rule_of(name))}
    assert not forbidden, f"{name} may not import {sorted(forbidden)}"


@pytest.mark.parametrize("library", ONLY_IN)
def test_libraries_stay_in_their_rooms(library: str) -> None:
    users = {
        name
        for name, path in MODULES.items()
        if any(within(imported, library) for imported in imports(path))
        and not any(within(name, room) for room in ONLY_IN[library])
    }
    assert not users, f"{library} is imported by {sorted(users)}"


def test_the_torch_path_needs_no_triton() -> None:
    reached, pending = set(), ["engine.core_process", "engine.model_runner"]
    while pending:
        reached.add(name := pending.pop())
        pending += [i for i in imports(MODULES[name]) if i in MODULES and i not in reached]
    assert "engine.kernels.reference" in reached
    assert not reached & {*TRITON, "engine.kernels.triton_operations"}


def test_the_simulator_needs_no_torch() -> None:
    reached, pending = set(), ["tuner.prediction", "tuner.profiling"]
    while pending:
        reached.add(name := pending.pop())
        pending += [i for i in imports(MODULES[name]) if i in MODULES and i not in reached]
    assert "engine.scheduler" in reached
    assert not [name for name in reached if any(within(i, "torch") for i in imports(MODULES[name]))]


def test_nothing_imports_the_front_door() -> None:
    users = {
        name
        for name, path in MODULES.items()
        if not any(within(name, door) for door in FRONT_DOOR) and set(imports(path)) & set(FRONT_DOOR)
    }
    assert not users


def test_no_import_cycles() -> None:
    graph = {name: {i for i in imports(path) if i in MODULES and i != name} for name, path in MODULES.items()}
    while leaves := [name for name, uses in graph.items() if not uses]:
        graph = {name: uses - set(leaves) for name, uses in graph.items() if name not in leaves}
    assert not graph, f"cycle among {sorted(graph)}"


@pytest.mark.parametrize("name", [n for n in MODULES if not within(n, "tuner.cli")])
def test_no_late_imports(name: str) -> None:
    tree = ast.parse(MODULES[name].read_text())
    late = [
        node.lineno
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    assert not late, f"{name}: imports inside functions at lines {late}"


def test_empty_package_files() -> None:
    """A package file that imports pulls its room into every user of one of its modules."""
    for name, path in MODULES.items():
        if path.name == "__init__.py":
            assert len(ast.parse(path.read_text()).body) <= 1, f"{name}/__init__.py holds more than its docstring"


@pytest.mark.parametrize("name", MODULES)
def test_files_stay_readable(name: str) -> None:
    assert len(MODULES[name].read_text().splitlines()) <= 310, f"{name}: split it"


def test_test_files_have_names_of_their_own() -> None:
    """pytest imports them by their base names: two of one name stop the collection of the whole suite."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))
