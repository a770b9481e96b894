"""The finished smoke study: what its run directory holds, and what a second run does."""
import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fincompress.app.study.parameters import load_profile
from fincompress.lib.run.checkpoint import LABELS
from fincompress.lib.run.files import file_digest
from fincompress.lib.run.stage import STAGES

ROOT = Path(__file__).resolve().parents[1]
SMOKE = ROOT/"outputs"/"smoke"
VARIANTS = ["baseline_tfidf", "teacher", "student_vanilla_kd", "student_intermediate_kd",
            "student_ptq", "student_qat", "pruned_teacher_30pct", "pruned_teacher_50pct",
            "pruned_teacher_fast"]
COMPACT = ["compact_wide", "compact_narrow", "compact_tiny"]
BERT_BASE = {"bert_base_pytorch", "bert_base_onnx", "bert_base_onnx_int8"}
ALTERNATIVES = {*BERT_BASE, "teacher_onnx_int8", "static_embeddings", "baseline_tfidf", "teacher"}
COLUMNS = """variant technique num_parameters size_bytes val_macro_f1 test_macro_f1
test_macro_f1_low test_macro_f1_high test_accuracy f1_negative f1_neutral f1_positive
delta_macro_f1_vs_teacher agreement_with_teacher expected_calibration_error latency_ms_p50
latency_ms_p95 latency_ms_p99 latency_padded_ms_p50 throughput_per_s peak_rss_mb runtime
threads""".split()


def command(*words):
    program = Path(sys.executable).with_name(words[0])
    return subprocess.run([program, *words[1:]], capture_output=True, text=True, cwd=ROOT,
                          timeout=600)


@pytest.fixture(scope="module")
def smoke():
    finished = (SMOKE/f"stages/{STAGES[-1]}.json").exists()
    assert finished, "the smoke study is missing: run `make smoke` first"
    return SMOKE


@pytest.fixture
def copied(smoke, tmp_path):
    ignored = shutil.ignore_patterns("unfinished", ".lock")
    shutil.copytree(smoke, tmp_path/"run", ignore=ignored)
    return tmp_path/"run"


def record(run, stage) -> dict:
    return json.loads((run/f"stages/{stage}.json").read_text())


def rows(run, name) -> list[dict]:
    with open(run/f"results/{name}.csv") as file:
        return list(csv.DictReader(file))


def sizes(run) -> dict[str, int]:
    return {row["variant"]: int(row["size_bytes"]) for row in rows(run, "benchmark_results")}


def test_every_stage_and_file_is_there(smoke):
    for stage in STAGES:
        for path, digest in record(smoke, stage)["outputs"].items():
            assert file_digest(smoke/path) == digest
        assert (smoke/f"notebooks/{stage}.ipynb").exists()
        assert record(smoke, stage)["peak_rss_mb"] > 0
    assert not list(smoke.rglob("*.tmp"))
    assert not list((smoke/"unfinished").glob("*"))


def test_every_checkpoint_is_complete(smoke):
    folders = {path.name: path for path in (smoke/"checkpoints").iterdir()}
    before = [f"{name}_{form}" for name in COMPACT for form in ("float", "trimmed")]
    assert {*folders} == {*VARIANTS, *COMPACT, *before, "student_init"}
    for name, folder in folders.items():
        model = "model.onnx" if name in COMPACT else "model.safetensors"
        names = {path.name for path in folder.iterdir()}
        assert {model, "config.json", "checkpoint_info.json"} <= names


def test_the_results_table(smoke):
    table = rows(smoke, "benchmark_results")
    assert [row["variant"] for row in table] == VARIANTS
    assert list(table[0])[:len(COLUMNS)] == COLUMNS
    raw = json.loads((smoke/"results/latency_raw.json").read_text())
    for row in table:
        low, score, high = (float(row[f"test_macro_f1{end}"]) for end in ("_low", "", "_high"))
        assert 0 <= low <= score <= high <= 1
        assert all(row["variant"] in raw[kind] for kind in ("real_length", "padded"))


