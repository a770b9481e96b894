"""The models that come with the package.

What `package_models` refuses, on a toy run. Where the models are here: they are the ones that
`outputs/package` recorded, they are small, and the wheel answers in an empty environment."""
import io
import os
import shutil
import subprocess
import sys
import tarfile
import time
import venv
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fincompress import Classifier
from fincompress.app.deploy import package
from fincompress.app.deploy.card import shares_ranges
from fincompress.app.deploy.package import LARGEST, package_models
from fincompress.app.licences import is_permissive
from fincompress.app.scale.shard import identity_of
from fincompress.app.serve.batching import ServiceOptions
from fincompress.app.serve.predict_api import model_info
from fincompress.app.use.adapt import adapt
from fincompress.app.use.classifier import MODEL_FILES
from fincompress.lib.measure.adapt import FITS
from fincompress.lib.model.cascade import CASCADE, LARGE, SMALL
from fincompress.lib.model.probabilities import softmax
from fincompress.lib.onnx.packaged import MODELS, read_measured
from fincompress.lib.onnx.runtime import OnnxModel
from fincompress.lib.onnx.word_model import save_word_model
from fincompress.lib.run.checkpoint import LABELS
from fincompress.lib.run.files import (
    RunError,
    file_digest,
    files_below,
    read_json,
    write_csv,
    write_json,
)
from fincompress.lib.run.stage import STAGES, stage_file
from fincompress.lib.text.corpus import synthetic_corpus

ROOT = Path(__file__).resolve().parents[1]
PACKAGED = ROOT/"fincompress/models"
RUN = ROOT/"outputs/package"
FILES = {*MODEL_FILES, "measured.json", "README.md", "LICENSE", "NOTICE"}
WHEEL_BYTES = 25e6
WEIGHTS = {"rose": (0, 0, 2), "fell": (2, 0, 0)}
ROW = dict(
    test_macro_f1=0.9, test_macro_f1_low=0.8, test_macro_f1_high=1.0, test_accuracy=0.9,
    f1_negative=0.9, f1_neutral=0.9, f1_positive=0.9, size_bytes=900, latency_ms_p50=0.5,
    latency_ms_p95=1.0, latency_padded_ms_p50=1.0, throughput_per_s=999.0, times_faster=300.0,
    threads=2, runtime="ONNX Runtime", seed=42)
SETS = {"own_test": ("test", 0.9), "phrasebank": ("foreign test", 0.8),
        "finentity": ("foreign test", 0.6), "phrasebank_fiqa": ("foreign test", 0.1)}


# A toy run


def write_models(run):
    "Three models; what a stage records of their files."
    digests = {}
    for name in MODELS:
        folder = run/"checkpoints"/name
        save_word_model(folder, WEIGHTS)
        for file in files_below(folder):
            digests[f"checkpoints/{name}/{file.name}"] = file_digest(file)
    return digests


def write_tables(run):
    "Scores and times."
    world = [dict(model=name, set=each, role=role, macro_f1=score)
             for name in MODELS for each, (role, score) in SETS.items()]
    write_csv(run/"results/world.csv", pd.DataFrame(world))
    rows = [dict(variant=name, **ROW) for name in MODELS]
    write_csv(run/"results/compact_results.csv", pd.DataFrame(rows))


@pytest.fixture
def run(tmp_path):
    "A finished run with three models of two words."
    run = tmp_path/"run"
    digests = write_models(run)
    for stage in STAGES:
        record = dict(inputs=digests, outputs=digests, summary={},
                      parameters=dict(seed=42, backbone="minilm"))
        write_json(stage_file(run, stage), record)
    write_json(run/"run.json", dict(seed=42, profile="package"))
    train = dict(text=["a", "b"], label=[0, 2], source=["sentfin", "twitter"])
    write_csv(run/"data/train.csv", pd.DataFrame(train))
    write_json(run/"data/data_card.json", dict(
        synthetic=False, splits=dict(val=1, test=1),
        licences=dict(sentfin="MIT", twitter="MIT", phrasebank="CC BY-NC-SA 3.0"),
        transfer_licences=dict(headlines="none stated")))
    write_tables(run)
    return run


