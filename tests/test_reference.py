"""The committed reference run: complete, small, without weights, without a sentence of the data sets, without a path of the machine that made it."""
import csv, html, json, re
from pathlib import Path

import pytest

from fincompress.lib.run.stage import STAGES

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ROOT/"outputs"/"reference"
DATA = ROOT/"original_data" # a folder, or a link to one, with the original files; not part of the project


pytestmark = pytest.mark.skipif(not (REFERENCE/"run.json").exists(), reason="no reference run is committed yet")


def committed() -> list[Path]:
    "The reference run's files, but for those that are never committed."
    never = re.compile(r"data/.*\.csv$|unfinished/|\.lock$|checkpoints/[^/]+/(?!checkpoint_info\.json)|seeds/\d+/(notebooks|figures)/|seeds/\d+/results/latency_raw")
    return [p for p in sorted(REFERENCE.rglob("*")) if p.is_file() and not never.search(p.relative_to(REFERENCE).as_posix())]


def text_of(path: Path) -> str: return html.unescape(path.read_text(encoding="utf-8"))


def test_it_is_complete_and_small():
    names = {p.relative_to(REFERENCE).as_posix() for p in committed()}
    assert {"run.json", "report.html", "data/data_card.json", "results/benchmark_results.csv", "results/latency_raw.json"} <= names
    assert {f"stages/{s}.json" for s in STAGES} | {f"notebooks/{s}.ipynb" for s in STAGES} <= names
    assert not [n for n in names if n.endswith((".safetensors", ".bin", ".pt", ".onnx"))]
    assert sum(p.stat().st_size for p in committed()) < 15e6


def test_its_stages_fit_together():
    "Every input of a stage is the output of an earlier one, with the same digest: nothing was patched in between."
    made = {}
    for stage in STAGES:
        record = json.loads((REFERENCE/f"stages/{stage}.json").read_text())
        for path, value in record["inputs"].items(): assert made.get(path, value) == value and (path in made or stage == "00_data"), (stage, path)
        made |= record["outputs"]


def test_its_tables_are_those_that_the_benchmark_published():
    import hashlib
    for stage in STAGES:
        for path, value in json.loads((REFERENCE/f"stages/{stage}.json").read_text())["outputs"].items():
            if (REFERENCE/path).exists(): assert hashlib.sha256((REFERENCE/path).read_bytes()).hexdigest() == value, path


def test_a_variant_without_its_floor_would_be_no_comparison():
    rows = list(csv.DictReader((REFERENCE/"results/benchmark_results.csv").open()))
    assert rows[0]["variant"] == "baseline_tfidf" and len(rows) >= 8


def test_no_path_of_a_machine():
    paths = re.compile(r"(?<![\w.])/(?:work|tmp|root|home|Users)/")
    for path in committed():
        if path.suffix in (".json", ".ipynb", ".html", ".csv"): assert not paths.search(text_of(path)), path


def test_no_sentence_of_the_data_sets():
    if not DATA.exists(): pytest.skip("the original data files are not here: put them, or a link to their folder, at original_data")
    from fincompress.data import read_folder
    sentences = {s.strip() for s in read_folder(DATA, 0.1).text if len(s.strip()) >= 40}
    assert len(sentences) > 1000
    starts = {s[:40] for s in sentences}
    for path in committed():
        if path.suffix not in (".json", ".ipynb", ".html", ".csv") or path.name == "latency_raw.json": continue
        text = re.sub(r"data:image/png;base64,[^\"']*|\"image/png\": \"[^\"]*\"", "", text_of(path)).replace('\\"', '"')
        assert not [s for s in starts if s in text], path


SEEDS = pytest.mark.skipif(not (REFERENCE/"results/summary.csv").exists(), reason="the committed reference run has one seed yet")


@SEEDS
def test_what_is_deployed_keeps_what_the_teacher_knows():
    "Mean over three seeds, each from the teacher of its own seed."
    summary = {r["variant"]: r for r in csv.DictReader((REFERENCE/"results/summary.csv").open())}
    lost = {name: -float(row["delta_macro_f1_vs_teacher_mean"]) for name, row in summary.items()}
    assert {int(r["seeds"]) for r in summary.values()} == {3}
    assert lost["student_wide"] <= 0.010 and lost["student_narrow"] <= 0.025
    assert all(lost[f"{name}_int8"] - lost[name] <= 0.005 for name in ("student_wide", "student_narrow"))


@SEEDS
@pytest.mark.parametrize("variant", ["student_wide_int8", "student_narrow_int8"])
def test_what_is_deployed_is_small_and_clearly_above_what_is_cheaper(variant):
    sizes = {r["variant"]: int(r["model_bytes"]) for r in csv.DictReader((REFERENCE/"results/deployed.csv").open()) if r["step"] == "int8, ONNX"}
    assert sizes == pytest.approx(dict(student_wide=12.4e6, student_narrow=4.55e6), rel=0.02) and sizes["student_wide"] <= 12.5e6 and sizes["student_narrow"] <= 4.6e6
    above_floor = next(r for r in csv.DictReader((REFERENCE/"results/benchmark_results.csv").open()) if r["variant"] == variant)
    above_static = next(r for r in csv.DictReader((REFERENCE/"results/peers.csv").open()) if r["name"] == f"{variant}_onnx")
    assert float(above_floor["delta_macro_f1_vs_floor_low"]) > 0 and float(above_static["delta_macro_f1_vs_static_low"]) > 0


@SEEDS
def test_every_seed_was_run_with_the_same_sentences():
    cards = [json.loads(path.read_text())["digests"] for path in [REFERENCE/"data/data_card.json", *REFERENCE.glob("seeds/*/data/data_card.json")]]
    assert len(cards) == 3 and all(digests == cards[0] for digests in cards)
