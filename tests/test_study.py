"""The finished smoke study: what lies in its run directory, and what happens when it is run again."""
import csv, json, shutil, subprocess, sys, time
from pathlib import Path

import pytest

from fincompress.app.study.parameters import load_profile
from fincompress.lib.run.stage import STAGES
from fincompress.lib.run.files import file_digest

ROOT = Path(__file__).resolve().parents[1]
SMOKE = ROOT/"outputs"/"smoke"
VARIANTS = ["baseline_tfidf", "teacher", "student_vanilla_kd", "student_intermediate_kd", "student_ptq", "student_qat", "pruned_teacher_30pct", "pruned_teacher_50pct",
            "pruned_teacher_fast", "student_wide", "student_narrow", "student_wide_int8", "student_narrow_int8"]
COLUMNS = """variant technique num_parameters size_bytes val_macro_f1 test_macro_f1 test_macro_f1_low test_macro_f1_high test_accuracy f1_negative
f1_neutral f1_positive delta_macro_f1_vs_teacher agreement_with_teacher expected_calibration_error latency_ms_p50 latency_ms_p95 latency_ms_p99
latency_padded_ms_p50 throughput_per_s peak_rss_mb runtime threads""".split()


def command(*words, **more): return subprocess.run([Path(sys.executable).with_name(words[0]), *words[1:]], capture_output=True, text=True, cwd=ROOT, timeout=600, **more)


@pytest.fixture(scope="module")
def smoke():
    assert (SMOKE/"stages/08_benchmark.json").exists(), "the smoke study is missing: run `make smoke` first"
    return SMOKE


@pytest.fixture
def copied(smoke, tmp_path):
    shutil.copytree(smoke, tmp_path/"run", ignore=shutil.ignore_patterns("unfinished", ".lock"))
    return tmp_path/"run"


def test_every_stage_and_file_is_there(smoke):
    for stage in STAGES:
        record = json.loads((smoke/f"stages/{stage}.json").read_text())
        assert all(file_digest(smoke/path) == value for path, value in record["outputs"].items())
        assert (smoke/f"notebooks/{stage}.ipynb").exists()
    assert {p.name for p in (smoke/"checkpoints").iterdir()} == {*VARIANTS, "student_init", "student_wide_trimmed", "student_narrow_trimmed"}
    assert not list(smoke.rglob("*.tmp")) and not list((smoke/"unfinished").glob("*"))
    for path in smoke.glob("checkpoints/*"):
        model = "model.onnx" if path.name in ("student_wide_int8", "student_narrow_int8") else "model.safetensors"
        assert {model, "config.json", "checkpoint_info.json"} <= {p.name for p in path.iterdir()}


def test_the_results_table(smoke):
    rows = list(csv.DictReader((smoke/"results/benchmark_results.csv").open()))
    assert [r["variant"] for r in rows] == VARIANTS and list(rows[0])[:len(COLUMNS)] == COLUMNS
    raw = json.loads((smoke/"results/latency_raw.json").read_text())
    for row in rows:
        info = json.loads((smoke/"checkpoints"/row["variant"]/"checkpoint_info.json").read_text())
        on_disk = sum(p.stat().st_size for p in (smoke/"checkpoints"/row["variant"]).iterdir() if p.name != "checkpoint_info.json")
        assert int(row["size_bytes"]) == info["size_bytes"] == on_disk and int(row["num_parameters"]) == info["num_parameters"]
        assert 0 <= float(row["test_macro_f1_low"]) <= float(row["test_macro_f1"]) <= float(row["test_macro_f1_high"]) <= 1
        assert row["variant"] in json.dumps(raw)


def test_what_is_deployed_opens_without_the_study_and_answers_as_the_benchmark_says(smoke):
    "The int8 checkpoint with Classifier, the float one with transformers."
    from sklearn.metrics import f1_score
    from transformers import pipeline
    from fincompress import Classifier
    test = list(csv.DictReader((smoke/"data/test.csv").open()))
    row = next(r for r in csv.DictReader((smoke/"results/benchmark_results.csv").open()) if r["variant"] == "student_narrow_int8")
    answers = [answer["label"] for answer in Classifier(smoke/"checkpoints/student_narrow_int8")([r["text"] for r in test])]
    labels = [("negative", "neutral", "positive")[int(r["label"])] for r in test]
    assert f1_score(labels, answers, average="macro", labels=["negative", "neutral", "positive"], zero_division=0) == pytest.approx(float(row["test_macro_f1"]))
    (answer,) = pipeline("text-classification", model=str(smoke/"checkpoints/student_wide"))("Profit rose")
    assert answer["label"] in ("negative", "neutral", "positive")


