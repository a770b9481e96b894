"""Adapting a model to own labels: what is written, what is refused, and the loop that asks."""
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pytest
import torch
from conftest import contents, without
from onnx import TensorProto
from tokenizers import Tokenizer

from fincompress import Classifier
from fincompress.app.use.adapt import Labelled, adapt, answers_of, read_labelled
from fincompress.app.use.classifier import softmax
from fincompress.lib.measure.adapt import fit_last_layer
from fincompress.lib.onnx.graph import Graph
from fincompress.lib.onnx.runtime import OnnxModel, open_session, run_padded
from fincompress.lib.onnx.word_model import save_word_model, word_tokenizer
from fincompress.lib.run.checkpoint import LABELS, save_checkpoint
from fincompress.lib.run.files import RunError, read_json

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS = {"rose": (0, 0, 2), "fell": (2, 0, 0), "flat": (0, 2, 0)}
MINE = {"rose": "positive", "fell": "negative", "flat": "negative", "news": "neutral"}
EXTRA = 'pip install "fincompress[adapt]"'


def rows(count, labels=MINE):
    "Labelled sentences, the words of `labels` taking turns."
    words = [*labels]
    return [(f"{words[i % len(words)]} number {i}", labels[words[i % len(words)]])
            for i in range(count)]


def write(name, rows):
    pd.DataFrame(rows, columns=["text", "label"]).to_csv(name, index=False)
    return name


@pytest.fixture
def place(tmp_path, monkeypatch):
    "A working directory with a model and labelled sentences of it."
    monkeypatch.chdir(tmp_path)
    save_word_model("words", WEIGHTS)
    write("my.csv", rows(120))
    return tmp_path


# What is written


def save_random_encoder(
    folder,
    bits, # of a word embedding: 32, 8 or 4
    scale=1 # of the random matrices: the larger, the more its states differ between words
):
    "An encoder with random weights that knows the words, as a file."
    from fincompress.lib.examples import toy_tokenizer
    from fincompress.lib.model.encoder_config import EncoderConfig
    from fincompress.lib.onnx.checkpoint import save_onnx
    from fincompress.ptq import quantize
    from fincompress.student import SentimentEncoder
    words = ["rose", "fell", "flat", "news", "number", *map(str, range(10))]
    config = EncoderConfig.even(5 + len(words), layers=1, hidden_size=32, heads=2,
                                intermediate_size=64)
    torch.manual_seed(0)
    model = SentimentEncoder(config).eval()
    for part in model.modules():
        if isinstance(part, torch.nn.Linear):
            part.weight.data *= scale
    if bits != 32:
        model = quantize(model)
    return save_onnx(model, folder, toy_tokenizer(words), words, [1]*len(words), 16,
                     word_bits=min(bits, 8), technique="toy", hyperparameters={}, inputs={})


@pytest.fixture
def encoder(place, request):
    "A random encoder beside the labelled sentences."
    return save_random_encoder(place/"encoder", request.param)


@pytest.fixture
def finetune(place, monkeypatch):
    "The module with faster training, from 200 labels on; and such a table."
    from fincompress.app.use import finetune
    faster = finetune.FitSettings(epochs=15, learning_rate=3e-3, batch_size=16, seed=0)
    for function in (finetune.fine_tuned, finetune.fine_tuned_answers):
        monkeypatch.setattr(function, "__defaults__", (faster,))
    monkeypatch.setattr("fincompress.app.use.adapt.LEAST_FINE_TUNED", 200)
    write("many.csv", rows(240))
    return finetune


@pytest.mark.parametrize("encoder", [32, 8, 4], indirect=True) # bits of a word embedding
def test_many_labels_fine_tune_all_layers(encoder, finetune):
    "A model with random weights learns words, and stays as small as it was."
    outcome = adapt("many.csv", "own", "encoder")
    assert outcome.method == "fine_tuned" and outcome.scores.after["macro_f1"] > 0.9
    classify = Classifier("./own")
    assert [classify(word)["label"] for word in MINE] == [*MINE.values()]
    sizes = [Path(name, "model.onnx").stat().st_size for name in ("encoder", "own")]
    assert sizes[1] <= 1.05*sizes[0]


