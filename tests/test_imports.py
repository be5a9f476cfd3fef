"""Imports go down only, heavy libraries are loaded when they are used, and nothing unsafe is called."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAVY = (
    "torch",
    "timm",
    "torchvision",
    "sklearn",
    "lightgbm",
    "scipy",
    "accelerate",
    "jinja2",
    "fastapi",
    "pydantic",
    "uvicorn",
    "ray",
)
LAYERS = (
    {"errors", "metadb", "starter", "threads"},
    {"home", "space", "extras", "planning", "device"},
    {"fetching"},
    {"records", "augment", "checkpoint", "budget", "guard", "workers"},
    {"hookspecs", "facts", "images", "networks", "sources", "attacks", "schema", "pretexts", "strategy"},
    {"registry", "processes", "exchange", "inference", "averaging", "heads", "layers", "randaugment", "seen", "splitting"},
    {"rows", "scores", "experience", "pixels"},
    {"merging"},
    {"history"},
    {"sharing"},
    {"data", "backbones", "objectives", "mixing", "importance", "adapters"},
    {"batches", "cards"},
    {"loop", "flower", "candidates", "record", "evaluation"},
    {"features", "pretraining", "encoding", "model", "federation"},
    {"norms", "learning"},
    {"memory"},
    {"along"},
    {"profiling"},
    {"cost"},
    {"explain", "trials", "surrogate"},
    {"growth"},
    {"progress"},
    {"restarts"},
    {"steps", "crowning"},
    {"ranker", "halving", "campaign", "comparison", "unfreezing", "remote"},
    {"adviser", "report", "exports"},
    {"advice", "judging", "predictions"},
    {"api", "testing", "scaffold"},
    {"estimator", "study", "service"},
    {"cli.console", "cli.options"},
    {"cli.findings"},
    {"cli.federate", "cli.history", "cli.plugins", "cli.runs", "cli.serving", "cli.study", "cli.training", "cli.zoo"},
    {"cli"},
    {"cli.__main__"},
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
ALLOWED = {("strategy", "loop")}
"""The default of a strategy's fifth seam is the loop, imported when it runs."""
MODULES = sorted((ROOT / "automl_tl").rglob("*.py"))
PLUGINS = sorted((ROOT / "plugins").rglob("*.py"))


def module_of(path: Path) -> str:
    """The name that has the layer: each module of the command line has its own, another package has one for all."""
    package, *inner = path.relative_to(ROOT / "automl_tl").with_suffix("").parts
    return f"cli.{inner[0]}" if package == "cli" and inner != ["__init__"] else package


def imported(path: Path) -> set[str]:
    """Modules of automl_tl that are imported to run, not only to check types."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level == 1 and path.is_relative_to(ROOT / "automl_tl"):
                names = {source.split(".")[0]} if source else {alias.name for alias in node.names}
                package = ".".join(path.relative_to(ROOT / "automl_tl").parent.parts)
                found |= {f"{package}.{name}" if package else name for name in names}
            elif source == "automl_tl":
                found |= {alias.name for alias in node.names}
            elif source.startswith("automl_tl."):
                found.add(source.split(".")[1])
    return found & LEVEL.keys()


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path: Path) -> None:
    name = module_of(path)
    if name == "__init__":
        return
    assert name in LEVEL, f"{name} has no layer; give it one in this test"
    higher = {other for other in imported(path) if other != name and LEVEL[other] >= LEVEL[name] and (name, other) not in ALLOWED}
    assert not higher, f"{name} (layer {LEVEL[name]}) imports {higher}"


def test_the_engine_knows_no_plugin_by_import() -> None:
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                assert "automl_tl_plugins" not in ast.unparse(node), path


def test_plugins_use_nothing_above_the_engine() -> None:
    above = {"api", "cli", "estimator", "halving", "steps", "crowning", "progress", "campaign", "report"}
    for path in PLUGINS:
        assert not imported(path) & above, path


def test_every_plugin_module_is_an_entry_point() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    points = set(project["entry-points"]["automl_tl"].values())
    files = {
        ".".join(("automl_tl_plugins", *path.relative_to(ROOT / "plugins").with_suffix("").parts))
        for path in PLUGINS
        if not path.name.startswith("_") and path.parent != ROOT / "plugins"
    }
    assert points == {name for name in files if ".networks" not in name and ".recipes" not in name}


@pytest.mark.parametrize("statement", ["import automl_tl", "from automl_tl.cli import app", "import automl_tl.history"])
def test_what_is_light_stays_light(statement: str) -> None:
    script = f"import sys; {statement}; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_loads_nothing_heavy() -> None:
    script = f"""
import sys
from automl_tl.cli import main
sys.argv = ["automl-tl", "--help"]
try:
    main()
except SystemExit as end:
    assert not end.code
print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert "recommend" in done.stdout


def tracked() -> list[Path]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("needs git and a checkout")
    return [ROOT / name for name in done.stdout.split("\0") if name]


def test_no_file_names_a_registry_or_a_place_of_one_machine() -> None:
    hosts = ("pypi" + r"\.org", "python" + "hosted", "conda" + r"\.anaconda")
    places = ("/wo" + "rk/", "/home/[a-z]+/", "/ro" + "ot/")
    words = re.compile("|".join(hosts + places))
    kinds = {".py", ".md", ".toml", ".txt", ".json", ".jsonl", ".csv", ".html", ""}
    texts = [path for path in tracked() if path.suffix in kinds]
    for path in texts:
        found = words.search(path.read_text(encoding="utf-8", errors="ignore")) if path.exists() else None
        assert found is None, f"{path} names {found and found[0]}"


def test_nothing_is_unpickled() -> None:
    for path in [*MODULES, *PLUGINS]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
                if names == {"joblib", "cpu_count"}:
                    continue
                assert not names & {"pickle", "dill", "joblib", "cloudpickle", "shelve", "marshal"}, path
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                if called == "torch.load":
                    assert options.get("weights_only") == "True", f"{path}:{node.lineno}"
                if called in ("np.load", "numpy.load"):
                    assert options.get("allow_pickle") == "False", f"{path}:{node.lineno}"
                assert called not in ("eval", "exec"), f"{path}:{node.lineno}"
