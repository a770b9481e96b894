"""The deployable folder: the same answers as the run's model, a card that tells the truth, and nothing half-written."""
import json, random, re, shutil, subprocess, sys
from pathlib import Path

import numpy as np, pandas as pd, pytest, torch, yaml
from transformers import BertTokenizerFast, pipeline

from fincompress import Classifier
from fincompress.app.deploy.export import export
from fincompress.benchmark import load_variant
from fincompress.lib.onnx import checkpoint as onnx_checkpoint
from fincompress.lib.train.batches import Sentences, tokenise
from fincompress.lib.run.checkpoint import read_info
from fincompress.lib.measure.metrics import probabilities
from fincompress.lib.run.files import RunError, digest, files_below, write_csv, write_json
from fincompress.lib.text.tfidf import TfidfClassifier
from fincompress.lib.train.training import cross_entropy, fit
from fincompress.pruning import remove_units
from fincompress.ptq import quantize, save_int8
from fincompress.student import EncoderConfig, SentimentEncoder, save_encoder

ENCODERS = ["teacher", "student_vanilla_kd", "student_ptq", "pruned_teacher_30pct"]
NOTE = "FinBERT was itself fine-tuned on PhraseBank."
WORDS, DECIDING = ["sales", "profit", "orders", "in", "the", "north", "quarter", "slightly"], ["fell", "unchanged", "rose"]


def sentences(count: int) -> pd.DataFrame:
    "Some words, and among them the one that decides."
    draw, rows = random.Random(0), []
    for i in range(count):
        others = draw.choices(WORDS, k=draw.randint(1, 9))
        rows.append(dict(text=" ".join(draw.sample([*others, DECIDING[i % 3]], len(others) + 1)), label=i % 3, source="phrasebank"))
    return pd.DataFrame(rows)


def trained(tokenizer, train, val, layers: int):
    torch.manual_seed(0)
    model = SentimentEncoder(EncoderConfig.even(len(tokenizer), layers=layers, hidden_size=32, heads=2, intermediate_size=64, max_positions=32))
    for part in model.modules():
        if isinstance(part, torch.nn.Linear): torch.nn.init.normal_(part.weight, std=0.15)
    fit(model, cross_entropy, *(Sentences(tokenise(part.text, tokenizer, 16), part.label) for part in (train, val)), epochs=6, learning_rate=2e-3, batch_size=20, seed=0)
    return model.cpu().eval()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "A run directory with five small checkpoints, and a benchmark whose numbers are made up, of these very checkpoints."
    folder, table = tmp_path_factory.mktemp("home")/"run", sentences(320)
    train, val = table[:200], table[200:].reset_index(drop=True)
    tokenizer = BertTokenizerFast(vocab={piece: i for i, piece in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *DECIDING])})
    write_csv(folder/"data/train.csv", train)
    write_csv(folder/"data/val.csv", val)
    write_json(folder/"data/data_card.json", dict(source=str(folder.parent/"original_data"), synthetic=False, splits=dict(train=200, val=120, test=77),
        licences=dict(phrasebank="CC BY-NC-SA 3.0, Malo et al. 2014", fiqa="FiQA 2018"), leakage=[dict(split="test", other="train", share=0.0625)]))
    write_json(folder/"run.json", dict(seed=42, hardware=dict(cpu="A processor"), source=dict(commit="abc123", changed=False)))
    write_json(folder/"stages/01_teacher.json", dict(parameters=dict(backbone="ProsusAI/finbert"), summary=dict(notes=[NOTE])))
    record = dict(metrics=dict(val_macro_f1=0.9, val_accuracy=0.9, val_f1_negative=0.9, val_f1_neutral=0.9, val_f1_positive=0.9), hyperparameters=dict(max_length=16), inputs={}, tokenizer=tokenizer)
    teacher, student = trained(tokenizer, train, val, 2), trained(tokenizer, train, val, 1)
    for name, save, model in (("teacher", save_encoder, teacher), ("student_vanilla_kd", save_encoder, student), ("student_ptq", save_int8, quantize(student)),
                              ("pruned_teacher_30pct", save_encoder, remove_units(teacher, {"heads": {1: [0]}}))): save(model, folder/"checkpoints"/name, technique=f"made as {name}", **record)
    TfidfClassifier(1, 2).fit(train.text, train.label, strength=10., seed=0).save(folder/"checkpoints/baseline_tfidf", technique="linear", **{**record, "tokenizer": None})
    write_benchmark(folder)
    return folder