@pytest.mark.parametrize("encoder", [4], indirect=True)
def test_the_judged_model_is_that_of_the_file(encoder, finetune, monkeypatch):
    "Each answer on an unseen sentence is that of a fold's file."
    labelled = read_labelled("many.csv")
    ids, _ = OnnxModel(encoder, threads=1).tokenise(labelled.texts)
    rounded_again = finetune.rounded_again
    sessions = []

    def noted(*given):
        model, tensors = rounded_again(*given)
        content = finetune.onnx_bytes(model, tensors, "a fold")
        sessions.append(open_session(content, threads=1))
        return model, tensors

    monkeypatch.setattr(finetune, "rounded_again", noted)
    judged = finetune.fine_tuned_answers(finetune.restored_encoder(encoder), ids, labelled.labels,
                                         read_json(encoder/"config.json"))
    answers = np.array([run_padded(session, ids) for session in sessions])
    differences = abs(answers - judged).max(2).min(0)
    assert len(sessions) == 5 and np.median(differences) < 1e-3*judged.std()


@pytest.mark.parametrize("encoder", [8], indirect=True)
def test_fine_tuning_is_announced_and_can_be_left_out(encoder, finetune, fincompress):
    words = ("adapt", "many.csv", "--model", "encoder", "--out", "own")
    said = "fine-tuning all layers on 240 sentences takes minutes; --no-fine-tune leaves it out"
    without = fincompress(*words, "--no-fine-tune")
    assert without.code == 0 and said not in without.err and "fine-tuned" not in without.out
    result = fincompress(*words)
    assert result.code == 0 and said in result.err
    assert "the change: all layers, fine-tuned" in result.out


@pytest.mark.parametrize("bits", [8, 4]) # of a word embedding
def test_a_new_last_layer_of_an_int8_encoder(place, monkeypatch, bits):
    "The file gives the fitted layer's answers to what the old classifier read."
    monkeypatch.setattr("fincompress.lib.measure.adapt.best_method", lambda *_: "last_layer")
    save_random_encoder(place/"encoder", bits, scale=8)
    words = {"rose": "positive", "fell": "negative", "news": "neutral"}
    outcome = adapt(write("many.csv", rows(300, words)), "own", "encoder", fine_tune=False)
    assert outcome.method == "last_layer"
    texts = outcome.labelled.texts
    _, states = answers_of(OnnxModel(place/"encoder", threads=1), texts)
    expected = fit_last_layer(states, outcome.labelled.labels)(states)
    found, _ = answers_of(OnnxModel(place/"own", threads=1), texts)
    assert (found.argmax(1) == expected.argmax(1)).all() and {*found.argmax(1)} == {0, 1, 2}
    assert np.allclose(found, expected, atol=1e-3)


def save_feature_model(folder):
    "A model that knows more than it says: its third feature has no part in the logits."
    table = np.array([(0, 0, 0), (3, 0, 0), (-3, 0, 0), (0, 0, 3)], np.float32)
    g = Graph()
    looked_up = g.add("Gather", g.constant("table", table), "input_ids")
    mask = g.add("Cast", "attention_mask", to=TensorProto.FLOAT)
    real = g.add("Mul", looked_up, g.add("Unsqueeze", mask, g.integer(2)))
    g.add("ReduceSum", real, g.integer(1), keepdims=0)
    weight = np.array([(-1, 0, 1), (0, 0, 0), (0, 0, 0)], np.float32)
    g.add("MatMul", g.name_last("features"), g.constant("classifier.weight", weight))
    tokens = (TensorProto.INT64, ["batch", "length"])
    outputs = {name: (TensorProto.FLOAT, ["batch", 3]) for name in ("logits", "features")}
    graph = g.model(dict(input_ids=tokens, attention_mask=tokens), outputs)
    files = {"model.onnx": graph.SerializeToString(),
             "tokenizer.json": word_tokenizer(["rose", "fell", "flat"])}
    save_checkpoint(folder, None, dict(model_type="fincompress-onnx", max_length=16),
                    technique="a toy", num_parameters=9, metrics={}, hyperparameters={},
                    inputs={}, files=files)


def plain_logits(folder, text):
    "Logits by ONNX Runtime and the tokeniser alone."
    tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
    session = onnxruntime.InferenceSession(f"{folder}/model.onnx")
    ids = np.array([tokenizer.encode(text).ids], np.int64)
    inputs = dict(input_ids=ids, attention_mask=np.ones_like(ids))
    return session.run(["logits"], inputs)[0]


