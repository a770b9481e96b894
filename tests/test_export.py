"""The deployable folder: the run's answers, a card that tells the truth, nothing half-written."""
import json
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from transformers import pipeline

from fincompress import Classifier
from fincompress.app.cli import rounded_up
from fincompress.app.deploy.export import export
from fincompress.app.places import swap_folders
from fincompress.benchmark import open_variant
from fincompress.lib.examples import toy_tokenizer
from fincompress.lib.model.probabilities import softmax
from fincompress.lib.onnx import checkpoint as onnx_checkpoint
from fincompress.lib.run.checkpoint import read_info
from fincompress.lib.run.files import (
    RunError,
    digest,
    file_digest,
    files_below,
    read_json,
    write_csv,
    write_json,
)
from fincompress.lib.text.tfidf import TfidfClassifier
from fincompress.lib.train.batches import Sentences, tokenise
from fincompress.lib.train.training import FitSettings, cross_entropy, fit
from fincompress.pruning import remove_units
from fincompress.ptq import quantize, save_int8
from fincompress.student import EncoderConfig, SentimentEncoder, save_encoder

LABELS = ["negative", "neutral", "positive"]
ENCODERS = ["teacher", "student_vanilla_kd", "student_ptq", "pruned_teacher_30pct"]
NOTE = "FinBERT was itself fine-tuned on PhraseBank."
WORDS = ["sales", "profit", "orders", "in", "the", "north", "quarter", "slightly"]
DECIDING = ["fell", "unchanged", "rose"]


# A run with small models


def sentences(count: int) -> pd.DataFrame:
    "Some words, and among them the one that decides."
    draw = random.Random(0)
    rows = []
    for i in range(count):
        others = draw.choices(WORDS, k=draw.randint(1, 9))
        words = draw.sample([*others, DECIDING[i % 3]], len(others) + 1)
        rows.append(dict(text=" ".join(words), label=i % 3, source="phrasebank"))
    return pd.DataFrame(rows)


def trained(tokenizer, train, val, layers: int) -> SentimentEncoder:
    torch.manual_seed(0)
    config = EncoderConfig.even(len(tokenizer), layers=layers, hidden_size=32, heads=2,
                                intermediate_size=64, max_positions=32)
    model = SentimentEncoder(config)
    for part in model.modules():
        if isinstance(part, torch.nn.Linear):
            torch.nn.init.normal_(part.weight, std=0.15)
    splits = [Sentences(tokenise(part.text, tokenizer, 16), part.label) for part in (train, val)]
    settings = FitSettings(epochs=14, learning_rate=2e-3, batch_size=20, seed=0)
    fit(model, cross_entropy, *splits, settings)
    return model.cpu().eval()


def write_data(folder: Path, table: pd.DataFrame) -> tuple:
    "The data of a run and the records that a card reads; gives the training and the val. split."
    train = table[:200]
    val = table[200:].reset_index(drop=True)
    write_csv(folder/"data/train.csv", train)
    write_csv(folder/"data/val.csv", val)
    write_json(folder/"data/data_card.json", dict(
        source=str(folder.parent/"original_data"), synthetic=False,
        splits=dict(train=200, val=120, test=77),
        licences=dict(phrasebank="CC BY-NC-SA 3.0, Malo et al. 2014", fiqa="FiQA 2018"),
        leakage=[dict(split="test", other="train", share=0.0625)]))
    write_json(folder/"run.json", dict(
        seed=42, hardware=dict(cpu="A processor"), source=dict(commit="abc123", changed=False)))
    write_json(folder/"stages/01_teacher.json", dict(
        parameters=dict(backbone="ProsusAI/finbert"), summary=dict(notes=[NOTE])))
    return train, val


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "A run directory with five small checkpoints, and an invented benchmark of these very ones."
    folder = tmp_path_factory.mktemp("home")/"run"
    train, val = write_data(folder, sentences(320))
    tokenizer = toy_tokenizer([*WORDS, *DECIDING])
    scores = dict(val_macro_f1=0.9, val_accuracy=0.9)
    scores |= {f"val_f1_{label}": 0.9 for label in LABELS}
    record = dict(metrics=scores, hyperparameters=dict(max_length=16), inputs={})
    teacher = trained(tokenizer, train, val, 2)
    student = trained(tokenizer, train, val, 1)
    pruned = remove_units(teacher, {"heads": {1: [0]}})
    made = {
        "teacher": (save_encoder, teacher),
        "student_vanilla_kd": (save_encoder, student),
        "student_ptq": (save_int8, quantize(student)),
        "pruned_teacher_30pct": (save_encoder, pruned),
    }
    for name, (save, model) in made.items():
        save(model, folder/"checkpoints"/name, technique=f"made as {name}", tokenizer=tokenizer,
             **record)
    floor = TfidfClassifier(1, 2).fit(train.text, train.label, C=10., seed=0)
    floor.save(folder/"checkpoints/baseline_tfidf", technique="linear", **record)
    write_benchmark(folder)
    return folder