def write_benchmark(folder):
    names = ["baseline_tfidf", *ENCODERS]
    made = lambda i: dict(size_bytes=2e6 + i, test_macro_f1=0.8 + i/100, test_macro_f1_low=0.7111, test_macro_f1_high=0.8889, test_accuracy=0.8, f1_negative=0.8, f1_neutral=0.8, f1_positive=0.8,
                          latency_ms_p50=1.25 + i, latency_ms_p95=2.5, latency_padded_ms_p50=4.5, throughput_per_s=123, threads=2, runtime="PyTorch, float32", seed=42, beats_floor=i != 3)
    write_csv(folder/"results/benchmark_results.csv", pd.DataFrame([dict(variant=name, **made(i)) for i, name in enumerate(names)]))
    inputs = {f"checkpoints/{name}/{file}": value for name in names for file, value in read_info(folder/"checkpoints"/name)["files"].items()}
    write_json(folder/"stages/08_benchmark.json", dict(inputs=inputs, summary={}))


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    place = tmp_path_factory.mktemp("exports")
    return {variant: export(run, variant, "onnx", place/variant) for variant in ENCODERS}


@pytest.fixture
def copied(run, tmp_path):
    shutil.copytree(run, tmp_path/"run")
    return tmp_path/"run"


def contents(folder): return {path.relative_to(folder): path.read_bytes() for path in files_below(folder)}


def front_matter(folder): return yaml.safe_load((folder/"README.md").read_text().split("---\n")[1])


def code_of(card: str) -> str: return re.search(r"```python\n(.*?)```", card, re.S)[1]


@pytest.mark.parametrize("variant", ENCODERS)
def test_it_answers_as_the_runs_model_does(variant, run, exported):
    texts = [*sentences(400).text, "profit "*40 + "rose", "ROSE", "an unknown word fell"]
    answers, expected = Classifier(exported[variant])(texts), probabilities(load_variant(run/"checkpoints"/variant, 16).logits(texts, 32))
    found = np.array([[*answer["scores"].values()] for answer in answers])
    same = np.mean(found.argmax(1) == expected.argmax(1))
    if variant == "student_ptq": assert same >= 0.99 and np.abs(found - expected).max() < 0.15
    else: assert same == 1 and np.abs(found - expected).max() < 1e-4
    assert [answer["label"] for answer in answers[:3]] == ["negative", "neutral", "positive"] and answers[400]["truncated"] and not answers[401]["truncated"]
    assert len({*found.argmax(1)}) == 3 # the model does tell sentences apart


@pytest.mark.parametrize("variant", ENCODERS)
def test_what_lies_in_the_folder(variant, run, exported):
    folder, source = exported[variant], read_info(run/"checkpoints"/variant)
    info, config = read_info(folder), json.loads((folder/"config.json").read_text())
    assert {path.name for path in folder.iterdir()} == {"model.onnx", "tokenizer.json", "config.json", "checkpoint_info.json", "README.md"}
    assert (config["model_type"], config["max_length"], config["precision"]) == ("fincompress-onnx", 16, "int8" if variant == "student_ptq" else "float32")
    assert config["id2label"] == {"0": "negative", "1": "neutral", "2": "positive"} and config["encoder"]["heads"] == ([2, 1] if variant.startswith("pruned") else [2]*(1 + (variant == "teacher")))
    beyond = (32 - 16)*32 # embeddings of positions that no sentence reaches
    assert info["num_parameters"] == source["num_parameters"] - beyond and info["size_bytes"] == sum((folder/name).stat().st_size for name in info["files"]) and info["metrics"]["label_agreement"] >= 0.99
    assert info["inputs"] == {f"checkpoints/{variant}/{name}": value for name, value in source["files"].items()}


def test_int8_is_smaller_embeddings_included(exported):
    import onnx
    size = {variant: read_info(folder)["size_bytes"] for variant, folder in exported.items()}
    assert size["student_ptq"] < 0.6*size["student_vanilla_kd"] and size["pruned_teacher_30pct"] < size["teacher"]
    tables = {tensor.name: tensor.data_type for tensor in onnx.load(exported["student_ptq"]/"model.onnx").graph.initializer}
    assert tables["embeddings.words.weight"] == tables["embeddings.positions.weight"] == onnx.TensorProto.INT8