def scores_of(classify, text):
    return [*classify(text)["scores"].values()]


SOURCES = {"offsets": "words", "logistic": "words", "last_layer": "features"}
COUNTS = {"offsets": 60, "logistic": 120, "last_layer": 300}
SAID = {method: MINE for method in SOURCES} | {"offsets": MINE | {"flat": "neutral"}}


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    "A folder with a model by each method, and the models that they were."
    folder = tmp_path_factory.mktemp("adapted")
    save_word_model(folder/"words", WEIGHTS)
    save_feature_model(folder/"features")
    for method, source in SOURCES.items():
        file = write(folder/"some.csv", rows(COUNTS[method], SAID[method]))
        outcome = adapt(file, folder/method, folder/source)
        assert outcome.method == method
    return folder


@pytest.mark.parametrize("method", SOURCES)
def test_every_runtime_gives_the_new_answers(adapted, method):
    "The classifier, and plain ONNX Runtime."
    classify = Classifier(adapted/method)
    original = Classifier(adapted/SOURCES[method])
    for text in (*MINE, "rose fell", "flat and flat and rose"):
        alike = softmax(plain_logits(adapted/method, text))[0]
        assert np.allclose(scores_of(classify, text), alike, atol=1e-6)
        assert scores_of(classify, text) != scores_of(original, text)
    assert {word: classify(word)["label"] for word in MINE} == SAID[method]


def test_a_new_last_layer_replaces_the_old_one(adapted):
    graph = onnx.load(adapted/"last_layer/model.onnx").graph
    assert [each.name for each in graph.output] == ["logits", "features"]
    constants = [each.name for each in graph.initializer]
    assert "own_labels.weight" in constants and "classifier.weight" not in constants
    assert Classifier(adapted/"last_layer").model.has_features
    assert not Classifier(adapted/"logistic").model.has_features


def test_what_an_adapted_folder_says_of_itself(place):
    for name in ("LICENSE", "NOTICE"):
        Path("words", name).write_text(f"the {name}")
    adapt("my.csv", "mine", "words")
    assert read_json("mine/config.json")["adapted"] == dict(model="words", method="logistic",
                                                            labels=120)
    assert Path("mine/NOTICE").read_text() == "the NOTICE"
    assert Path("mine/LICENSE").read_text() == "the LICENSE"
    assert {"my.csv", "words/checkpoint_info.json"} == {
        *read_json("mine/checkpoint_info.json")["inputs"]}
    card = Path("mine/README.md").read_text()
    assert "`words`, adapted to 120 labelled sentences" in card
    assert "| macro-F1 | 0.500 | 1.000 |" in card
    assert "| F1 negative |" in card and "accuracy" not in card
    assert str(place) not in card


def test_the_same_labels_give_the_same_model(place):
    adapt("my.csv", "one", "words")
    adapt("my.csv", "two", "words")
    assert contents("one")["model.onnx"] == contents("two")["model.onnx"]


def test_which_rows_count(place):
    "Blanks and the case of a label do not matter; a sentence counts once, or not at all."
    given = [("Sales rose", "positive"), (" Sales  rose ", "POSITIVE"), ("NA", "neutral"),
             ("flat", "neutral"), ("flat", "negative"), ("no label", ""), ("a, b", " negative ")]
    found = read_labelled(write("some.csv", given))
    assert found == Labelled(["Sales rose", "NA", "a, b"], [2, 1, 0], 1, 2)


def test_a_change_that_lowers_macro_f1_is_none(place):
    "Where the model knows little and most labels are neutral, calling all so is no gain."
    given = [("rose", "positive")]*3 + [("rose", "neutral")]*4 + [("fell", "negative")]*2
    given += [("fell", "neutral")]*4 + [("flat", "neutral")]*7
    numbered = [(f"{word} {i} {j}", label) for i in range(4) for j, (word, label)
                in enumerate(given)]
    outcome = adapt(write("some.csv", numbered), "mine", "words")
    assert outcome.method == "none" and not Path("mine").exists()


# The command


def test_the_command_says_what_is_gained(fincompress, place):
    result = fincompress("adapt", "my.csv", "--model", "words", "--out", "mine")
    assert result.code == 0 and result.err == ""
    lines = result.out.splitlines()
    assert lines[0] == ("labelled sentences: 120 (left out: 0 copies, "
                        "0 rows with contradictory labels)")
    assert lines[-3].startswith("the change: ") and lines[-1] == "mine"
    assert max(map(len, lines)) <= 80
    assert "│ macro    │ 0.500  │ 1.000 │" in result.out
    answered = fincompress("classify", "--csv", "--model", "./mine", "flat")
    assert answered.out.splitlines()[1].startswith("flat,negative")


