"""Find private names and replaced functions of other libraries in the package, the benchmarks and tuning.

Run: python -m tests.project.public_names. It prints one line per name and exits with 1 if there is any. It reads the
syntax tree: imported names and attributes of imported modules. It ignores strings and comments.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PLACES = ("infogan_ray", "benchmarks", "tuning")
BANNED = ("unittest.mock", "ray.train.v2", "ctypes")
"""Names without a leading underscore that are private or change another library."""
DOCUMENTED = ("os._exit",)
SETTABLE = ("torch.", "infogan_ray.", "benchmarks.", "tests.")
"""Modules with settings that code may assign, for example torch.backends."""
OURS = ("infogan_ray", "benchmarks", "tests")


def is_private(path: str) -> bool:
    """Whether a dotted path contains a private name of another library."""
    parts = path.split(".")
    if parts[0] in OURS or path in DOCUMENTED:
        return False
    hidden = any(part.startswith("_") and not part.endswith("__") for part in parts)
    return hidden or any(path == banned or path.startswith(f"{banned}.") for banned in BANNED)


def private_names(source: str) -> Iterator[tuple[int, str]]:
    """Line and dotted path of each private name that a module uses, and of each library name that it replaces."""
    tree = ast.parse(source)
    modules: dict[str, str] = {}
    """The full path of each imported name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                first = alias.name.split(".")[0]
                modules[alias.asname or first] = alias.name if alias.asname else first
                if is_private(alias.name):
                    yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level and node.module != "__future__":
            for alias in node.names:
                path = f"{node.module}.{alias.name}"
                modules[alias.asname or alias.name] = path
                if is_private(path):
                    yield node.lineno, path
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.endswith("__"):
            path = dotted(node)
            first, _, rest = path.partition(".")
            if first in modules and is_private(f"{modules[first]}.{rest}"):
                yield node.lineno, f"{modules[first]}.{rest}"
        elif isinstance(node, ast.Assign):
            for path in map(dotted, node.targets):
                first, _, rest = path.partition(".")
                if rest and not f"{modules.get(first, OURS[0])}.".startswith(SETTABLE):
                    yield node.lineno, f"{modules[first]}.{rest} is replaced"


def dotted(node: ast.expr) -> str:
    """``a.b.c`` of an attribute; empty if it does not start with a name."""
    if isinstance(node, ast.Name):
        return node.id
    before = dotted(node.value) if isinstance(node, ast.Attribute) else ""
    return f"{before}.{node.attr}" if isinstance(node, ast.Attribute) and before else ""


def main() -> int:
    found = [
        f"{file.relative_to(ROOT)}:{line} {name}"
        for place in PLACES
        for file in sorted((ROOT / place).rglob("*.py"))
        for line, name in private_names(file.read_text())
    ]
    print("\n".join(found) or "no private names of other libraries")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
