"""Rules of the house that no other tool checks: names, sizes, and the texts of settings."""

import ast
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "genfed"
LONGEST = 50
"""Lines of a function, its docstring included."""
PAGES = {("report/page.py", "page")}
"""Functions that may be longer: each lists what a page shows."""
LARGEST = 0.13
"""The share of all lines that one package may have."""
PREPOSITIONS = ("Of", "By", "In", "That", "To", "With", "From", "For")


def trees() -> Iterator[tuple[str, ast.Module]]:
    for file in sorted(PACKAGE.rglob("*.py")):
        yield str(file.relative_to(PACKAGE)), ast.parse(file.read_text("utf-8"))


TREES = dict(trees())


def test_one_name_is_one_class() -> None:
    homes = defaultdict(list)
    for file, tree in TREES.items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                homes[node.name].append(file)
    assert not {name: files for name, files in homes.items() if len(files) > 1}


def test_private_names_stay_in_their_file() -> None:
    found = []
    for file, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("genfed"):
                names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
                found += [f"{file}: {name}" for name in names if name.startswith("_") and name not in PUBLIC]
    assert not found


PUBLIC = ("_version", "__version__")


def test_functions_fit_on_a_screen() -> None:
    long = {
        f"{file}: {node.name}": size
        for file, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        if (size := (node.end_lineno or 0) - node.lineno + 1) > LONGEST and (file, node.name) not in PAGES
    }
    assert not long


def test_no_package_is_most_of_it() -> None:
    sizes = Counter[str]()
    for file in TREES:
        sizes[file.split("/")[0]] += len((PACKAGE / file).read_text("utf-8").splitlines())
    assert not {name: size for name, size in sizes.items() if size > LARGEST * sizes.total()}


def test_the_text_of_a_field_names_what_it_is() -> None:
    found = []
    for file, tree in TREES.items():
        for cls in (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)):
            for field, text in zip(cls.body, cls.body[1:], strict=False):
                if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                    words = str(getattr(text.value, "value", "")).split()
                    if words and words[0].rstrip(",:") in PREPOSITIONS:
                        found.append(f"{file}: {cls.name}.{ast.unparse(field.target)}: {' '.join(words[:6])}")
    assert not found


def imports() -> dict[str, set[str]]:
    """By file of the package, the files that it imports, also within functions; what only types need does not count."""
    modules = {"genfed." + file.removesuffix(".py").replace("/", "."): file for file in TREES}
    modules |= {name.removesuffix(".__init__"): file for name, file in modules.items()}
    found = {}
    for file, tree in TREES.items():
        typed = {
            id(node)
            for branch in ast.walk(tree)
            if isinstance(branch, ast.If) and ast.unparse(branch.test) == "TYPE_CHECKING"
            for node in ast.walk(branch)
        }
        named = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and id(node) not in typed:
                named |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
            elif isinstance(node, ast.Import):
                named |= {alias.name for alias in node.names}
        found[file] = {modules[name] for name in named if name in modules} - {file}
    return found


def test_no_two_files_import_one_another() -> None:
    found = imports()
    assert not [(one, other) for one in found for other in found[one] if one in found[other] and one < other]


@pytest.mark.parametrize("old", ["told", "whoever", "so many", "by heart", "lopsided"])
def test_words_of_no_paper_are_not_used(old: str) -> None:
    lines = [
        f"{file}: {line.strip()}"
        for file in TREES
        for line in (PACKAGE / file).read_text("utf-8").splitlines()
        if re.search(rf"\b{old}\b", line)
    ]
    assert not lines


def test_files_and_folders_are_made_where_their_permissions_are_set() -> None:
    """`core/files.py` makes folders and files that are their owner's alone; nothing else makes any."""
    found = []
    for file, tree in TREES.items():
        for node in ast.walk(tree):
            if file == "core/files.py" or not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            on, name = ast.unparse(node.func.value), node.func.attr
            written = name == "open" and any(re.match(r"'[wax]", ast.unparse(arg)) for arg in node.args)
            if name in ("mkdir", "makedirs", "FileHandler") or (
                (written or name in ("write_text", "write_bytes")) and on != "part"  # of `atomic_write`
            ):
                found.append(f"{file}: {on}.{name}")
    assert not found
