"""The laws of the house that no linter knows; prints every breach.

Sizes: no file above 350 lines (kernels 600). Mirror: each module
`mmjax/a/b.py` has `tests/a/test_b.py`, and no test there mirrors nothing.
Names: no `utils`. Rooms: each folder of mmjax has a README. Experiments import
nothing of mmjax. At most 20 suppression comments in the tree.
"""

import ast
import pathlib
import re
import sys

MAX_LINES, MAX_KERNEL_LINES, MAX_SUPPRESSIONS = 350, 600, 20
VAGUE = {"utils", "util", "common", "helpers", "misc", "base"}
SUPPRESSION = re.compile(r"#\s*(?:type:\s*ignore|noqa|pyright:|ruff:|fmt:)")


def python_files(root: pathlib.Path, *folders: str) -> list[pathlib.Path]:
  """Returns the Python files below some folders, as sorted absolute paths."""
  found = [p for f in folders for p in (root / f).rglob("*.py")]
  return sorted(p for p in found if "__pycache__" not in p.parts)


def sizes(root: pathlib.Path) -> list[str]:
  """Files that are too long."""
  found = []
  for path in python_files(root, "mmjax", "tests", "tools", "experiments"):
    limit = MAX_KERNEL_LINES if "kernels" in path.parts else MAX_LINES
    lines = len(path.read_text().splitlines())
    if lines > limit:
      where = path.relative_to(root)
      found.append(f"{where}: {lines} lines, {limit} allowed; split it")
  return found


def mirror(root: pathlib.Path) -> list[str]:
  """Modules without their test file, and test files without their module."""
  found = []
  modules = {
    p.relative_to(root / "mmjax")
    for p in python_files(root, "mmjax")
    if p.name not in ("__init__.py", "__main__.py")
  }
  for module in sorted(modules):
    test = root / "tests" / module.parent / f"test_{module.name}"
    if not test.is_file():
      found.append(f"mmjax/{module}: no {test.relative_to(root)}")
  for test in python_files(root, "tests"):
    inside = test.relative_to(root / "tests")
    # Tests at the top and in golden/ or slow/ cross rooms and mirror none.
    if (
      len(inside.parts) == 1 or not (root / "mmjax" / inside.parts[0]).is_dir()
    ):
      continue
    name = inside.name.removeprefix("test_")
    if inside.name.startswith("test_") and inside.parent / name not in modules:
      found.append(f"tests/{inside}: mmjax/{inside.parent / name} is not there")
  return found


def names(root: pathlib.Path) -> list[str]:
  """Modules and folders whose name says nothing."""
  found = []
  for path in python_files(root, "mmjax"):
    inside = path.relative_to(root).with_suffix("")
    for part in inside.parts:
      if part in VAGUE:
        found.append(f"{inside}: name it for what it does, not {part!r}")
  return found


def rooms(root: pathlib.Path) -> list[str]:
  """Rooms, folders of mmjax with modules, that have no README."""
  found = []
  for path in sorted((root / "mmjax").glob("*/__init__.py")):
    if not (path.parent / "README.md").is_file():
      found.append(f"{path.parent.relative_to(root)}: no README.md")
  return found


def experiments(root: pathlib.Path) -> list[str]:
  """Experiment files that import mmjax or JAX."""
  found = []
  for path in python_files(root, "experiments"):
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.Import):
        modules = [alias.name for alias in node.names]
      elif isinstance(node, ast.ImportFrom):
        modules = [node.module or ""]
      else:
        continue
      for module in modules:
        if module.split(".")[0] in ("mmjax", "jax", "flax"):
          where = path.relative_to(root)
          found.append(f"{where}:{node.lineno}: imports {module}")
  return found


def suppressions(root: pathlib.Path) -> list[str]:
  """All suppression comments, if there are too many."""
  found = []
  for path in python_files(root, "mmjax", "tests", "tools", "experiments"):
    for number, line in enumerate(path.read_text().splitlines(), 1):
      if SUPPRESSION.search(line):
        found.append(f"{path.relative_to(root)}:{number}: {line.strip()}")
  return found if len(found) > MAX_SUPPRESSIONS else []


LAWS = (sizes, mirror, names, rooms, experiments, suppressions)


def main(root: pathlib.Path) -> int:
  """Prints the breaches of all laws; returns the exit code."""
  breaches = [(law.__name__, b) for law in LAWS for b in law(root)]
  for law, breach in breaches:
    print(f"{law}: {breach}")
  return 1 if breaches else 0


if __name__ == "__main__":
  sys.exit(main(pathlib.Path(__file__).resolve().parent.parent))