def change(file, **values):
    "Replace some values of a JSON file."
    write_json(file, read_json(file) | values)


# What is written


def test_three_folders_are_written(run, tmp_path):
    packaged = package_models(run, tmp_path/"models")
    assert [*packaged] == [*MODELS]
    for name, folder in packaged.items():
        assert {file.name for file in files_below(folder)} == FILES
        measured = read_measured(folder)
        assert measured["name"] == name and measured["licence"] == "Apache-2.0"
        assert measured["bytes"] == sum(file.stat().st_size for file in files_below(folder))
        assert measured["here"] == 0.9 and measured["elsewhere"] == pytest.approx(0.7)
        assert (measured["worst"], measured["worst_set"]) == (0.6, "finentity")
        assert measured["digests"] == {file: file_digest(folder/file) for file in MODEL_FILES}
        assert Classifier(folder)("Sales rose")["label"] == "positive"
    notice = (packaged["compact_tiny"]/"NOTICE").read_text()
    assert "all-MiniLM-L6-v2" in notice and "SEntFiN 1.0" in notice and "zeroshot" in notice
    assert "headlines: none stated" in notice and "ablation" in notice
    assert "Version 2.0, January 2004" in (packaged["compact_tiny"]/"LICENSE").read_text()


def test_what_is_packaged_says_nothing_of_the_machine(run, tmp_path):
    for folder in package_models(run, tmp_path/"models").values():
        for file in files_below(folder):
            assert str(tmp_path).encode() not in file.read_bytes(), file


# What is refused


def not_finished(run):
    stage_file(run, "08_benchmark").unlink()


def another_seed(run):
    change(stage_file(run, "09_compact"), parameters=dict(seed=43))


def without_the_world(run):
    change(run/"run.json", left_out=["10_world"])


def another_backbone(run):
    change(stage_file(run, "01_teacher"), parameters=dict(backbone="ProsusAI/finbert"))


def not_commercial(run):
    train = pd.DataFrame(dict(text=["a"], label=[0], source=["phrasebank"]))
    write_csv(run/"data/train.csv", train)


def unknown_licence(run):
    change(run/"data/data_card.json", licences=dict(sentfin="MIT"))


def damaged_model(run):
    with open(run/"checkpoints/compact_tiny/model.onnx", "ab") as file:
        file.write(b"!")


def another_model(run):
    "One that is whole, but that no stage has recorded."
    save_word_model(run/"checkpoints/compact_tiny", {"rose": (2, 0, 0)})


def without_weights(run):
    (run/"checkpoints/compact_tiny/model.onnx").unlink()


def not_measured(run):
    change(stage_file(run, "10_world"), inputs={})


def no_foreign_set(run):
    world = pd.read_csv(run/"results/world.csv")
    write_csv(run/"results/world.csv", world[world.role == "test"])


REFUSED = {
    not_finished: r"is not finished \(08_benchmark did not run\)",
    another_seed: "has the seed 43, and seed 42 is packaged",
    without_the_world: "leaves out 10_world",
    another_backbone: "the teacher of .* is ProsusAI/finbert",
    not_commercial: r"was trained on phrasebank \(CC BY-NC-SA 3.0\)",
    unknown_licence: r"was trained on twitter \(no licence recorded\)",
    damaged_model: "model.onnx is damaged",
    another_model: "is not what 09_compact wrote",
    without_weights: "model.onnx is missing",
    not_measured: "10_world measured another compact_wide",
    no_foreign_set: "no score of compact_wide",
}


@pytest.mark.parametrize("spoil", REFUSED, ids=lambda spoil: spoil.__name__)
def test_a_run_is_refused_and_the_models_of_before_stay(run, tmp_path, spoil):
    place = tmp_path/"models"
    save_word_model(place/"compact_wide", WEIGHTS)
    before = {path: path.read_bytes() for path in files_below(place)}
    spoil(run)
    with pytest.raises(RunError, match=REFUSED[spoil]):
        package_models(run, place)
    assert {path: path.read_bytes() for path in files_below(tmp_path/"models")} == before
    assert {path.name for path in tmp_path.iterdir()} == {"run", "models"}