def test_a_size_is_that_of_the_files(smoke):
    for row in rows(smoke, "benchmark_results"):
        folder = smoke/"checkpoints"/row["variant"]
        info = json.loads((folder/"checkpoint_info.json").read_text())
        files = [path for path in folder.iterdir() if path.name != "checkpoint_info.json"]
        on_disk = sum(path.stat().st_size for path in files)
        assert int(row["size_bytes"]) == info["size_bytes"] == on_disk
        assert int(row["num_parameters"]) == info["num_parameters"]


def test_a_compact_model_answers_without_the_study_as_the_run_says(smoke):
    from sklearn.metrics import f1_score

    from fincompress import Classifier
    with open(smoke/"data/test.csv") as file:
        test = list(csv.DictReader(file))
    classify = Classifier(smoke/"checkpoints/compact_narrow")
    answers = [classify([row["text"]])[0]["label"] for row in test]
    truth = [LABELS[int(row["label"])] for row in test]
    score = f1_score(truth, answers, average="macro", labels=LABELS, zero_division=0)
    results = {row["variant"]: row for row in rows(smoke, "compact_results")}
    assert score == pytest.approx(float(results["compact_narrow"]["test_macro_f1"]))


def test_a_float_compact_model_opens_with_transformers(smoke):
    from transformers import pipeline
    classify = pipeline("text-classification", model=str(smoke/"checkpoints/compact_wide_float"))
    (answer,) = classify("Profit rose")
    assert answer["label"] in LABELS


def test_the_steps_of_the_recipe(smoke):
    steps = rows(smoke, "compact_steps")
    for name in COMPACT:
        of_model = [row for row in steps if row["variant"] == name]
        (deployed,) = [row for row in of_model if row["deployed"] == "True"]
        size = (smoke/"checkpoints"/name/"model.onnx").stat().st_size
        assert size == int(deployed["model_bytes"]) < int(of_model[0]["model_bytes"])/3
        assert len(of_model) == (3 if name == "compact_wide" else 4)
    assert len(rows(smoke, "ablation")) == 9


def test_a_smaller_vocabulary_loses_no_word(smoke):
    table = rows(smoke, "vocabulary")
    ways = [(row["variant"], row["general_pieces"]) for row in table]
    assert ways == [(name, way) for name in COMPACT for way in ("by frequency", "by effect")]
    for row in table:
        assert float(row["unknown_after"]) <= float(row["unknown_before"])
        assert float(row["pieces_after"]) >= float(row["pieces_before"])


def test_what_one_could_use_instead(smoke):
    table = {row["variant"]: row for row in rows(smoke, "compact_results")}
    assert {*ALTERNATIVES, *COMPACT} <= {*table}
    random_weights = {name for name, row in table.items() if row["trained"] == "False"}
    assert random_weights == BERT_BASE  # only their speed means something
    for name, row in table.items():
        assert (row["test_macro_f1"] == "") == (name in BERT_BASE)


def test_every_claim_has_a_verdict(smoke):
    verdicts = {row["verdict"] for row in rows(smoke, "claims")}
    assert verdicts <= {"holds", "fails", "undecided", "not run"}
    assert len(rows(smoke, "claims")) >= 9 and verdicts != {"not run"}


def test_int8_weighs_its_packed_weights(smoke):
    size = sizes(smoke)
    assert size["student_ptq"] == pytest.approx(size["student_qat"], rel=0.01)
    assert size["student_ptq"] < size["student_vanilla_kd"]


def test_a_pruned_teacher_is_smaller(smoke):
    pruned = ["pruned_teacher_fast", "pruned_teacher_50pct", "pruned_teacher_30pct", "teacher"]
    found = [sizes(smoke)[name] for name in pruned]
    assert found == sorted(found) and len({*found}) == len(found)


def test_no_sentence_of_the_test_split_was_read_before_the_benchmarks(smoke):
    readers = [stage for stage in STAGES if "data/test.csv" in record(smoke, stage)["inputs"]]
    assert readers == ["08_benchmark", "10_world", "11_trust"]


def test_the_product_needs_nothing_of_the_study(smoke):
    made = {path: stage for stage in STAGES for path in record(smoke, stage)["outputs"]}
    needed = {made[path] for path in record(smoke, "09_compact")["inputs"]}
    assert needed == {"00_data", "01_teacher"}
    for stage in ("10_world", "11_trust"):
        inputs = record(smoke, stage)["inputs"].keys()
        needed = {made[path] for path in inputs & made.keys()}
        assert needed == {"00_data", "01_teacher", "09_compact"}
        assert all(path.startswith("fincompress/models/") for path in inputs - made.keys())