def test_the_card_says_what_the_run_says(run, exported):
    card, block = (exported["student_vanilla_kd"]/"README.md").read_text(), front_matter(exported["student_vanilla_kd"])
    assert (block["license"], block["language"], block["pipeline_tag"], block["base_model"]) == ("cc-by-nc-sa-3.0", "en", "text-classification", "ProsusAI/finbert")
    assert {"finance", "onnx"} <= {*block["tags"]} and block["metrics"] == ["f1", "accuracy"]
    scores = {(r["dataset"]["split"], m["name"]): m["value"] for r in block["model-index"][0]["results"] for m in r["metrics"]}
    assert scores["test", "macro-F1 (95% interval 0.711 to 0.889)"] == 0.82 and scores["validation", "macro-F1"] == round(read_info(exported["student_vanilla_kd"])["metrics"]["val_macro_f1"], 4)
    for told in (NOTE, "0.711 to 0.889", "3.25", "A processor", "CC BY-NC-SA 3.0", "| phrasebank | 200 |", "6.2% of test in train", "| test | 77 |", "abc123", "after 16 word pieces", "was not timed"): assert told in card, told
    assert "FiQA" not in card and str(run.parent) not in card and "synthetic" not in card and "does not beat" not in card
    assert "does not beat a linear model" in (exported["student_ptq"]/"README.md").read_text() and "In int8" in (exported["student_ptq"]/"README.md").read_text()


def test_the_hub_understands_the_card(exported):
    from huggingface_hub import ModelCard
    assert ModelCard.load(exported["teacher"]/"README.md").data.eval_results[0].metric_type == "f1"


def test_the_cards_five_lines_run_without_pytorch(exported):
    code = code_of((exported["student_ptq"]/"README.md").read_text())
    assert len(code.splitlines()) == 5
    said = subprocess.run([sys.executable, "-c", code + "\nimport sys; print('torch' in sys.modules, 'transformers' in sys.modules, len(answers))"],
                          cwd=exported["student_ptq"].parent, capture_output=True, text=True, check=True).stdout.splitlines()
    assert said[0].split()[0] in ("negative", "neutral", "positive") and said[1] == "False False 2"


def test_synthetic_data_are_called_synthetic(copied, tmp_path):
    card = json.loads((copied/"data/data_card.json").read_text())
    write_json(copied/"data/data_card.json", {**card, "synthetic": True, "source": "bundled corpus", "licences": {}})
    folder = export(copied, "student_vanilla_kd", "onnx", tmp_path/"made")
    assert "synthetic" in (folder/"README.md").read_text() and front_matter(folder)["license"] == "mit"


def test_numbers_of_another_checkpoint_are_left_out(copied, tmp_path):
    "The student was trained again, and the benchmark was not: no test score, no times."
    record = json.loads((copied/"stages/08_benchmark.json").read_text())
    record["inputs"]["checkpoints/student_vanilla_kd/model.safetensors"] = digest("another")
    write_json(copied/"stages/08_benchmark.json", record)
    card = (export(copied, "student_vanilla_kd", "onnx", tmp_path/"a")/"README.md").read_text()
    assert "0.711" not in card and "3.25" not in card and "no score on the test split" in card
    shutil.rmtree(copied/"results"); shutil.rmtree(copied/"stages")
    card = (export(copied, "student_vanilla_kd", "onnx", tmp_path/"b")/"README.md").read_text()
    assert "no score on the test split" in card and "not recorded" in card