def test_an_adapted_folder_may_be_written_again(fincompress, place):
    words = ("adapt", "my.csv", "--model", "words", "--out", "below/mine")
    assert fincompress(*words).code == 0
    write("my.csv", rows(100))
    assert fincompress(*words).code == 0
    assert read_json("below/mine/config.json")["adapted"]["labels"] == 100
    assert [path.name for path in Path("below").iterdir()] == ["mine"]


def test_labels_in_the_folder_of_the_model_are_not_deleted(fincompress, place):
    "Labels that a person made cost more than any other file."
    assert fincompress("adapt", "my.csv", "--model", "words", "--out", "mine").code == 0
    write("mine/labels.csv", rows(100))
    before = contents(place)
    again = fincompress("adapt", "mine/labels.csv", "--model", "words", "--out", "mine")
    assert again.code == 1
    assert "mine also holds labels.csv, which adapting would delete" in again.err
    assert contents(place) == before


def test_nothing_gained_is_nothing_written(fincompress, place):
    "A model that is right in four of five sentences, and says so."
    given = [(f"{word} number {i}", LABELS[(true + (i % 5 == 0)*(1 + i % 2)) % 3])
             for i in range(30) for true, word in enumerate(("fell", "flat", "rose"))]
    write("agreed.csv", given)
    before = contents(place)
    result = fincompress("adapt", "agreed.csv", "--model", "words", "--out", "mine")
    assert result.code == 0
    assert "nothing is gained, so words stays as it is, and nothing was written" in result.out
    assert contents(place) == before and not Path("mine").exists()


OTHER_LABELS = [(text, LABELS[(LABELS.index(label) + 1) % 3]) for text, label in rows(120)]
FILES = { # name → (rows or bytes, words of the message)
    "one_class.csv": ([(f"rose {i}", "positive") for i in range(60)],
                      ["one_class.csv", "labelled negative (0 of at least 5)"]),
    "two_classes.csv": ([row for row in rows(120) if row[1] != "neutral"],
                        ["labelled neutral (0 of at least 5)", "label more of these"]),
    "ten_rows.csv": (rows(10), ["ten_rows.csv", "(10 of at least 50)", "label more"]),
    "copies.csv": (rows(20)*6, ["(20 of at least 50)", "100 copies"]),
    "contradictory.csv": (rows(120) + OTHER_LABELS,
                          ["(0 of at least 50)", "240 rows with contradictory labels"]),
    "french.csv": ([("Les ventes ont progressé", "positif")],
                   ["french.csv, row 2", "'positif'", "negative, neutral, positive"]),
    "numbers.csv": ([("Sales rose", "2")], ["row 2", "the label is '2'"]),
    "no_text.csv": ([("Sales rose", "positive"), (" ", "neutral")], ["row 3", "text is empty"]),
    "headless.csv": (b"sentence,sentiment\nSales rose,positive\n",
                     ["no column label", "only sentence, sentiment", "name the columns"]),
    "semicolons.csv": (b"text;label\nSales rose;positive\n", ["no column", "text;label"]),
    "unquoted.csv": (b"text,label\nSales rose, again,positive\n", ["row 2", "double quotes"]),
    "ragged.csv": (b"text,label\na,positive\nSales rose, again,positive\n",
                   ["cannot be read as CSV", "double quotes"]),
    "names_alone.csv": (b"text,label\n", ["(0 of at least 50)"]),
    "empty.csv": (b"", ["cannot be read as CSV"]),
    "latin.csv": ("text,label\nprogressé,positive\n".encode("latin-1"),
                  ["cannot be read as CSV in UTF-8"]),
    "image.csv": (b"\x89PNG\r\n\x1a\n\0\xff", ["cannot be read as CSV in UTF-8"]),
}


