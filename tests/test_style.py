"""What a reader needs and no linter holds: one act a line, short functions, arrows that point down.

`python tests/test_style.py [FILE…]` prints the measures and what breaks the rules, file by file."""
import ast
import json
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
WIDTH = 100         # characters
NODES = 40          # of the syntax tree, on one line
MANY_NODES = 25     # that few lines may exceed
MANY_NODES_LINES = 5  # of 1,000
FUNCTION_LINES = 40
STAGE_CELLS = 45
ONE_LINER = 80      # characters of a line with a statement behind `if …:` or `for …:`
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


# What is read


def cells(path: Path, kind: str = "code") -> list[str]:
    "The sources of a notebook's cells, without magics."
    found = json.loads(path.read_text(encoding="utf-8"))["cells"]
    sources = ["".join(c["source"]) for c in found if c["cell_type"] == kind]
    return [re.sub(r"^%.*$", "pass", source, flags=re.M) for source in sources]


def sources(path: Path) -> list[tuple[str, str]]:
    "Pieces of Python with the place of each: a module's text, or a notebook's cells."
    name = path.relative_to(ROOT).as_posix()
    if path.suffix == ".py":
        return [(name, path.read_text(encoding="utf-8"))]
    return [(f"{name} cell {i}", source) for i, source in enumerate(cells(path))]


def notebooks() -> list[Path]:
    return sorted((ROOT/"nbs").rglob("*.ipynb"))


def written() -> list[Path]:
    "Everything that people write: notebooks, tests, and the few modules that nobody exports."
    by_hand = [ROOT/"setup.py", ROOT/"docs/conf.py", ROOT/"fincompress/__init__.py"]
    return [*notebooks(), *sorted((ROOT/"tests").glob("*.py")), *by_hand]


def modules() -> list[Path]:
    "Exported modules."
    found = sorted((ROOT/"fincompress").rglob("*.py"))
    return [path for path in found if not path.name.startswith("_")]


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


# Rules, each a generator of complaints


def nodes_by_line(source: str) -> dict[int, int]:
    "How many nodes of the syntax tree begin on each line."
    counts: dict[int, int] = {}
    for node in ast.walk(ast.parse(source)):
        if hasattr(node, "lineno"):
            counts[node.lineno] = counts.get(node.lineno, 0) + 1
    return counts


def crowded_lines(path: Path):
    for place, source in sources(path):
        for line, count in nodes_by_line(source).items():
            if count > NODES:
                yield f"{place}, line {line}: {count} nodes of the syntax tree, at most {NODES}"


def many_node_lines(path: Path) -> list[str]:
    return [f"{place}, line {line}: {count} nodes" for place, source in sources(path)
            for line, count in nodes_by_line(source).items() if count > MANY_NODES]


def own_comprehensions(node):
    "Comprehensions anywhere inside a comprehension."
    return [inner for inner in ast.walk(node)
            if inner is not node and isinstance(inner, COMPREHENSIONS)]


def nested_comprehensions(path: Path):
    for place, source in sources(path):
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, COMPREHENSIONS) and any(part.ifs for part in node.generators):
                if own_comprehensions(node):
                    yield (f"{place}, line {node.lineno}: a comprehension with a condition "
                           "holds another comprehension")


def long_one_liners(path: Path):
    kinds = (ast.For, ast.While, ast.If, ast.With, ast.Try)
    for place, source in sources(path):
        lines = source.splitlines()
        for node in ast.walk(ast.parse(source)):
            if not isinstance(node, kinds) or node.body[0].lineno != node.lineno:
                continue
            width = len(lines[node.lineno - 1])
            if width >= ONE_LINER:
                yield (f"{place}, line {node.lineno}: a statement behind a colon on a line of "
                       f"{width} characters, under {ONE_LINER} it may stay")


def several_assignments(path: Path):
    for place, source in sources(path):
        assigned: dict[int, int] = {}
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, (ast.Assign, ast.AugAssign, ast.AnnAssign)):
                assigned[node.lineno] = assigned.get(node.lineno, 0) + 1
        for line, count in assigned.items():
            if count > 1:
                yield f"{place}, line {line}: {count} assignments"


def functions(path: Path):
    "Every function: its place, its node."
    for place, source in sources(path):
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield place, node


def long_functions(path: Path):
    for place, node in functions(path):
        length = node.end_lineno - node.lineno + 1
        if length > FUNCTION_LINES:
            yield f"{place}: {node.name} has {length} lines, at most {FUNCTION_LINES}"


def html_in_strings(path: Path):
    tag = re.compile(r"</?[a-z][a-z0-9]*(\s[^<]*)?>")
    for place, source in sources(path):
        for node in ast.walk(ast.parse(source)):
            if not isinstance(node, ast.JoinedStr):
                continue
            parts = [p.value for p in node.values if isinstance(p, ast.Constant)]
            if tag.search("{}".join(parts)):
                yield f"{place}, line {node.lineno}: HTML in an f-string, make it a template"