def write_benchmark(folder):
    "Invented numbers, and the digests of the checkpoints that they are said to be of."
    names = ["baseline_tfidf", *ENCODERS]
    rows = [dict(
        variant=name, size_bytes=2e6 + i, test_macro_f1=0.8 + i/100, test_macro_f1_low=0.7111,
        test_macro_f1_high=0.8889, test_accuracy=0.8, f1_negative=0.8, f1_neutral=0.8,
        f1_positive=0.8, latency_ms_p50=1.25 + i, latency_ms_p95=2.5, latency_padded_ms_p50=4.5,
        throughput_per_s=123, threads=2, runtime="PyTorch, float32", seed=42,
        beats_floor=name != "student_ptq") for i, name in enumerate(names)]
    write_csv(folder/"results/benchmark_results.csv", pd.DataFrame(rows))
    inputs = {}
    for name in names:
        files = read_info(folder/"checkpoints"/name)["files"]
        inputs |= {f"checkpoints/{name}/{file}": value for file, value in files.items()}
    write_json(folder/"stages/08_benchmark.json", dict(inputs=inputs, summary={}, parameters={}))


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    place = tmp_path_factory.mktemp("exports")
    return {variant: export(run, variant, "onnx", place/variant) for variant in ENCODERS}


@pytest.fixture
def copied(run, tmp_path):
    return shutil.copytree(run, tmp_path/"run")


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in files_below(folder)}


def card_of(folder) -> str:
    return (folder/"README.md").read_text()


def front_matter(folder):
    return yaml.safe_load(card_of(folder).split("---\n")[1])


def code_of(card: str) -> str:
    return re.search(r"```python\n(.*?)```", card, re.S)[1]


def run_in(folder, code: str) -> list[str]:
    "The lines that a program prints, run in a folder."
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


# The folder


@pytest.mark.parametrize("variant", ENCODERS)
def test_it_answers_as_the_runs_model_does(variant, run, exported):
    texts = [*sentences(400).text, "profit "*40 + "rose", "ROSE", "an unknown word fell"]
    answers = Classifier(exported[variant])(texts)
    found = np.array([[*answer["scores"].values()] for answer in answers])
    model = open_variant(run/"checkpoints"/variant, 16)
    expected = softmax(model.logits(texts, 32))
    same = np.mean(found.argmax(1) == expected.argmax(1))
    largest = np.abs(found - expected).max()
    if variant == "student_ptq":
        assert same >= 0.99
        assert largest < 0.15
    else:
        assert same == 1
        assert largest < 1e-4
    assert [answer["label"] for answer in answers[:3]] == LABELS
    assert answers[400]["truncated"]
    assert not answers[401]["truncated"]
    assert len({*found.argmax(1)}) == 3  # the model does tell sentences apart


def test_a_folder_for_a_page(run, exported, npm, tmp_path):
    "The same graph as the ONNX folder's, and a card for it; an earlier export is replaced."
    for _ in range(2):
        folder = export(run, "student_ptq", "web", tmp_path/"page")
    names = {path.relative_to(folder).as_posix() for path in files_below(folder)}
    assert {"index.html", "classifier.js", "runtime/ort.wasm", "model/model.json"} <= names
    record = read_json(folder/"model/model.json")
    assert record["graph"]["sha256"] == file_digest(exported["student_ptq"]/"model.onnx")
    card = (folder/"model/README.md").read_text(encoding="utf-8")
    assert "openModel" in card and "**Use:" in card and "Classifier(" not in card
    assert not [path for path in tmp_path.iterdir() if path.name != "page"]



