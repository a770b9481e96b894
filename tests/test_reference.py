"""The committed runs, `reference` and `package`, are complete and small.

They hold no weights, no sentence of the data sets, and no path of the machine that made them."""
import csv
import hashlib
import html
import json
import re
from pathlib import Path

import pandas as pd
import pytest

from fincompress.app.deploy.package import LARGEST, PACKAGED_SEED
from fincompress.app.study.seeds import all_seeds
from fincompress.lib.behaviour.pairs import RELATIONS
from fincompress.lib.model.cascade import CASCADE
from fincompress.lib.onnx.packaged import packaged_models, read_measured
from fincompress.lib.run.stage import STAGES

ROOT = Path(__file__).resolve().parents[1]
RUNS = {name: ROOT/"outputs"/name for name in ("reference", "package")}
DATA = ROOT/"original_data"  # a folder, or a link to one, with the original data files
COMPACT = ("compact_wide", "compact_narrow", "compact_tiny")
MAY_LACK = {"package": {*STAGES[2:9]}, "reference": set()}
TEXTS = (".json", ".ipynb", ".html", ".csv")


@pytest.fixture(params=RUNS)
def run(request) -> Path:
    "The directory of a committed run."
    return one_run(request.param)


def one_run(name: str) -> Path:
    if not (RUNS[name]/"run.json").exists():
        pytest.skip(f"no run {name} is committed yet")
    return RUNS[name]


@pytest.fixture
def reference() -> Path:
    return one_run("reference")


@pytest.fixture
def package() -> Path:
    return one_run("package")


def committed(run) -> list[Path]:
    "A run's files, without those that are never committed."
    never = re.compile(r"data/.*\.csv$|unfinished/|\.lock$"
                       r"|checkpoints/[^/]+/(?!checkpoint_info\.json)")
    files = [p for p in sorted(run.rglob("*")) if p.is_file()]
    return [p for p in files if not never.search(p.relative_to(run).as_posix())]


def text_of(path: Path) -> str:
    return html.unescape(path.read_text(encoding="utf-8"))


def stages_in(run) -> list[str]:
    left = json.loads((run/"run.json").read_text())["left_out"]
    assert {*left} <= MAY_LACK[run.name]
    return [s for s in STAGES if s not in left]


def records(run) -> dict[str, dict]:
    return {s: json.loads((run/f"stages/{s}.json").read_text()) for s in stages_in(run)}


def table(run, name: str) -> dict[str, dict]:
    "A table of results by variant."
    with open(run/f"results/{name}.csv") as file:
        return {row["variant"]: row for row in csv.DictReader(file)}


def test_it_is_complete_and_small(run):
    names = {p.relative_to(run).as_posix() for p in committed(run)}
    assert {"run.json", "report.html", "data/data_card.json"} <= names
    results = ["compact_results.csv", "ablation.csv", "behaviour.csv", "doubt.csv", "cascade.csv"]
    if run.name == "reference":
        results += ["benchmark_results.csv", "claims.csv", "latency_raw.json"]
    assert {f"results/{name}" for name in results} <= names
    assert {f"stages/{s}.json" for s in stages_in(run)} <= names
    assert {f"notebooks/{s}.ipynb" for s in stages_in(run)} <= names
    assert not [n for n in names if n.endswith((".safetensors", ".bin", ".pt", ".onnx"))]
    assert sum(p.stat().st_size for p in committed(run)) < 15e6


def test_its_stages_fit_together(run):
    "Every input of a stage is the output of an earlier one: nothing was patched in between."
    published = "profiles/published.yaml" # the published study's figures, as they are now
    made = {published: hashlib.sha256((ROOT/published).read_bytes()).hexdigest()}
    for stage, record in records(run).items():
        for path, digest in record["inputs"].items():
            outside = stage == "00_data" or path.startswith("fincompress/models/")
            assert path in made or outside, (stage, path)
            assert made.get(path, digest) == digest, (stage, path)
        made |= record["outputs"]