def wide_lines(path: Path):
    "An exported module's lines; what nbdev writes (`# %%` and `__all__`) is not counted."
    text = re.sub(r"(?ms)^__all__ = \[.*?\]$", "", path.read_text(encoding="utf-8"))
    for line in text.splitlines():
        if len(line) > WIDTH and not line.startswith(("# %%", "# AUTOGENERATED")):
            yield f"{path.relative_to(ROOT)}: {len(line)} characters: {line[:60]}…"


RULES = (crowded_lines, nested_comprehensions, long_one_liners, several_assignments,
         long_functions, html_in_strings)


# Arrows


def height(module: str) -> float:
    "How high a module is: lib below the stages, app above; later stages above earlier ones."
    parts = module.split(".")
    if parts[1:2] == ["lib"]:
        return 0
    stages = [p.stem.partition("_")[2] for p in sorted((ROOT/"nbs").glob("[0-9][0-9]_*.ipynb"))]
    if parts[1] in stages:
        return 1 + stages.index(parts[1])/len(stages)
    return 2


def imported(tree, module: str | None):
    "Modules of this package that a syntax tree imports; `module` resolves relative imports."
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parts = module.split(".")[:-node.level] if node.level else []
            base = [*parts, *(node.module or "").split(".")]
            targets = [[*base, alias.name] for alias in node.names]
        else:
            continue
        for target in targets:
            while target and not (ROOT/Path(*target)).with_suffix(".py").is_file():
                target = target[:-1]
            if target and target[0] == "fincompress":
                yield ".".join(target)


def exported_name(path: Path) -> str | None:
    "The module that a notebook exports."
    found = re.search(r"^#\| *default_exp (\S+)", "\n".join(cells(path)), re.M)
    return found and f"fincompress.{found.group(1)}"


def arrows(of_notebooks: bool) -> set[tuple[str, str]]:
    "Pairs (module, imported module), from modules or from notebooks with their examples."
    found = set()
    for path in notebooks() if of_notebooks else modules():
        module = exported_name(path) if of_notebooks else module_name(path)
        if module is None:
            continue
        for _, source in sources(path):
            for target in imported(ast.parse(source), module):
                if target != module:
                    found.add((module, target))
    return found


def room(module: str) -> str:
    "A module's room: `lib.run`, `app.demo`; a stage, and a module beside the rooms, is its own."
    return ".".join(module.split(".")[1:3])


def circle(pairs) -> list[str]:
    "A circle among arrows, [] if there is none."
    after: dict[str, set[str]] = {}
    for a, b in pairs:
        after.setdefault(a, set()).add(b)

    def search(path):
        for target in after.get(path[-1], ()):
            if target in path:
                return [*path[path.index(target):], target]
            if target not in seen:
                seen.add(target)
                if found := search([*path, target]):
                    return found
        return []

    seen: set[str] = set()
    for start in sorted(after):
        if start not in seen and (found := search([start])):
            return found
    return []


# Tests


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_code_reads_at_first_sight(rule):
    found = [complaint for path in written() for complaint in rule(path)]
    assert not found, "\n" + "\n".join(found)


def test_few_lines_do_much():
    crowded = [line for path in written() for line in many_node_lines(path)]
    lines = sum(len(source.splitlines()) for path in written() for _, source in sources(path))
    assert 1000*len(crowded)/lines <= MANY_NODES_LINES, "\n" + "\n".join(crowded)


def test_exported_modules_fit_the_page():
    found = [complaint for path in modules() for complaint in wide_lines(path)]
    assert not found, "\n" + "\n".join(found)