def test_a_model_that_is_too_large_is_refused(run, tmp_path, monkeypatch):
    monkeypatch.setitem(package.LARGEST, "compact_tiny", 9_999)
    with pytest.raises(RunError, match="compact_tiny has .* bytes in all, and 9,999 are allowed"):
        package_models(run, tmp_path/"models")
    assert not (tmp_path/"models").exists()


def test_a_folder_with_something_else_is_refused(run, tmp_path):
    (tmp_path/"models").mkdir()
    (tmp_path/"models/notes.txt").write_text("not ours")
    with pytest.raises(RunError, match="notes.txt"):
        package_models(run, tmp_path/"models")
    assert (tmp_path/"models/notes.txt").read_text() == "not ours"


@pytest.mark.parametrize("licence, allowed", [
    ("MIT", True), ("MIT (authors' repository)", True), ("Apache-2.0", True), ("CC BY 4.0", True),
    ("cc-by-4.0", True), ("ODC-BY", True), ("CC0 1.0", True), ("CC BY-NC 4.0", False),
    ("CC BY-SA 4.0", False), ("CC BY-ND 4.0", False), ("FiQA 2018 challenge, task 1", False),
    ("none stated", False), ("MIT for the code; data for non-commercial use", False),
    ("", False), (None, False),
])
def test_which_licences_pass(licence, allowed):
    assert is_permissive(licence) == allowed


# The models that are here

needs_models = pytest.mark.skipif(
    not PACKAGED.is_dir(), reason="no packaged models are here yet: `make package` makes them")


@needs_models
def test_all_three_are_complete_and_small():
    assert {path.name for path in PACKAGED.iterdir()} == {*MODELS}
    for name in MODELS:
        files = files_below(PACKAGED/name)
        assert {file.name for file in files} == FILES
        assert sum(file.stat().st_size for file in files) <= LARGEST[name]
        assert read_measured(PACKAGED/name)["name"] == name


@needs_models
@pytest.mark.parametrize("name", MODELS)
def test_they_are_the_files_that_the_run_recorded(name):
    digests = {file: file_digest(PACKAGED/name/file) for file in MODEL_FILES}
    recorded = read_json(stage_file(RUN, "09_compact"))["outputs"]
    assert digests == {file: recorded[f"checkpoints/{name}/{file}"] for file in MODEL_FILES}
    assert digests == read_measured(PACKAGED/name)["digests"]
    kept = read_json(RUN/f"checkpoints/{name}/checkpoint_info.json")
    assert kept == read_json(PACKAGED/name/"checkpoint_info.json")
    assert kept["files"] == {file: digests[file] for file in kept["files"]}
    assert read_json(stage_file(RUN, "09_compact"))["parameters"]["seed"] == 42


@needs_models
@pytest.mark.parametrize("name", MODELS)
def test_they_answer(name):
    answers = Classifier(name)(["Operating profit rose by 12%.", "Sales fell sharply."])
    assert [answer["label"] for answer in answers] == ["positive", "negative"]


@needs_models
@pytest.mark.parametrize("name", MODELS)
def test_an_answer_does_not_depend_on_its_batch(name):
    parts = ["Sales fell", "Operating profit rose by 12% in the quarter", "The meeting is in May"]
    texts = [". ".join(parts[:i % 3 + 1]*(i + 1)) for i in range(8)]
    model = OnnxModel(PACKAGED/name, threads=1)
    ids, _ = model.tokenise(texts)
    together = softmax(model.one_batch(ids))
    alone = softmax([model.one_batch([each])[0] for each in ids])
    assert not shares_ranges(PACKAGED/name, {})
    assert abs(together - alone).max() < 0.02 # last bits differ between some processors' kernels


@needs_models
def test_the_cascade_answers_with_one_of_two_models():
    texts = ["Operating profit rose by 12%.", "Sales fell sharply.", "The loss may narrow.", "Hm"]
    classify = Classifier(CASCADE)
    small, large = (Classifier(name)(texts) for name in (SMALL, LARGE))
    sure = read_measured(PACKAGED/SMALL)["cascade"]["min_confidence"]
    handed_over = [max(answer["scores"].values()) < sure for answer in small]
    assert {*handed_over} == {True, False}
    expected = [both[i] for i, both in zip(handed_over, zip(small, large))]
    for found, one in zip(classify(texts), expected):
        assert found["label"] == one["label"]
        assert found["scores"] == pytest.approx(one["scores"], abs=0.02) # another batch


