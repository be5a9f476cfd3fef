"""A plugin to begin with: a package that installs, a strategy that works, a test that passes."""

from __future__ import annotations

import keyword
import re
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from string import Template

from . import registry
from .errors import InputError
from .home import check_writable, whole

NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
WRITTEN = {
    "pyproject.toml": "pyproject.toml.txt",
    "README.md": "README.md.txt",
    "$module.py": "strategy.py.txt",
    "tests/test_$module.py": "test_strategy.py.txt",
}
"""Where each file of `starter` goes in the package."""


def write_plugin(name: str, out: Path) -> Path:
    """Write the package of a strategy `name` into a new folder of `out`; that folder.

    Raises:
        InputError: not a name, one that is taken, the folder or a package of that name is there already, or `out` cannot be
            written to.
    """
    if not NAME.fullmatch(name):
        raise InputError(f"{name!r} is no name for a strategy; write lower-case words joined by hyphens, such as my-method")
    if name in registry.strategies():
        raise InputError(f"there is a strategy {name!r} already; choose another name")
    class_name = "".join(word.capitalize() for word in name.split("-"))
    if keyword.iskeyword(class_name):
        raise InputError(f"{name!r} is no name for a strategy: Python keeps {class_name} for itself; choose another name")
    identifier = name.replace("-", "_")
    module = f"automl_tl_{identifier}"
    folder = out / module
    if folder.exists():
        raise InputError(f"{folder} is there already; choose another --out, or delete it")
    if find_spec(module) is not None:  # such as automl_tl_plugins, which this package itself brings
        raise InputError(f"there is a Python package {module} already; choose another name")
    check_writable(out)
    words = {"name": name, "module": module, "identifier": identifier, "class_name": class_name}
    with whole(folder) as partial:
        for place, template in WRITTEN.items():
            path = partial / Template(place).substitute(words)
            path.parent.mkdir(parents=True, exist_ok=True)
            text = files("automl_tl.starter").joinpath(template).read_text(encoding="utf-8")
            path.write_text(Template(text).substitute(words), encoding="utf-8")
    return folder
