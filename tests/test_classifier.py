"""The classifier that people deploy: what it answers, what it refuses, and what it needs."""
import csv
import io
import os
import shutil
import subprocess
import sys
import threading
import venv
from pathlib import Path

import pytest

from fincompress import Classifier
from fincompress.lib.onnx import runtime
from fincompress.lib.onnx.runtime import padded
from fincompress.lib.onnx.word_model import save_word_model
from fincompress.lib.run.files import RunError

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS = {"rose": (0, 0, 2), "fell": (2, 0, 0), "sales": (0, 0.5, 0), "?": (0, 0, 1)}
LABELS = ["negative", "neutral", "positive"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("model")/"words"
    save_word_model(place, WEIGHTS, max_length=16)
    return place


@pytest.fixture(scope="module")
def classify(folder):
    return Classifier(folder)


def test_answers(classify):
    answer = classify("Sales rose")
    assert answer["label"] == "positive"
    assert answer["truncated"] is False
    assert [*answer["scores"]] == LABELS
    assert sum(answer["scores"].values()) == pytest.approx(1)
    assert max(answer["scores"], key=answer["scores"].get) == "positive"
    assert classify(["Sales rose", "sales fell"]) == [answer, classify("sales fell")]
    assert classify([]) == []
    assert classify(iter(["Sales rose"])) == [answer]


NOT_TEXTS = [
    (None, TypeError, "not NoneType"),
    (4.1, TypeError, "not float"),
    (b"Sales rose", TypeError, "not bytes"),
    ({"a": "b"}, TypeError, "not dict"),
    ({"a"}, TypeError, "not set"),
    (["Sales rose", None], TypeError, "text 1 is of type NoneType"),
    (["a", "b", float("nan")], TypeError, "text 2 is of type float"),
    ([b"Sales rose"], TypeError, "text 0 is of type bytes"),
    ("", ValueError, "text 0 is empty"),
    (["a", " \t\n"], ValueError, "text 1 is empty"),
]


@pytest.mark.parametrize("given, error, words", NOT_TEXTS)
def test_what_is_not_a_text_is_named(classify, given, error, words):
    with pytest.raises(error, match=words):
        classify(given)


def test_long_texts(classify):
    "A megabyte, with and without spaces: an answer, and the truth about what was cut."
    megabyte = classify("rose " + "fell "*200_000)
    assert megabyte["truncated"] is True
    assert megabyte["label"] == "negative"
    assert classify("x"*2**20)["truncated"] is True  # one word, whose end was not read
    assert classify("rose " + "sales "*14)["truncated"] is False
    assert classify("sales "*17)["truncated"] is True
    spaces = " "*50_000  # not text
    assert classify("rose" + spaces) == classify(spaces + "rose") == classify("rose")


def test_strange_texts(classify):
    assert classify("[UNK] rose")["truncated"] is False  # the name of a special piece is text
    assert classify("\ud800")["label"] == "positive"  # half a character reads as a question mark
    strange = ["\0", "日本", "🚀", "e\u0301"]
    assert classify(strange) == [classify(text) for text in strange]


def some_texts(count, longest):
    words = ["rose", "fell", "sales"]*6
    return [" ".join(words[i % 3:i % 3 + 1 + i % longest]) for i in range(count)]


def test_many_texts_keep_their_order(classify):
    texts = some_texts(1000, 13)
    expected = {text: classify(text) for text in {*texts}}
    assert classify(texts) == [expected[text] for text in texts]


def test_threads_may_share_it(classify):
    texts = ["Sales rose", "sales fell", "Sales"]*20
    expected = classify(texts)
    answers = []
    workers = [threading.Thread(target=lambda: answers.append(classify(texts))) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert answers == [expected]*8


def test_folders_that_hold_no_model(tmp_path):
    with pytest.raises(RunError, match="there is no folder"):
        Classifier(tmp_path/"nothing")
    with pytest.raises(RunError, match="holds no checkpoint"):
        Classifier(tmp_path)
    float_only = tmp_path/"float"
    save_word_model(float_only, WEIGHTS)
    (float_only/"checkpoint_info.json").write_text('{"files": {}}')
    with pytest.raises(RunError, match="not as ONNX"):
        Classifier(float_only)


def test_a_name_of_an_earlier_version(tmp_path):
    "A folder of an earlier version, missing or there: the message gives the new name."
    with pytest.raises(RunError, match="the model is now called compact_narrow"):
        Classifier(tmp_path/"exports/student_narrow_int8-onnx/model")
    save_word_model(tmp_path/"student_wide_int8", WEIGHTS)
    with pytest.raises(RunError, match="student_wide_int8 is now compact_wide"):
        Classifier(tmp_path/"student_wide_int8")


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json", "config.json"])
def test_a_tampered_file_is_named(tmp_path, name):
    save_word_model(tmp_path/"words", WEIGHTS)
    path = tmp_path/"words"/name
    content = bytearray(path.read_bytes())
    content[len(content)//2] ^= 1
    path.write_bytes(content)
    with pytest.raises(RunError, match=f"{name} is damaged"):
        Classifier(tmp_path/"words")
    path.unlink()
    with pytest.raises(RunError, match=f"{name} is missing"):
        Classifier(tmp_path/"words")


# A least confidence


def test_a_model_in_doubt_says_so(folder, classify):
    careful = Classifier(folder, min_confidence=0.7)
    texts = ["Sales rose", "sales", "fell"]
    expected = classify(texts)
    answers = careful(texts)
    assert [answer["label"] for answer in answers] == ["positive", "uncertain", "negative"]
    assert [answer["scores"] for answer in answers] == [each["scores"] for each in expected]
    assert Classifier(folder, min_confidence=0)(texts) == expected
    never = Classifier(folder, min_confidence=1)(texts)
    assert {answer["label"] for answer in never} == {"uncertain"}


@pytest.mark.parametrize("wrong", [-0.1, 1.01, float("nan"), float("inf"), "0.5", None, True])
def test_a_confidence_that_is_no_probability(folder, wrong):
    with pytest.raises(ValueError, match="min_confidence must be a number from 0 to 1, not"):
        Classifier(folder, min_confidence=wrong)


@pytest.mark.parametrize("wrong", ["-0.1", "1.01", "nan", "half"])
def test_the_command_refuses_a_confidence_that_is_none(fincompress, folder, wrong):
    result = fincompress("classify", "--model", folder, "--min-confidence", wrong, "Sales rose")
    assert result.code == 2 and result.out == ""
    assert "Invalid value for '--min-confidence'" in result.err


def test_the_command_is_in_doubt(fincompress, folder):
    words = ("classify", "--csv", "--model", folder, "--min-confidence", "0.7")
    result = fincompress(*words, "Sales rose", "sales")
    labels = [row["label"] for row in csv.DictReader(io.StringIO(result.out))]
    assert labels == ["positive", "uncertain"]


# The base requirements alone


PROGRAM = """
import sys
from fincompress import Classifier
label = Classifier(sys.argv[1])("Sales rose")["label"]
extras = ("torch", "transformers", "pandas", "sklearn", "jinja2", "huggingface_hub")
print(label, *[name for name in extras if name in sys.modules])
try:
    import torch
except ImportError:
    print("no torch")
"""


@pytest.fixture(scope="module")
def bare_environment(tmp_path_factory):
    "An environment of its own with the package and its base requirements."
    place = tmp_path_factory.mktemp("bare")
    source = place/"source"
    shutil.copytree(ROOT/"fincompress", source/"fincompress",
                    ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("settings.ini", "setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT/name, source)
    venv.create(place/"env", with_pip=True)
    python = place/"env/bin/python"
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, source], check=True, timeout=600)
    return place


def test_the_base_package_is_enough(bare_environment, folder):
    "Without PyTorch and the other extras, Python and the command classify a sentence."
    programs = bare_environment/"env/bin"

    def output(*words):
        done = subprocess.run([*words], cwd=bare_environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    said = output(programs/"python", "-c", PROGRAM, folder)
    assert said.splitlines() == ["positive", "no torch"]
    assert "run" in output(programs/"fincompress", "--help")
    assert "positive" in output(programs/"fincompress", "classify", "--model", folder,
                                "Sales rose")


# Packaged models


@pytest.fixture
def packaged(tmp_path, monkeypatch):
    "One toy model in the place of the packaged ones, and an empty working directory."
    models = tmp_path/"models"
    save_word_model(models/"compact_narrow", WEIGHTS)
    monkeypatch.setattr("fincompress.lib.onnx.packaged.models_folder", lambda: models)
    (tmp_path/"here").mkdir()
    monkeypatch.chdir(tmp_path/"here")
    return models


def test_the_packaged_model_is_the_default(packaged):
    answer = Classifier(packaged/"compact_narrow")("Sales rose")
    assert Classifier()("Sales rose") == answer
    assert Classifier("compact_narrow", threads=2)("Sales rose") == answer
    with pytest.raises(RunError, match="no packaged models.*make package"):
        Classifier("compact_tiny")
    with pytest.raises(RunError, match=r"give a packaged model \(compact_wide, compact_narrow"):
        Classifier("compact_narow")


def test_a_folder_never_shadows_a_packaged_model(packaged):
    "A folder of the same name is opened where it is written as a path."
    opposite = {word: row[::-1] for word, row in WEIGHTS.items()}
    for name in ("compact_narrow", "compact_tiny"):
        save_word_model(Path(name), opposite)
    assert Classifier("compact_narrow")("Sales rose")["label"] == "positive"
    assert Classifier("./compact_narrow")("Sales rose")["label"] == "negative"
    assert Classifier(Path("compact_narrow"))("Sales rose")["label"] == "negative"
    with pytest.raises(RunError, match="write ./compact_tiny"):
        Classifier("compact_tiny")


# The command


def command(*words, given=b""):
    program = Path(sys.executable).with_name("fincompress")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([program, "classify", *map(str, words)], input=given,
                          capture_output=True, env=environment)


def test_the_command_answers_words(folder):
    words = ("Sales rose", "[b]fell[/b] " + "sales "*20)
    shown = command("--model", folder, *words).stdout.decode()
    assert "positive" in shown
    assert "[b]fell[/b]" in shown
    assert "yes" in shown


def test_the_command_answers_lines(folder, classify):
    texts = some_texts(1200, 4)  # more than are answered at once
    lines = [f"{i} {text}," for i, text in enumerate(texts)]
    piped = "\n".join([*lines, "", "  ", "日本"]).encode()
    result = command("--model", folder, "--csv", given=piped)
    rows = [*csv.DictReader(io.StringIO(result.stdout.decode()))]
    lines.append("日本")
    assert [row["text"] for row in rows] == lines
    assert [row["label"] for row in rows] == [answer["label"] for answer in classify(lines)]
    assert [*rows[0]] == ["text", "label", *LABELS, "truncated"]
    assert sum(float(rows[0][label]) for label in LABELS) == pytest.approx(1, abs=2e-4)
    assert rows[0]["truncated"] == ""


def test_the_command_without_a_line(folder):
    header = "text,label,negative,neutral,positive,truncated"
    assert command("--model", folder, "--csv").stdout.decode().splitlines() == [header]


@pytest.mark.parametrize("words, given, said", [
    (["Sales rose", " "], b"", "a sentence is empty"),
    ([], b"\xff\xfe", "UTF-8"),
])
def test_the_command_refuses_what_is_not_a_sentence(folder, words, given, said):
    result = command("--model", folder, *words, given=given)
    errors = result.stderr.decode()
    assert result.returncode == 1
    assert said in errors
    assert "Traceback" not in errors
    assert result.stdout == b""


def test_the_command_refuses_a_model_as_its_first_word(folder, tmp_path):
    "The form of earlier versions, whose first word would be read as a sentence."
    cases = {str(folder): str(folder), "compact_tiny": "compact_tiny",
             "compact_cascade": "compact_cascade", "student_narrow_int8": "compact_narrow"}
    for first, model in cases.items():
        result = command(first, "Sales rose")
        said = " ".join(result.stderr.decode().split())
        assert result.returncode == 1 and result.stdout == b""
        assert f"use --model (fincompress classify --model {model} TEXT)" in said
    shown = command("--model", folder, "Sales rose", folder, "x"*5000).stdout.decode()
    assert "positive" in shown  # a later word is a sentence, and so is a long one


def test_the_command_does_not_wait_for_typing(monkeypatch):
    from fincompress.app.cli import sentences
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    with pytest.raises(RunError, match="or pipe lines in"):
        list(sentences([], sys.stdin))
    assert list(sentences(["Sales rose"], sys.stdin)) == ["Sales rose"]


def test_the_command_names_a_folder_without_a_model(tmp_path):
    places = {tmp_path/"nowhere": "there is no folder", tmp_path: "holds no checkpoint",
              tmp_path/"student_wide_int8": "the model is now called compact_wide"}
    for place, said in places.items():
        result = command("--model", place, "Sales rose")
        assert result.returncode == 1
        assert said in " ".join(result.stderr.decode().split())
        assert "Traceback" not in result.stderr.decode()


@pytest.mark.parametrize("wrong", [
    dict(threads=0), dict(threads=-1), dict(threads="2"),
    dict(batch_size=0), dict(batch_size=-1), dict(batch_size=1.5), dict(batch_size=None),
])
def test_numbers_that_make_no_sense(folder, wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"{name} must be a whole number from 1"):
        Classifier(folder, **wrong)


def test_a_name_that_is_neither_folder_nor_on_the_hub(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(RunError, match="cannot be reached"):
        Classifier("nobody/nothing")
    with pytest.raises(RunError, match="there is no folder ''"):
        Classifier("")


LARGE = dict(hidden_size=768, head_size=64, heads=[12]*12, intermediate_sizes=[3072]*12)
LONG = "rose sales sales sales"


def test_both_sessions_are_of_the_model_that_was_opened(tmp_path):
    "A folder that is replaced while a classifier is in use does not change its answers."
    save_word_model(tmp_path/"words", WEIGHTS, encoder=LARGE)
    classify = Classifier(tmp_path/"words", threads=2)
    save_word_model(tmp_path/"words", {word: row[::-1] for word, row in WEIGHTS.items()})
    assert classify("rose")["label"] == classify(LONG)["label"] == "positive"
    assert classify.model.open(2).run(["logits"], padded([[1]]))[0].argmax() == 2
    assert [answer["label"] for answer in classify(["rose"]*50)] == ["positive"]*50


@pytest.mark.parametrize("encoder, threads, text, sessions", [
    (None, 2, LONG, [1]),  # of no shape: no work
    (LARGE, 2, "rose", [1]),  # short
    (LARGE, 2, [LONG]*50, [1]),  # many: a batch for each thread
    (LARGE, 1, LONG, [1]),
    (LARGE, 2, LONG, [1, 2]),
])
def test_a_session_with_threads_is_opened_for_long_sentences_alone(
        tmp_path, monkeypatch, encoder, threads, text, sessions):
    save_word_model(tmp_path/"words", WEIGHTS, **(dict(encoder=encoder) if encoder else {}))
    opened = []

    def noted(graph, threads, name, open_session=runtime.open_session):
        opened.append(threads)
        return open_session(graph, threads, name)

    monkeypatch.setattr(runtime, "open_session", noted)
    classify = Classifier(tmp_path/"words", threads=threads)
    assert classify(text) == classify(text)
    assert opened == sessions


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_the_number_of_threads_changes_no_bit(precision):
    "An encoder so wide that its products are shared out."
    import numpy as np
    import torch

    from fincompress.lib.model.encoder_config import EncoderConfig
    from fincompress.lib.onnx.checkpoint import encoder_arrays, onnx_bytes
    from fincompress.ptq import quantize
    from fincompress.student import SentimentEncoder
    torch.manual_seed(0)
    shape = EncoderConfig.even(500, layers=2, hidden_size=256, heads=4, intermediate_size=1024,
                               max_positions=64)
    model = SentimentEncoder(shape).eval()
    tensors, found = encoder_arrays(quantize(model) if precision == "int8" else model, 64)
    assert found == precision
    graph = onnx_bytes(model, tensors, "example")
    draw = np.random.default_rng(0)
    sentences = [draw.integers(0, 500, length).tolist() for length in range(1, 65, 3)]
    alone, *shared = (runtime.open_session(graph, threads) for threads in (1, 2, 3, 4))
    for sentence in sentences:
        expected = runtime.run_padded(alone, [sentence])
        assert np.isfinite(expected).all()
        for session in shared:
            assert np.array_equal(runtime.run_padded(session, [sentence]), expected)


def test_int8_is_exact_on_processors_without_vnni(monkeypatch):
    "The slower way that is chosen there opens and gives the same answers."
    import numpy as np
    from onnx import TensorProto

    from fincompress.lib.onnx.graph import Graph, linear
    g = Graph()
    tensors = {
        "a.weight": np.full((3, 64), 127, np.int8),
        "a.scale": np.ones(3, np.float32),
        "a.bias": np.zeros(3, np.float32),
    }
    linear(g, tensors, g.add("Identity", "x"), "a")
    inputs = {"x": (TensorProto.FLOAT, ["n", 64])}
    outputs = {"y": (TensorProto.FLOAT, ["n", 3])}
    graph = g.model(inputs, outputs).SerializeToString()
    for vnni in {runtime.exact_int8(), False}:
        monkeypatch.setattr(runtime, "exact_int8", lambda vnni=vnni: vnni)
        session = runtime.open_session(graph, 1, "example")
        (found,) = session.run(None, {"x": np.full((2, 64), 255, np.float32)})
        assert np.allclose(found, 255*127*64)