@pytest.mark.parametrize("name", FILES)
def test_the_command_refuses_a_bad_table(fincompress, place, name):
    given, expected = FILES[name]
    if isinstance(given, bytes):
        Path(name).write_bytes(given)
    else:
        write(name, given)
    before = contents(place)
    result = fincompress("adapt", name, "--model", "words", "--out", "mine")
    assert result.code == 1 and result.out == ""
    assert result.err.startswith("error: ") and result.err.count("\n") == 1
    assert all(words in result.err for words in expected), result.err
    assert contents(place) == before and not Path("mine").exists()


WORDS = { # case → (words of the command, words of the message)
    "a missing file": (["none.csv", "--model", "words", "--out", "mine"],
                       "there is no file none.csv"),
    "a folder of tables": (["words", "--model", "words", "--out", "mine"],
                           "there is no file words"),
    "no such model": (["my.csv", "--model", "nothing", "--out", "mine"],
                      "there is no folder 'nothing'"),
    "an adapted model": (["my.csv", "--model", "adapted", "--out", "mine"],
                         "adapted was adapted already, to 120 labels: adapt words to all"),
    "an occupied folder": (["my.csv", "--model", "words", "--out", "occupied"],
                           "occupied holds something that is not an adapted model"),
    "another model": (["my.csv", "--model", "words", "--out", "words"],
                      "words holds something that is not an adapted model"),
    "a damaged folder": (["my.csv", "--model", "words", "--out", "damaged"],
                         "damaged holds something that is not an adapted model"),
    "a file": (["my.csv", "--model", "words", "--out", "my.csv"], "my.csv is a file"),
    "below a file": (["my.csv", "--model", "words", "--out", "my.csv/mine"],
                     "cannot write in my.csv ("),
    "the working directory": (["my.csv", "--model", "words", "--out", "."],
                              ". is the working directory, or holds it"),
    "a folder above it": (["my.csv", "--model", "words", "--out", ".."],
                          ".. is the working directory, or holds it"),
}


@pytest.mark.parametrize("case", WORDS)
def test_the_command_refuses(fincompress, place, case):
    words, said = WORDS[case]
    adapt("my.csv", "adapted", "words")
    for name in ("occupied/letters.txt", "damaged/config.json"):
        Path(name).parent.mkdir()
        Path(name).write_text("{")
    before = contents(place)
    result = fincompress("adapt", *words)
    assert result.code == 1 and result.out == ""
    assert result.err.startswith("error: ") and said in result.err
    assert contents(place) == before and not Path("mine").exists()


def test_the_command_needs_a_folder(fincompress, place):
    result = fincompress("adapt", "my.csv", "--model", "words")
    assert result.code == 2 and "--out" in result.err


def test_the_python_function_refuses_as_well(place):
    with pytest.raises(RunError, match="of at least 50"):
        adapt(write("few.csv", rows(10)), "mine", "words")
    with pytest.raises(RunError, match="there is no file"):
        adapt(Path("none.csv"), Path("mine"), Path("words"))
    assert not Path("mine").exists()


# The extra


