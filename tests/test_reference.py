"""The committed reference run is complete and small.

It holds no weights, no sentence of the data sets, and no path of the machine that made it."""
import csv
import hashlib
import html
import json
import re
from pathlib import Path

import pytest

from fincompress.lib.run.stage import STAGES

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ROOT/"outputs"/"reference"
DATA = ROOT/"original_data"  # a folder, or a link to one, with the original files
COMPACT = ("compact_wide", "compact_narrow", "compact_tiny")
TEXTS = (".json", ".ipynb", ".html", ".csv")

pytestmark = pytest.mark.skipif(
    not (REFERENCE/"run.json").exists(), reason="no reference run is committed yet")


def committed() -> list[Path]:
    "The reference run's files, without those that are never committed."
    never = re.compile(r"data/.*\.csv$|unfinished/|\.lock$"
                       r"|checkpoints/[^/]+/(?!checkpoint_info\.json)")
    files = [p for p in sorted(REFERENCE.rglob("*")) if p.is_file()]
    return [p for p in files if not never.search(p.relative_to(REFERENCE).as_posix())]


def text_of(path: Path) -> str:
    return html.unescape(path.read_text(encoding="utf-8"))


def records() -> dict[str, dict]:
    return {s: json.loads((REFERENCE/f"stages/{s}.json").read_text()) for s in STAGES}


def table(name: str) -> dict[str, dict]:
    "A table of results by variant."
    with open(REFERENCE/f"results/{name}.csv") as file:
        return {row["variant"]: row for row in csv.DictReader(file)}


def test_it_is_complete_and_small():
    names = {p.relative_to(REFERENCE).as_posix() for p in committed()}
    assert {"run.json", "report.html", "data/data_card.json"} <= names
    results = ("benchmark_results.csv", "compact_results.csv", "claims.csv", "latency_raw.json")
    assert {f"results/{name}" for name in results} <= names
    assert {f"stages/{s}.json" for s in STAGES} <= names
    assert {f"notebooks/{s}.ipynb" for s in STAGES} <= names
    assert not [n for n in names if n.endswith((".safetensors", ".bin", ".pt", ".onnx"))]
    assert sum(p.stat().st_size for p in committed()) < 15e6


def test_its_stages_fit_together():
    "Every input of a stage is the output of an earlier one: nothing was patched in between."
    published = "profiles/published.yaml" # the published study's figures, as they are now
    made = {published: hashlib.sha256((ROOT/published).read_bytes()).hexdigest()}
    for stage, record in records().items():
        for path, digest in record["inputs"].items():
            assert path in made or stage == "00_data", (stage, path)
            assert made.get(path, digest) == digest, (stage, path)
        made |= record["outputs"]


def test_its_files_are_those_that_the_stages_published():
    for record in records().values():
        for path, digest in record["outputs"].items():
            file = REFERENCE/path
            if file.exists():
                assert hashlib.sha256(file.read_bytes()).hexdigest() == digest, path


def test_every_table_begins_with_the_floor():
    for name, least in (("benchmark_results", 9), ("compact_results", 8)):
        variants = [*table(name)]
        assert variants[0] == "baseline_tfidf" and len(variants) >= least


def test_no_path_of_a_machine():
    paths = re.compile(r"(?<![\w.])/(?:work|tmp|root|home|Users)/")
    for path in committed():
        if path.suffix in TEXTS:
            assert not paths.search(text_of(path)), path


def test_no_sentence_of_the_data_sets():
    if not DATA.exists():
        pytest.skip("the original data files are not here: link their folder at original_data")
    from fincompress.data import read_folder
    texts = {s.strip() for s in read_folder(DATA, 0.1).text}
    starts = {s[:40] for s in texts if len(s) >= 40}
    assert len(starts) > 1000
    picture = re.compile(r"data:image/png;base64,[^\"']*|\"image/png\": \"[^\"]*\"")
    for path in committed():
        if path.suffix in TEXTS and path.name != "latency_raw.json":
            text = picture.sub("", text_of(path)).replace('\\"', '"')
            assert not [s for s in starts if s in text], path


def test_compact_models_keep_what_the_teacher_knows():
    results = table("compact_results")
    lost = {name: -float(results[name]["delta_macro_f1_vs_teacher"]) for name in COMPACT}
    assert lost["compact_wide"] <= 0.010 and lost["compact_narrow"] <= 0.025


def test_compact_models_are_small():
    with open(REFERENCE/"results/compact_steps.csv") as file:
        steps = [row for row in csv.DictReader(file) if row["step"] == "int8, ONNX"]
    sizes = {row["variant"]: int(row["model_bytes"]) for row in steps}
    largest = dict(compact_wide=12.5e6, compact_narrow=4.6e6, compact_tiny=2.5e6)
    assert sizes.keys() == largest.keys()
    assert all(sizes[name] <= largest[name] for name in COMPACT)


@pytest.mark.parametrize("variant", ["compact_wide", "compact_narrow"])
def test_compact_models_are_clearly_above_what_is_cheaper(variant):
    row = table("compact_results")[variant]
    assert float(row["delta_macro_f1_vs_floor_low"]) > 0
    assert float(row["delta_macro_f1_vs_static_low"]) > 0