def test_its_files_are_those_that_the_stages_published(run):
    for record in records(run).values():
        for path, digest in record["outputs"].items():
            file = run/path
            if file.exists():
                assert hashlib.sha256(file.read_bytes()).hexdigest() == digest, path


def test_every_table_begins_with_the_floor(run):
    tables = {"compact_results": 8}
    if run.name == "reference":
        tables["benchmark_results"] = 9
    for name, least in tables.items():
        variants = [*table(run, name)]
        assert variants[0] == "baseline_tfidf" and len(variants) >= least


def test_no_path_of_a_machine(run):
    paths = re.compile(r"(?<![\w.])/(?:work|tmp|root|home|Users)/")
    for path in committed(run):
        if path.suffix in TEXTS:
            assert not paths.search(text_of(path)), path


def sentence_starts() -> set[str]:
    "The beginnings of all sentences of the data sets, those long enough to be told apart."
    from fincompress.lib.text.published import PUBLISHED
    from fincompress.lib.text.sources import Reading, read_sources
    texts = read_sources([*PUBLISHED], Reading(str(DATA))).text.tolist()
    for file in (DATA/"unlabelled").glob("*.csv"):
        texts += pd.read_csv(file, keep_default_na=False).text.tolist()
    starts = {text.strip()[:40] for text in texts}
    return {start for start in starts if len(start) == 40}


def test_no_sentence_of_the_data_sets(run):
    if not DATA.exists():
        pytest.skip("the original data files are not here: link their folder at original_data")
    starts = sentence_starts()
    assert len(starts) > 1000
    picture = re.compile(r"data:image/png;base64,[^\"']*|\"image/png\": \"[^\"]*\"")
    for path in committed(run):
        if path.suffix in TEXTS and not path.name.endswith("latency_raw.json"):
            text = picture.sub("", text_of(path)).replace('\\"', '"')
            found = [i for i in range(len(text)) if text[i:i + 40] in starts]
            assert not found, path


def test_compact_models_keep_what_the_teacher_knows(reference):
    results = all_seeds(reference, "compact_results.csv")
    lost = -results.groupby("variant").delta_macro_f1_vs_teacher.mean()
    assert lost["compact_wide"] <= 0.010 and lost["compact_narrow"] <= 0.025


def test_compact_models_are_small(run):
    "All files of a model together, its tokeniser among them."
    for name in COMPACT:
        info = json.loads((run/"checkpoints"/name/"checkpoint_info.json").read_text())
        assert info["size_bytes"] <= LARGEST[name]


@pytest.mark.parametrize("variant", ["compact_wide", "compact_narrow"])
def test_compact_models_are_clearly_above_what_is_cheaper(variant, reference):
    row = table(reference, "compact_results")[variant]
    assert float(row["delta_macro_f1_vs_floor_low"]) > 0
    assert float(row["delta_macro_f1_vs_static_low"]) > 0


# Trust: pairs of sentences, and the thresholds that are packaged


def test_every_model_meets_every_kind_of_pairs(run):
    rows = pd.read_csv(run/"results/behaviour.csv")
    met = rows.groupby("model").kind.agg(list)
    assert {"teacher", *COMPACT} <= {*met.index}
    assert all(sorted(kinds) == sorted(RELATIONS) for kinds in met)
    assert (rows.pairs == 200).all()
    assert ((rows.low <= rows.passed) & (rows.passed <= rows.high)).all()


@pytest.fixture(params=COMPACT)
def measured(request) -> dict:
    "What is recorded of a packaged model."
    here = packaged_models()
    if request.param not in here:
        pytest.skip("no packaged models are here yet")
    return read_measured(here[request.param])


def test_the_packaged_thresholds_are_those_of_the_run(measured, package):
    doubt = pd.read_csv(package/"results/doubt.csv")
    own = doubt[(doubt.model == measured["name"]) & (doubt.threshold <= 1)]
    found = {str(target): threshold for target, threshold in zip(own.target, own.threshold)}
    assert measured["min_confidence"] == found