@pytest.mark.parametrize("variant", ENCODERS)
def test_what_the_folder_holds(variant, run, exported):
    folder = exported[variant]
    info = read_info(folder)
    config = json.loads((folder/"config.json").read_text())
    assert {path.name for path in folder.iterdir()} == {
        "model.onnx", "tokenizer.json", "config.json", "checkpoint_info.json", "README.md"}
    assert config["model_type"] == "fincompress-onnx"
    assert config["max_length"] == 16
    assert config["precision"] == ("int8" if variant == "student_ptq" else "float32")
    assert config["id2label"] == {"0": "negative", "1": "neutral", "2": "positive"}
    heads = {"teacher": [2, 2], "pruned_teacher_30pct": [2, 1]}.get(variant, [2])
    assert config["encoder"]["heads"] == heads
    assert info["size_bytes"] == sum((folder/name).stat().st_size for name in info["files"])
    assert info["metrics"]["label_agreement"] >= 0.99


@pytest.mark.parametrize("variant", ENCODERS)
def test_its_record_names_its_origin(variant, run, exported):
    info = read_info(exported[variant])
    source = read_info(run/"checkpoints"/variant)
    beyond = (32 - 16)*32  # embeddings of positions that no sentence reaches
    assert info["num_parameters"] == source["num_parameters"] - beyond
    assert info["inputs"] == {
        f"checkpoints/{variant}/{name}": value for name, value in source["files"].items()}


def test_int8_is_smaller_embeddings_included(exported):
    import onnx
    size = {variant: read_info(folder)["size_bytes"] for variant, folder in exported.items()}
    assert size["student_ptq"] < 0.6*size["student_vanilla_kd"]
    assert size["pruned_teacher_30pct"] < size["teacher"]
    graph = onnx.load(exported["student_ptq"]/"model.onnx").graph
    tables = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for name in ("words", "positions"):
        assert tables[f"embeddings.{name}.weight"] == onnx.TensorProto.INT8


# The card


def test_the_cards_block(exported):
    folder = exported["student_vanilla_kd"]
    block = front_matter(folder)
    assert block["license"] == "cc-by-nc-sa-3.0"
    assert block["language"] == "en"
    assert block["pipeline_tag"] == "text-classification"
    assert block["base_model"] == "ProsusAI/finbert"
    assert {"finance", "onnx"} <= {*block["tags"]}
    assert block["metrics"] == ["f1", "accuracy"]
    scores = {}
    for result in block["model-index"][0]["results"]:
        for metric in result["metrics"]:
            scores[result["dataset"]["split"], metric["name"]] = metric["value"]
    assert scores["test", "macro-F1 (95% interval 0.711 to 0.889)"] == 0.82
    on_validation = read_info(folder)["metrics"]["val_macro_f1"]
    assert scores["validation", "macro-F1"] == round(on_validation, 4)


TOLD = [NOTE, "0.711 to 0.889", "3.25", "A processor", "CC BY-NC-SA 3.0", "| phrasebank | 200 |",
        "6.2% of test in train", "| test | 77 |", "abc123", "after 16 word pieces", "was not timed"]


def test_the_card_says_what_the_run_says(run, exported):
    card = card_of(exported["student_vanilla_kd"])
    for told in TOLD:
        assert told in card, told
    for untold in ("FiQA", str(run.parent), "synthetic", "does not beat", "{{", "None",
                   "trainings of it"):
        assert untold not in card, untold
    int8 = card_of(exported["student_ptq"])
    assert "does not beat a linear model" in int8
    assert "In int8" in int8


def test_the_hub_understands_the_card(exported):
    from huggingface_hub import ModelCard
    card = ModelCard.load(exported["teacher"]/"README.md")
    assert card.data.eval_results[0].metric_type == "f1"
    assert str(card) == card_of(exported["teacher"])


def test_the_cards_five_lines_run_without_pytorch(exported):
    folder = exported["student_ptq"]
    code = code_of(card_of(folder))
    assert len(code.splitlines()) == 5
    heavy = "[name for name in ('torch', 'transformers') if name in sys.modules]"
    said = run_in(folder.parent, f"{code}\nimport sys\nprint({heavy}, len(answers))")
    assert said[0].split()[0] in LABELS
    assert said[1] == "[] 2"


def test_synthetic_data_are_called_synthetic(copied, tmp_path):
    file = copied/"data/data_card.json"
    synthetic = dict(synthetic=True, source="bundled corpus", licences={})
    write_json(file, json.loads(file.read_text()) | synthetic)
    folder = export(copied, "student_vanilla_kd", "onnx", tmp_path/"made")
    assert "synthetic" in card_of(folder)
    assert front_matter(folder)["license"] == "mit"