def test_tables_of_what_is_deployed(smoke):
    read = lambda name: list(csv.DictReader((smoke/f"results/{name}.csv").open()))
    steps = read("deployed")
    assert [r["variant"] for r in steps] == ["student_wide"]*3 + ["student_narrow"]*3 and int(steps[2]["model_bytes"]) < int(steps[0]["model_bytes"])/3
    vocabulary = [{k: float(v) for k, v in r.items() if k not in ("variant", "general_pieces")} for r in read("vocabulary")]
    assert [(r["variant"], r["general_pieces"]) for r in read("vocabulary")] == [(name, way) for name in ("student_wide", "student_narrow") for way in ("by frequency", "by effect")]
    assert all(r["pieces"] in (350, 400) and r["unknown_after"] <= r["unknown_before"] and r["pieces_after"] >= r["pieces_before"] for r in vocabulary)
    peers = {r["name"]: r for r in read("peers")}
    assert {"bert_base_pytorch", "bert_base_onnx", "bert_base_onnx_int8", "teacher_onnx_int8", "static_embeddings", "baseline_tfidf", "student_wide_pytorch", "student_wide_onnx", "student_narrow_int8_onnx"} <= {*peers}
    assert {name for name, r in peers.items() if r["trained"] == "False"} == {"bert_base_pytorch", "bert_base_onnx", "bert_base_onnx_int8"} # no score for random weights
    assert all((r["test_macro_f1"] == "") == (r["trained"] == "False") for r in peers.values())
    assert len(read("ablation")) == 8 and len(read("training_speed")) == 4 and all(float(r["published_ms"]) > 0 for r in read("training_speed"))


def test_int8_weighs_its_packed_weights_and_pruned_is_smaller(smoke):
    size = {r["variant"]: int(r["size_bytes"]) for r in csv.DictReader((smoke/"results/benchmark_results.csv").open())}
    assert size["student_ptq"] == pytest.approx(size["student_qat"], rel=0.01) and size["student_ptq"] < size["student_vanilla_kd"]
    assert size["pruned_teacher_fast"] < size["pruned_teacher_50pct"] < size["pruned_teacher_30pct"] < size["teacher"]


def test_no_sentence_of_the_test_split_was_read_before_the_benchmark(smoke):
    for stage in STAGES[1:-1]: assert "data/test.csv" not in json.loads((smoke/f"stages/{stage}.json").read_text())["inputs"]
    assert "data/test.csv" in json.loads((smoke/"stages/08_benchmark.json").read_text())["inputs"]


def test_the_report_is_one_file(smoke):
    page = (smoke/"report.html").read_text()
    assert all(variant in page for variant in VARIANTS) and "synthetic" in page
    assert page.count("<img") >= 15 and "src=\"http" not in page


def test_a_second_run_does_nothing(copied):
    begun = time.monotonic()
    before = {p: p.stat().st_mtime_ns for p in copied.rglob("*") if p.is_file() and p.name != ".lock"}
    result = command("fincompress", "run", "--profile", "smoke", "--run-dir", copied)
    assert result.returncode == 0, result.stderr
    assert "up to date" in result.stdout + result.stderr
    assert {p: p.stat().st_mtime_ns for p in copied.rglob("*") if p.is_file() and p.name != ".lock"} == before


def test_a_parameter_of_05_reruns_what_depends_on_it(copied):
    result = command("fincompress", "run", "--profile", "smoke", "--run-dir", copied, "-p", "ptq.max_length=100")
    assert result.returncode == 0, result.stderr
    told = result.stdout + result.stderr
    for stage in STAGES[:5] + ("07_pruning",): assert f"{stage}: begun" not in told, told
    for stage in ("05_ptq", "06_qat", "08_benchmark"):
        inputs = json.loads((copied/f"stages/{stage}.json").read_text())["inputs"]
        depends = stage == "05_ptq" or any(path.startswith("checkpoints/student_ptq/") for path in inputs)
        assert (f"{stage}: begun" in told) == depends, told


@pytest.mark.parametrize("stage, more", [("00_data", {"bundled_sentences": 200}), ("01_teacher", {"learning_rate": 0.002}), ("03_vanilla_kd", {"temperature": 3.0}),
                                         ("05_ptq", {"max_length": 100}), ("08_benchmark", {"latency_calls": 5, "bootstrap_samples": 100})])
def test_a_stage_by_hand(stage, more, copied, tmp_path):
    "Plain papermill on one notebook, against a finished run."
    place, values = copied/f"stages/{stage}.json", {**load_profile(ROOT/"profiles/smoke.yaml").get(stage, {}), **more, "run_dir": str(copied)}
    before = place.stat().st_mtime_ns
    words = [word for name, value in values.items() for word in ("-y", json.dumps({name: value}))]
    result = command("papermill", f"nbs/{stage}.ipynb", tmp_path/"executed.ipynb", *words, "--no-progress-bar", "--cwd", ROOT, "-k", "python3")
    assert result.returncode == 0, result.stderr[-2000:]
    assert place.stat().st_mtime_ns != before and more.items() <= json.loads(place.read_text())["parameters"].items()


def test_a_stage_by_hand_says_what_to_run_first(tmp_path):
    result = command("papermill", "nbs/04_intermediate_kd.ipynb", tmp_path/"executed.ipynb", "-p", "run_dir", tmp_path/"empty", "--no-progress-bar", "-k", "python3")
    assert result.returncode != 0 and "run 00_data first" in result.stderr