def test_the_packaged_cascade_is_that_of_the_run(measured, package):
    cascade = pd.read_csv(package/"results/cascade.csv").set_index("variant")
    assert measured["cascade"]["min_confidence"] == cascade.threshold[CASCADE]


# Here and elsewhere: means over the seeds that are committed, and the seed that is shipped


LEAST = {"sentfin": 0.85, "twitter": 0.82, "finentity": 0.76, "phrasebank_fiqa": 0.75}
LEAST_DIRECTION = {"sentfin": 0.95, "twitter": 0.92, "finentity": 0.94, "phrasebank_fiqa": 0.88,
                   "semeval_headlines": 0.81}
VIEWS = ("mean", "shipped") # over the committed seeds; of the seed that is shipped, alone
MISSED = { # by the committed run; strict: a better run empties it
    ("mean", "macro_f1", "twitter"), ("shipped", "direction", "phrasebank_fiqa")}
POOLED = ("own_test", "phrasebank_fiqa")


def seed_view(run, view: str) -> pd.DataFrame: # `view`: one of `VIEWS`
    "The scores of all committed seeds, or those of the shipped seed alone."
    rows = all_seeds(run, "world.csv")
    return rows if view == "mean" else rows[rows.seed == PACKAGED_SEED]


def on_tests(rows, model: str, column: str) -> dict[str, float]:
    "One measure of a model on each set, without those for foreign validation."
    own = rows[(rows.model == model) & (rows.role != "foreign validation")]
    return own.groupby("set")[column].mean().to_dict()


def lost_in_one_seed(rows, model: str, against: str) -> dict[str, float]:
    if against == "teacher" and "mean_of_teachers" in {*rows.model}: # that the students followed
        against = "mean_of_teachers"
    own = on_tests(rows, model, "macro_f1")
    other = on_tests(rows, against, "macro_f1")
    return {name: 100*(other[name] - own[name]) for name in own if name not in POOLED}


def lost_points(rows, model: str, against: str) -> dict[str, float]:
    "By how much a model is behind another on each single set, as the mean over seeds."
    seeds = [lost_in_one_seed(own, model, against) for _, own in rows.groupby("seed")]
    return pd.DataFrame(seeds).mean().to_dict()


def narrow_goals() -> list:
    "What the narrow model should reach; what the committed run misses is known and expected."
    goals = [("macro_f1", name, least) for name, least in LEAST.items()]
    goals += [("direction", name, least) for name, least in LEAST_DIRECTION.items()]
    missed = pytest.mark.xfail(strict=True, reason="the committed run does not reach it")
    return [pytest.param(view, *goal, marks=missed if (view, *goal[:2]) in MISSED else ())
            for view in VIEWS for goal in goals]


@pytest.mark.parametrize(("view", "column", "name", "least"), narrow_goals())
def test_the_narrow_model_holds_elsewhere(package, view, column, name, least):
    assert on_tests(seed_view(package, view), "compact_narrow", column)[name] >= least


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize(("model", "against", "mean", "most"), [
    ("compact_tiny", "compact_narrow", 2, 4), ("compact_wide", "teacher", 1, 3)])
def test_a_smaller_model_loses_little(package, view, model, against, mean, most):
    lost = lost_points(seed_view(package, view), model, against)
    assert sum(lost.values())/len(lost) <= mean and max(lost.values()) <= most, lost


@pytest.mark.parametrize("view", VIEWS)
def test_the_tiny_model_is_above_the_linear_one_everywhere(package, view):
    low = on_tests(seed_view(package, view), "compact_tiny", "delta_macro_f1_vs_floor_low")
    assert all(value > 0 for value in low.values()), low


def mean_gains(run):
    "What a hundred own labels bring, by model and set."
    return all_seeds(run, "adapt.csv").groupby(["model", "set"]).gain.mean()


def test_own_labels_settle_what_is_neutral(reference):
    assert mean_gains(reference)["compact_narrow", "finentity"] >= 0.08


def test_own_labels_cost_no_model_more_than_a_point(run):
    gains = mean_gains(run)
    assert gains.min() >= -0.01, gains