def test_numbers_of_another_checkpoint_are_left_out(copied, tmp_path):
    "The student was trained again, and the benchmark was not: no test score, no times."
    file = copied/"stages/08_benchmark.json"
    record = json.loads(file.read_text())
    record["inputs"]["checkpoints/student_vanilla_kd/model.safetensors"] = digest("another")
    write_json(file, record)
    card = card_of(export(copied, "student_vanilla_kd", "onnx", tmp_path/"a"))
    assert "0.711" not in card
    assert "3.25" not in card
    assert "no score on the test split" in card
    shutil.rmtree(copied/"results")
    shutil.rmtree(copied/"stages")
    card = card_of(export(copied, "student_vanilla_kd", "onnx", tmp_path/"b"))
    assert "no score on the test split" in card
    assert "not recorded" in card


# For transformers


def test_transformers_opens_the_float_student(run, tmp_path):
    folder = export(run, "student_vanilla_kd", "torch", tmp_path/"student")
    texts = [*sentences(60).text]
    answers = pipeline("text-classification", model=str(folder), top_k=None)(texts)
    scores = [{each["label"]: each["score"] for each in answer} for answer in answers]
    found = np.array([[row[label] for label in LABELS] for row in scores])
    source = run/"checkpoints/student_vanilla_kd"
    expected = softmax(open_variant(source, 16).logits(texts, 32))
    assert np.abs(found - expected).max() < 1e-5
    assert len({*found.argmax(1)}) == 3
    assert contents(folder).keys() - contents(source).keys() == {Path("README.md")}
    assert "positive" in "\n".join(run_in(tmp_path, code_of(card_of(folder))))
    assert front_matter(folder)["library_name"] == "transformers"


# What is refused


ALL = "choose one of baseline_tfidf, pruned_teacher_30pct, student_ptq, student_vanilla_kd, teacher"


@pytest.mark.parametrize("variant, to, words", [
    ("baseline_tfidf", "onnx", "a linear model, not an encoder"),
    ("baseline_tfidf", "torch", "a linear model, not an encoder"),
    ("student_ptq", "torch", "--to onnx"),
    ("pruned_teacher_30pct", "torch", "--to onnx"),
    ("student", "onnx", ALL),
    ("student_wide_int8", "onnx", "the model is now called compact_wide"),
    ("../run", "onnx", "no variant"),
    ("teacher", "tflite", "onnx, torch or web"),
])
def test_what_cannot_be_exported(variant, to, words, run, tmp_path):
    with pytest.raises(RunError, match=re.escape(words)):
        export(run, variant, to, tmp_path/"sub/out")
    assert not [*tmp_path.iterdir()]


def test_a_folder_that_is_not_a_run(tmp_path):
    for folder in (tmp_path, tmp_path/"nothing"):
        with pytest.raises(RunError, match="not a run directory"):
            export(folder, "teacher")


@pytest.mark.parametrize("variant", ["student_wide_int8", "compact_wide", "teacher"])
def test_a_run_of_an_earlier_version(copied, variant, tmp_path):
    "Its compact models have other names; the message says so, and what to do."
    (copied/"checkpoints/teacher").rename(copied/"checkpoints/student_wide_int8")
    with pytest.raises(RunError, match="made by an earlier version") as refused:
        export(copied, variant, "onnx", tmp_path/"out")
    assert "compact_wide" in str(refused.value)
    assert not (tmp_path/"out").exists()


@pytest.mark.parametrize("how", ["another file", "file", "added file", "history", "checkpoint"])
def test_what_is_not_ours_is_not_touched(how, run, exported, tmp_path):
    place = tmp_path/"out"
    if how in ("added file", "history"):
        shutil.copytree(exported["teacher"], place)
    if how == "file":
        place.write_text("mine")
    elif how == "checkpoint":
        shutil.copytree(run/"checkpoints/teacher", place)
    else:
        inner = place/(".git" if how == "history" else "notes")
        inner.mkdir(parents=True)
        (inner/"mine.txt").write_text("mine")
    before = contents(tmp_path)
    with pytest.raises(RunError, match="--out"):
        export(run, "student_vanilla_kd", "onnx", place)
    assert contents(tmp_path) == before


def test_an_earlier_export_is_replaced_and_the_card_may_be_edited(run, exported, tmp_path):
    place = shutil.copytree(exported["teacher"], tmp_path/"out")
    (place/"README.md").write_text("my own words")
    assert Classifier(place)("sales rose")["label"] == "positive"
    export(run, "student_vanilla_kd", "onnx", place)
    assert "checkpoints/student_vanilla_kd/model.safetensors" in read_info(place)["inputs"]
    assert [*tmp_path.iterdir()] == [place]
    (tmp_path/"empty").mkdir()
    folder = export(run, "student_vanilla_kd", "onnx", tmp_path/"empty")
    assert Classifier(folder)("sales fell")["label"] == "negative"