@pytest.mark.parametrize("name", ["sklearn", "onnx", "pandas", "jinja2"])
def test_without_the_extra_the_message_names_it(fincompress, place, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    before = contents(place)
    result = fincompress("adapt", "my.csv", "--model", "words", "--out", "mine", "--label")
    assert result.code == 1 and result.out == ""
    assert f"adapting needs {name}: {EXTRA}" in result.err
    assert contents(place) == before


STUDY_ALONE = ("torch", "transformers", "safetensors", "huggingface_hub", "papermill", "nbconvert",
               "nbformat", "nbclient", "datasets", "matplotlib", "seaborn", "filelock", "gradio",
               "pyarrow", "model2vec", "latex2mathml", "tqdm")


def test_the_extra_is_enough(place):
    "In a process that finds nothing else of the study."
    code = without(*STUDY_ALONE) + "from fincompress.app.cli import main\nmain()"
    command = [sys.executable, "-c", code, "adapt", "my.csv", "--model", "words", "--out", "mine"]
    done = subprocess.run(command, capture_output=True, text=True,
                          env={"PYTHONPATH": str(ROOT), "PATH": ""})
    assert done.returncode == 0, done.stderr
    assert Classifier("mine")("flat")["label"] == "negative"


# Labelling


@pytest.fixture
def asked(monkeypatch):
    "Sentences that are asked for, answered by their word; after `most` of them comes `after`."
    texts = []

    def answers(most=1000, after="q"):
        def ask(number, text):
            if len(texts) == most:
                if isinstance(after, str):
                    return after
                raise after
            texts.append(text)
            return {"positive": "p", "negative": "n", "neutral": "0"}[MINE[text.split()[0]]]
        monkeypatch.setattr("fincompress.app.cli.ask_key", ask)
        return texts

    return answers


LABEL = ("adapt", "plain.csv", "--label", "--model", "words", "--out", "mine")


@pytest.fixture
def unlabelled(place):
    "Sentences without labels, with a column of their own."
    table = pd.DataFrame(dict(id=range(80), text=[text for text, _ in rows(80)]))
    table.to_csv("plain.csv", index=False)
    return place


def labels():
    "The labels in the file."
    table = pd.read_csv("plain.csv", dtype=str, keep_default_na=False)
    return table, [label for label in table.label if label]


def test_labels_are_asked_for_until_there_are_enough(fincompress, unlabelled, asked):
    texts = asked()
    result = fincompress(*LABEL)
    assert result.code == 0 and "labelled sentences: 50 " in result.out
    table, given = labels()
    assert len(given) == len(texts) == 50
    assert table.id.tolist() == [*map(str, range(80))]
    known = table[table.label != ""]
    assert known.label.tolist() == [MINE[text.split()[0]] for text in known.text]
    assert "nothing is gained" in result.out  # two offsets cannot part "flat" from "news"


@pytest.mark.parametrize("after, code", [("q", 0), (KeyboardInterrupt(), 130)])
def test_what_was_labelled_is_kept(fincompress, unlabelled, asked, after, code):
    texts = asked(most=3, after=after)
    result = fincompress(*LABEL)
    assert result.code == code and not Path("mine").exists()
    assert "the same command goes on" in result.out + result.err
    assert len(labels()[1]) == 3
    first = [*texts]
    texts.clear()
    asked()
    assert fincompress(*LABEL).code == 0
    assert not {*first} & {*texts} and len(labels()[1]) == 50


def test_keys_come_from_the_terminal(fincompress, unlabelled):
    "A wrong key is asked for again, a skipped sentence stays open, and the input may end."
    result = fincompress(*LABEL, given="x\np\ns\nn\n")
    assert result.code == 0
    assert "n negative, 0 neutral, p positive, s skip, q stop" in result.out
    assert "labelled sentences in plain.csv: 2\n" in result.out
    assert sorted(labels()[1]) == ["negative", "positive"]


def test_a_label_that_is_rare_is_waited_for(fincompress, place, asked):
    "Fifty labels without a neutral one are not enough, and the loop goes on."
    given = [(f"{word} number {i}", "") for i in range(30) for word in ("rose", "fell")]
    write("plain.csv", given + [(f"news number {i}", "") for i in range(5)])
    asked()
    result = fincompress(*LABEL)
    assert result.code == 0 and "labelled sentences:" in result.out
    assert labels()[1].count("neutral") == 5 and len(labels()[1]) >= 50


def test_no_label_is_asked_for_in_vain(fincompress, unlabelled, asked):
    "What would be refused afterwards is refused before."
    texts = asked()
    adapt("my.csv", "adapted", "words")
    occupied = fincompress(*LABEL[:-1], "words")
    twice = fincompress("adapt", "plain.csv", "--label", "--model", "adapted", "--out", "mine")
    write("french.csv", [("rose", "positif"), ("fell", "")])
    french = fincompress("adapt", "french.csv", *LABEL[2:])
    assert [each.code for each in (occupied, twice, french)] == [1, 1, 1]
    assert "holds something" in occupied.err and "adapted already" in twice.err
    assert "rename yours" in french.err
    assert texts == []


def test_a_sentence_is_asked_for_once(fincompress, place, asked):
    write("plain.csv", [("rose", ""), ("rose", ""), ("fell", "negative"), ("fell", "")])
    texts = asked()
    assert fincompress(*LABEL).code == 0
    assert texts == ["rose"]


def test_a_users_file_keeps_its_blanks(fincompress, place, asked):
    "They are left out where a text is shown, and where texts and labels are compared."
    write("plain.csv", [("  rose today ", ""), ("fell ", " Negative "), (" fell", "")])
    texts = asked()
    assert fincompress(*LABEL).code == 0
    assert texts == ["rose today"]
    table, _ = labels()
    assert table.text.tolist() == ["  rose today ", "fell ", " fell"]
    assert table.label.tolist() == ["positive", " Negative ", ""]