def test_the_linter_is_content():
    ruff = Path(sys.executable).with_name("ruff")
    command = [ruff, "check", "--output-format=concise", "nbs", "tests", "setup.py", "docs"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, "\n" + result.stdout


def test_a_stage_is_one_lecture():
    counts = {path.name: len(json.loads(path.read_text())["cells"])
              for path in sorted((ROOT/"nbs").glob("[0-9][0-9]_*.ipynb"))}
    assert not [f"{name}: {n} cells" for name, n in counts.items() if n > STAGE_CELLS]


@pytest.mark.parametrize("of_notebooks", [False, True], ids=["modules", "examples"])
def test_imports_run_downwards_only(of_notebooks):
    pairs = arrows(of_notebooks)
    assert len(pairs) > 30
    upward = [f"{a} imports {b}" for a, b in sorted(pairs) if height(a) < height(b)]
    assert not upward, "\n" + "\n".join(upward)


@pytest.mark.parametrize("of_notebooks", [False, True], ids=["modules", "examples"])
def test_no_imports_in_a_circle(of_notebooks):
    assert not circle(arrows(of_notebooks))
    rooms = {(room(a), room(b)) for a, b in arrows(of_notebooks)}
    assert not circle((a, b) for a, b in rooms if a != b)


def test_rooms_are_small():
    counts: dict[str, int] = {}
    for path in modules():
        parts = path.relative_to(ROOT/"fincompress").parts
        if len(parts) == 3:
            counts["/".join(parts[:2])] = counts.get("/".join(parts[:2]), 0) + 1
    assert counts and not {name: n for name, n in counts.items() if n > 7}


def public_names(path: Path) -> list[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return ast.literal_eval(node.value)
    return []


def test_no_public_name_is_defined_twice():
    "The command's verbs may be called as what they do."
    places: dict[str, list[str]] = {}
    for path in modules():
        if path.name != "cli.py":
            for name in public_names(path):
                places.setdefault(name, []).append(module_name(path))
    twice = {name: found for name, found in places.items() if len(found) > 1}
    assert not twice


def test_a_module_defines_a_name_once():
    kinds = (ast.FunctionDef, ast.ClassDef)
    for path in modules():
        body = ast.parse(path.read_text(encoding="utf-8")).body
        names = [node.name for node in body if isinstance(node, kinds)]
        assert len(names) == len(set(names)), path


# Measures


def spread(values) -> str:
    "Median, 90th percentile and largest value."
    values = sorted(values)
    return f"{statistics.median(values):.0f}/{values[int(0.9*len(values))]}/{values[-1]}"


def per_1000(count: int, lines: list) -> str:
    return f"{1000*count/len(lines):.1f}"


def share(lines: list, width: int) -> str:
    return f"{100*sum(len(line) > width for line in lines)/len(lines):.1f}%"


def module_measures(paths) -> dict[str, str]:
    "What exported code is like."
    pieces = [source for path in paths for _, source in sources(path)]
    lines = [line for piece in pieces for line in piece.splitlines() if line.strip()]
    found = [node for path in paths for _, node in functions(path)]
    nodes = [node for piece in pieces for node in ast.walk(ast.parse(piece))]
    loops = [node for node in nodes if isinstance(node, COMPREHENSIONS)]
    nested = sum(len(own_comprehensions(node)) for node in loops)
    crowded = sum(len(many_node_lines(path)) for path in paths)
    return {
        "non-blank lines (files)": f"{len(lines)} ({len(paths)})",
        "lines per function, median/p90/max": spread(n.end_lineno - n.lineno + 1 for n in found),
        "AST nodes per function, median/p90/max": spread(len([*ast.walk(n)]) for n in found),
        "mean line width": f"{statistics.mean(map(len, lines)):.0f}",
        "lines >100 / >120 / >160": " / ".join(share(lines, n) for n in (100, 120, 160)),
        f"lines with >{MANY_NODES} nodes, per 1000": per_1000(crowded, lines),
        "comprehensions / nested, per 1000":
            f"{per_1000(len(loops), lines)} / {per_1000(nested, lines)}",
    }


def examples_after_exports(path: Path) -> list[str]:
    "For each exported cell, the plain code between it and the next one."
    found = []
    for source in cells(path):
        if "#| export" in source:
            found.append("")
        elif found and "#| stage" not in source:
            found[-1] += source
    return found


def words_a_sentence(path: Path) -> list[int]:
    "How long the sentences of a notebook's prose are."
    text = "\n".join(cells(path, "markdown"))
    text = re.sub(r"```.*?```|\$\$.*?\$\$|^[|#>!-][^\n]*$|<[^>]+>", "", text, flags=re.M | re.S)
    sentences = re.split(r"(?<=[.:?!])\s+|\n\n", text)
    return [len(sentence.split()) for sentence in sentences if len(sentence.split()) > 2]


def notebook_measures(paths) -> dict[str, str]:
    "What notebooks are like."
    examples = [text for path in paths for text in examples_after_exports(path)[1:]]
    flagged = re.compile(r"#\| (export|stage|hide|default_exp)")
    plain = [source for path in paths for source in cells(path) if not flagged.search(source)]
    lines = [line for source in plain for line in source.splitlines() if line.strip()]
    shown = sum(bool(text) for text in examples)/len(examples)
    asserted = sum("assert" in text for text in examples)/len(examples)
    sentences = [count for path in paths for count in words_a_sentence(path)]
    return {
        "export cells with an example / an assert": f"{shown:.0%} / {asserted:.0%}",
        "plain cell, median lines; lines over 120":
            f"{statistics.median(len(s.splitlines()) for s in plain):.0f}; {share(lines, 120)}",
        "words per sentence of prose": f"{statistics.mean(sentences):.0f}",
    }


def measures() -> dict[str, str]:
    "The table by which readers compare this code with others'."
    return module_measures(modules()) | notebook_measures(notebooks())


if __name__ == "__main__":
    paths = [Path(word).resolve() for word in sys.argv[1:]] or written()
    for path in paths:
        for complaint in (c for rule in RULES for c in rule(path)):
            print(complaint)
        for complaint in many_node_lines(path):
            print(complaint, f"(more than {MANY_NODES})")
    for name, value in measures().items():
        print(f"{name}: {value}")