def test_the_default_place_is_in_the_run(copied):
    "A stage may have written an ONNX checkpoint itself: it is copied as it is."
    made = export(copied, "student_vanilla_kd")
    assert made == copied/"exports/student_vanilla_kd-onnx"
    assert export(copied, "teacher", "torch") == copied/"exports/teacher-torch"
    shutil.copytree(made, copied/"checkpoints/compact_narrow",
                    ignore=shutil.ignore_patterns("README.md"))
    again = export(copied, "compact_narrow")
    assert (again/"model.onnx").read_bytes() == (made/"model.onnx").read_bytes()
    assert "no score on the test split" in card_of(again)
    with pytest.raises(RunError, match="--to onnx"):
        export(copied, "compact_narrow", "torch")


def test_a_compact_models_card_has_the_numbers_of_10_world(copied):
    made = export(copied, "student_vanilla_kd")
    model = shutil.copytree(made, copied/"checkpoints/compact_narrow",
                            ignore=shutil.ignore_patterns("README.md"))
    table = pd.read_csv(copied/"results/benchmark_results.csv")
    rows = table[table.variant.isin(["baseline_tfidf", "teacher", "student_vanilla_kd"])]
    rows = rows.replace({"variant": {"student_vanilla_kd": "compact_narrow"}})
    rows = rows.assign(runtime="ONNX Runtime, int8", test_macro_f1=0.777)
    write_csv(copied/"results/compact_results.csv", rows.drop(columns="beats_floor"))
    inputs = {f"checkpoints/compact_narrow/{name}": value
              for name, value in read_info(model)["files"].items()}
    write_json(copied/"stages/10_world.json", dict(inputs=inputs, summary={}))
    card = card_of(export(copied, "compact_narrow"))
    assert "0.777 (0.711 to 0.889)" in card
    assert "was not timed" not in card
    assert card.count("| `teacher` |") == 1


SETS = [
    ["own_test", "test", 77, .80, .71, .89, .9], ["finentity", "foreign test", 50, .61, .5, .7, .8],
    ["phrasebank", "foreign test", 60, .51, .4, .6, .7]]
COLUMNS = ["set", "role", "sentences", "macro_f1", "macro_f1_low", "macro_f1_high", "direction"]


def write_record(run, stage, variant):
    "A stage has read a checkpoint as it is."
    files = read_info(run/"checkpoints"/variant)["files"]
    inputs = {f"checkpoints/{variant}/{name}": value for name, value in files.items()}
    write_json(run/f"stages/{stage}.json", dict(inputs=inputs, summary={}))


def measured_elsewhere(run, variant):
    "10_world has judged a checkpoint."
    write_csv(run/"results/world.csv", pd.DataFrame(SETS, columns=COLUMNS).assign(model=variant))
    write_record(run, "10_world", variant)


def test_the_card_has_both_numbers(copied, tmp_path):
    measured_elsewhere(copied, "teacher")
    folder = export(copied, "teacher", "onnx", tmp_path/"made")
    card = card_of(folder)
    assert "0.800 on its own kind of text, 0.560 on text from elsewhere" in card
    assert "| foreign test | 50 | 0.610 (0.500 to 0.700) | 0.80 |" in card
    assert "FinBERT was itself fine-tuned on PhraseBank. A score" in card
    assert "fincompress classify --model made " in card
    results = front_matter(folder)["model-index"][0]["results"]
    assert {"finentity", "phrasebank"} <= {result["dataset"]["name"] for result in results}
    assert "elsewhere" in card_of(export(copied, "student_ptq", "onnx", tmp_path/"other"))


THRESHOLDS = {0.025: 1., 0.05: 0.9851858273461719, 0.1: 0.8125} # share of wrong answers → value


def test_thresholds_are_rounded_up_as_the_command_does(copied, tmp_path):
    "A value below the exact one would allow more wrong answers."
    table = pd.DataFrame(dict(target=[*THRESHOLDS], threshold=[*THRESHOLDS.values()]))
    write_csv(copied/"results/doubt.csv", table.assign(model="teacher"))
    write_record(copied, "11_trust", "teacher")
    card = card_of(export(copied, "teacher", "onnx", tmp_path/"made"))
    for target, value in THRESHOLDS.items():
        assert f"| {100*target:g}% | {rounded_up(value)} |" in card
    assert "those of the validation split,\non which they were fitted" in card