def test_transformers_opens_the_float_student(run, tmp_path):
    folder = export(run, "student_vanilla_kd", "torch", tmp_path/"student")
    texts = [*sentences(60).text]
    answers = pipeline("text-classification", model=str(folder), top_k=None)(texts)
    expected = probabilities(load_variant(run/"checkpoints/student_vanilla_kd", 16).logits(texts, 32))
    found = np.array([[next(a["score"] for a in answer if a["label"] == name) for name in ("negative", "neutral", "positive")] for answer in answers])
    assert np.abs(found - expected).max() < 1e-5 and len({*found.argmax(1)}) == 3
    assert contents(folder).keys() - contents(run/"checkpoints/student_vanilla_kd").keys() == {Path("README.md")}
    said = subprocess.run([sys.executable, "-c", code_of((folder/"README.md").read_text())], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert "positive" in said and front_matter(folder)["library_name"] == "transformers"


@pytest.mark.parametrize("variant, to, words", [
    ("baseline_tfidf", "onnx", "linear model and no encoder"), ("baseline_tfidf", "torch", "linear model and no encoder"), ("student_ptq", "torch", "--to onnx"),
    ("pruned_teacher_30pct", "torch", "--to onnx"), ("student", "onnx", "choose one of baseline_tfidf, pruned_teacher_30pct, student_ptq, student_vanilla_kd, teacher"), ("../run", "onnx", "no variant"),
    ("teacher", "tflite", "onnx or torch")])
def test_what_cannot_be_exported(variant, to, words, run, tmp_path):
    with pytest.raises(RunError, match=re.escape(words)): export(run, variant, to, tmp_path/"sub/out")
    assert not [*tmp_path.iterdir()]


def test_a_folder_that_is_no_run(tmp_path):
    for folder in (tmp_path, tmp_path/"nothing"):
        with pytest.raises(RunError, match="no run directory"): export(folder, "teacher")


@pytest.mark.parametrize("how", ["foreign file", "file", "added file", "history", "checkpoint"])
def test_what_is_somebody_elses_is_not_touched(how, run, exported, tmp_path):
    place = tmp_path/"out"
    if how == "file": place.write_text("mine")
    elif how == "checkpoint": shutil.copytree(run/"checkpoints/teacher", place)
    else:
        if how != "foreign file": shutil.copytree(exported["teacher"], place)
        (place/(".git" if how == "history" else "notes")).mkdir(parents=True)
        (place/(".git" if how == "history" else "notes")/"mine.txt").write_text("mine")
    before = contents(tmp_path)
    with pytest.raises(RunError, match="--out"): export(run, "student_vanilla_kd", "onnx", place)
    assert contents(tmp_path) == before


def test_an_earlier_export_is_replaced_and_the_card_may_be_edited(run, exported, tmp_path):
    place = shutil.copytree(exported["teacher"], tmp_path/"out")
    (place/"README.md").write_text("my own words")
    assert Classifier(place)("sales rose")["label"] == "positive"
    export(run, "student_vanilla_kd", "onnx", place)
    assert read_info(place)["inputs"].keys() >= {"checkpoints/student_vanilla_kd/model.safetensors"} and [*tmp_path.iterdir()] == [place]
    (tmp_path/"empty").mkdir()
    assert Classifier(export(run, "student_vanilla_kd", "onnx", tmp_path/"empty"))("sales fell")["label"] == "negative"


def test_by_default_it_lies_in_the_run(copied):
    made = export(copied, "student_vanilla_kd")
    assert made == copied/"exports/student_vanilla_kd-onnx" and export(copied, "teacher", "torch") == copied/"exports/teacher-torch"
    shutil.copytree(made, copied/"checkpoints/student_deployed", ignore=shutil.ignore_patterns("README.md")) # a stage may have written an ONNX checkpoint itself
    again = export(copied, "student_deployed")
    assert (again/"model.onnx").read_bytes() == (made/"model.onnx").read_bytes() and "no score on the test split" in (again/"README.md").read_text()
    with pytest.raises(RunError, match="--to onnx"): export(copied, "student_deployed", "torch")


@pytest.mark.parametrize("variant, limit, value, words", [("student_vanilla_kd", "LARGEST_DIFFERENCE", 0, "in a logit"), ("student_ptq", "LEAST_AGREEMENT", 1.01, "get the same label")])
def test_without_parity_nothing_is_written(variant, limit, value, words, run, exported, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_checkpoint, limit, value)
    place = shutil.copytree(exported["teacher"], tmp_path/"out")
    before = contents(tmp_path)
    with pytest.raises(RunError, match=words): export(run, variant, "onnx", place)
    assert contents(tmp_path) == before


def test_a_damaged_checkpoint_and_another_validation_split(copied, tmp_path):
    weights = copied/"checkpoints/teacher/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    for to in ("onnx", "torch"):
        with pytest.raises(RunError, match="model.safetensors is damaged"): export(copied, "teacher", to, tmp_path/"out")
    info = json.loads((copied/"checkpoints/student_ptq/checkpoint_info.json").read_text())
    write_json(copied/"checkpoints/student_ptq/checkpoint_info.json", {**info, "inputs": {"data/val.csv": digest("another")}})
    with pytest.raises(RunError, match="is not the one"): export(copied, "student_ptq", "onnx", tmp_path/"out")
    (copied/"data/val.csv").unlink()
    with pytest.raises(RunError, match="run 00_data again"): export(copied, "student_vanilla_kd", "onnx", tmp_path/"out")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_place_that_cannot_be_written(run, tmp_path):
    (tmp_path/"file").write_text("")
    with pytest.raises(RunError, match="cannot write in"): export(run, "student_vanilla_kd", "onnx", tmp_path/"file"/"out")


def test_the_command(run, tmp_path):
    def command(*words): return subprocess.run([sys.executable, "-c", "from fincompress.app.cli import main; main()", *words], capture_output=True, text=True)
    made = command("export", run, "student_ptq", "--to", "onnx", "--out", tmp_path/"out")
    assert made.returncode == 0 and made.stdout == f"{tmp_path/'out'}\n" and Classifier(tmp_path/"out")("sales rose")["label"] == "positive", made.stderr
    refused = command("export", run, "students", "--out", tmp_path/"other")
    assert refused.returncode == 1 and "choose one of" in refused.stderr and "Traceback" not in refused.stderr and not (tmp_path/"other").exists()