def test_the_report_is_one_file(smoke):
    page = (smoke/"report.html").read_text()
    assert "synthetic" in page
    assert page.count("<img") >= 15
    assert 'src="http' not in page


def changed_times(folder) -> dict:
    files = [p for p in folder.rglob("*") if p.is_file() and p.name != ".lock"]
    return {path: path.stat().st_mtime_ns for path in files}


def test_a_second_run_does_nothing(copied):
    before = changed_times(copied)
    result = command("fincompress", "run", "--profile", "smoke", "--run-dir", copied)
    assert result.returncode == 0, result.stderr
    assert "up to date" in result.stdout + result.stderr
    assert changed_times(copied) == before


def test_a_parameter_of_05_reruns_what_depends_on_it(copied):
    result = command("fincompress", "run", "--profile", "smoke", "--run-dir", copied,
                     "-p", "ptq.max_length=100")
    assert result.returncode == 0, result.stderr
    printed = result.stdout + result.stderr
    begun = [stage for stage in STAGES if f"{stage}: begun" in printed]
    assert begun[0] == "05_ptq" and "08_benchmark" in begun
    assert not {"07_pruning", "09_compact", "10_world", "11_trust"} & {*begun}
    reads_ptq = any(path.startswith("checkpoints/student_ptq/")
                    for path in record(copied, "06_qat")["inputs"])
    assert ("06_qat" in begun) == reads_ptq


def test_a_table_of_your_own_needs_no_transfer_text(tmp_path):
    "Text and label, and nothing else, up to the first distillation."
    words = dict(negative="fell", neutral="met", positive="rose")
    rows = [f"Sales of firm {i} {words[label]},{label}" for i in range(30) for label in words]
    (tmp_path/"mine.csv").write_text("\n".join(["text,label", *rows]))
    names = ("data", "teacher", "student", "vanilla_kd")
    only = [word for name in names for word in ("--only", name)]
    result = command("fincompress", "run", "--profile", "smoke", "--run-dir", tmp_path/"run", *only,
                     "-p", f"data.source={tmp_path/'mine.csv'}", "-p", "data.pair_kinds=[]")
    assert result.returncode == 0, result.stderr
    logits = (tmp_path/"run/results/teacher_logits_transfer.csv").read_text()
    assert logits.splitlines() == [",".join(LABELS)]


BY_HAND = [("00_data", {"bundled_sentences": 200}), ("01_teacher", {"learning_rate": 0.002}),
           ("03_vanilla_kd", {"temperature": 3.0}), ("05_ptq", {"max_length": 100}),
           ("08_benchmark", {"latency_calls": 5, "bootstrap_samples": 100})]


@pytest.mark.parametrize("stage, more", BY_HAND)
def test_a_stage_by_hand(stage, more, copied, tmp_path):
    "Plain papermill on one notebook, against a finished run."
    before = (copied/f"stages/{stage}.json").stat().st_mtime_ns
    profile = load_profile(ROOT/"profiles/smoke.yaml").get(stage, {})
    values = {**profile, **more, "run_dir": str(copied)}
    words = [word for name, value in values.items() for word in ("-y", json.dumps({name: value}))]
    result = command("papermill", f"nbs/{stage}.ipynb", tmp_path/"executed.ipynb", *words,
                     "--no-progress-bar", "--cwd", ROOT, "-k", "python3")
    assert result.returncode == 0, result.stderr[-2000:]
    assert (copied/f"stages/{stage}.json").stat().st_mtime_ns != before
    assert more.items() <= record(copied, stage)["parameters"].items()


def test_a_stage_by_hand_says_what_to_run_first(tmp_path):
    result = command("papermill", "nbs/04_intermediate_kd.ipynb", tmp_path/"executed.ipynb",
                     "-p", "run_dir", tmp_path/"empty", "--no-progress-bar", "-k", "python3")
    assert result.returncode != 0
    assert "fincompress run" in result.stderr and "00_data" in result.stderr