def test_numbers_from_elsewhere_of_another_checkpoint_are_left_out(copied, tmp_path):
    measured_elsewhere(copied, "teacher")
    record = json.loads((copied/"stages/10_world.json").read_text())
    record["inputs"] = dict.fromkeys(record["inputs"], digest("another"))
    write_json(copied/"stages/10_world.json", record)
    card = card_of(export(copied, "teacher", "onnx", tmp_path/"made"))
    assert "not measured on text from elsewhere" in card
    assert "0.560" not in card


def test_licences_of_labels_backbone_and_unlabelled_text(copied, tmp_path):
    "MIT labels and MiniLM make Apache-2.0; text without a stated licence is named."
    file = copied/"data/data_card.json"
    licences = dict(licences=dict(phrasebank="MIT"), transfer_licences=dict(wires="none stated"))
    write_json(file, json.loads(file.read_text()) | licences)
    write_json(copied/"stages/01_teacher.json", dict(
        parameters=dict(backbone="minilm"), summary={}))
    folder = export(copied, "teacher", "onnx", tmp_path/"made")
    assert front_matter(folder)["license"] == "apache-2.0"
    assert "licence of its weights: Apache-2.0" in card_of(folder)
    assert "**Use: Apache-2.0**" in card_of(folder)
    assert "wires" not in card_of(folder)  # no transfer set taught the teacher
    info = copied/"checkpoints/teacher/checkpoint_info.json"
    distilled = dict(inputs={"data/transfer.csv": digest("sentences")})
    write_json(info, json.loads(info.read_text()) | distilled)
    card = card_of(export(copied, "teacher", "onnx", tmp_path/"other"))
    said = "headlines without a stated licence\n(wires).\nNo text of them is in the package."
    assert said in card


@pytest.mark.parametrize("variant, limit, value, words", [
    ("student_vanilla_kd", "LARGEST_DIFFERENCE", 0, "logit"),
    ("student_ptq", "LEAST_AGREEMENT", 1.01, "same label"),
])
def test_without_parity_nothing_is_written(
        variant, limit, value, words, run, exported, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_checkpoint, limit, value)
    place = shutil.copytree(exported["teacher"], tmp_path/"out")
    before = contents(tmp_path)
    with pytest.raises(RunError, match=words):
        export(run, variant, "onnx", place)
    assert contents(tmp_path) == before


def test_a_damaged_checkpoint(copied, tmp_path):
    weights = copied/"checkpoints/teacher/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    for to in ("onnx", "torch"):
        with pytest.raises(RunError, match="model.safetensors is damaged"):
            export(copied, "teacher", to, tmp_path/"out")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_another_validation_split(copied, tmp_path):
    file = copied/"checkpoints/student_ptq/checkpoint_info.json"
    another = {"inputs": {"data/val.csv": digest("another")}}
    write_json(file, json.loads(file.read_text()) | another)
    with pytest.raises(RunError, match="is not the one"):
        export(copied, "student_ptq", "onnx", tmp_path/"out")
    (copied/"data/val.csv").unlink()
    with pytest.raises(RunError, match="run 00_data again"):
        export(copied, "student_vanilla_kd", "onnx", tmp_path/"out")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_what_was_there_comes_back_if_the_new_folder_cannot_be_moved(tmp_path):
    (tmp_path/"mine").mkdir()
    (tmp_path/"mine"/"model.onnx").write_text("first")
    with pytest.raises(OSError):
        swap_folders(tmp_path/"never written", tmp_path/"mine", tmp_path/"former")
    assert (tmp_path/"mine"/"model.onnx").read_text() == "first"


def test_a_place_that_cannot_be_written(run, tmp_path):
    (tmp_path/"file").write_text("")
    with pytest.raises(RunError, match="cannot write in"):
        export(run, "student_vanilla_kd", "onnx", tmp_path/"file"/"out")


def test_the_command(run, tmp_path):
    def command(*words):
        program = "from fincompress.app.cli import main; main()"
        return subprocess.run([sys.executable, "-c", program, *words], capture_output=True,
                              text=True)

    made = command("export", run, "student_ptq", "--to", "onnx", "--out", tmp_path/"out")
    assert made.returncode == 0, made.stderr
    assert made.stdout == f"{tmp_path/'out'}\n"
    assert Classifier(tmp_path/"out")("sales rose")["label"] == "positive"
    refused = command("export", run, "students", "--out", tmp_path/"other")
    assert refused.returncode == 1
    assert "choose one of" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (tmp_path/"other").exists()