@needs_models
def test_the_cascade_is_scored_and_served_under_its_own_name():
    model = Classifier(CASCADE).model
    name, digest = identity_of(model)
    assert name == f"{SMALL}+{LARGE}"
    assert digest not in [identity_of(each)[1] for each in (model.small, model.large)]
    info = model_info(Classifier(CASCADE), CASCADE, ServiceOptions())
    assert info["model_id"] == CASCADE and info["model_sha"] is None
    assert info["model_digests"] == {each: read_measured(PACKAGED/each)["digests"]["model.onnx"]
                                     for each in (SMALL, LARGE)}


@needs_models
def test_an_int8_file_is_adapted(tmp_path):
    "To sentences of the bundled grammar, for an owner who calls more of them neutral."
    corpus = synthetic_corpus(n=2000, seed=7, transfer=0)
    own = corpus[["text"]].drop_duplicates(ignore_index=True)
    logits, _ = OnnxModel(PACKAGED/"compact_narrow", threads=1).read([*own.text])
    own["label"] = [LABELS[i] for i in (logits + [0, 2, 0]).argmax(1)]
    mine, unseen = own[:150], own[150:450]
    write_csv(tmp_path/"my.csv", mine)
    outcome = adapt(tmp_path/"my.csv", tmp_path/"mine", "compact_narrow")
    assert outcome.method in FITS
    before, after = [
        np.mean([answer["label"] for answer in Classifier(model)(unseen.text)] == unseen.label)
        for model in ("compact_narrow", tmp_path/"mine")]
    assert after > before + 0.03 and after > 0.9


@needs_models
def test_their_labels_may_be_used_commercially():
    licences = read_json(RUN/"data/data_card.json")["licences"]
    for name in MODELS:
        sources = read_measured(PACKAGED/name)["trained_on"]
        assert sources and all(is_permissive(licences[source]) for source in sources)


# The wheel


def committed(folder):
    "The tree of HEAD, written into a folder; None where this is no clone."
    command = ["git", "-C", str(ROOT), "archive", "HEAD"]
    archive = subprocess.run(command, capture_output=True)
    if archive.returncode:
        return None
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tree:
        tree.extractall(folder, filter="data")
    return folder


def pip(*words):
    subprocess.run([*map(str, words)], check=True, timeout=600)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    "The wheel of what is committed."
    place = tmp_path_factory.mktemp("release")
    if not committed(place/"tree"):
        pytest.skip("this is not a clone with a commit")
    if not (place/"tree/fincompress/models").is_dir():
        pytest.skip("no packaged models are committed yet")
    pip(sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet",
        "--disable-pip-version-check", "--wheel-dir", place/"out", place/"tree")
    (file,) = (place/"out").glob("fincompress-*.whl")
    return file


@needs_models
def test_the_wheel_answers_in_an_empty_environment(wheel, tmp_path, capsys):
    "Its base requirements come from the index; the seconds are printed, not judged."
    assert wheel.stat().st_size <= WHEEL_BYTES
    venv.create(tmp_path/"env", with_pip=True)
    programs = tmp_path/"env"/("Scripts" if os.name == "nt" else "bin")
    started = time.monotonic()
    pip(programs/"python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
        wheel)
    answered = subprocess.run([programs/"fincompress", "classify", "--csv", "Sales fell"],
                              cwd=tmp_path, capture_output=True, text=True, check=True)
    seconds = time.monotonic() - started
    with capsys.disabled():
        print(f"\nfrom the wheel to the first label: {seconds:.0f} s")
    assert answered.stdout.splitlines()[1].startswith("Sales fell,negative")
    listed = subprocess.run([programs/"fincompress", "models", "--csv"], cwd=tmp_path,
                            capture_output=True, text=True, check=True)
    assert [line.partition(",")[0] for line in listed.stdout.splitlines()[1:]] == [*MODELS]
    shutil.rmtree(tmp_path/"env")
