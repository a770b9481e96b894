"""The classifier that people deploy: what it answers, what it refuses, and that the base package is all it needs."""
import csv, io, os, shutil, subprocess, sys, threading, venv
from pathlib import Path

import pytest

from fincompress import Classifier
from fincompress.lib.onnx.runtime import save_word_model
from fincompress.lib.run.files import RunError

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS = {"rose": (0, 0, 2), "fell": (2, 0, 0), "sales": (0, 0.5, 0), "?": (0, 0, 1)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("model")/"words"
    save_word_model(place, WEIGHTS, max_length=16)
    return place


@pytest.fixture(scope="module")
def classify(folder): return Classifier(folder)


def test_answers(classify):
    answer = classify("Sales rose")
    assert answer["label"] == "positive" and answer["truncated"] is False and [*answer["scores"]] == ["negative", "neutral", "positive"]
    assert sum(answer["scores"].values()) == pytest.approx(1) and max(answer["scores"], key=answer["scores"].get) == "positive"
    assert classify(["Sales rose", "sales fell"]) == [answer, classify("sales fell")]
    assert classify([]) == [] and classify(iter(["Sales rose"])) == [answer]


@pytest.mark.parametrize("given, error, words", [
    (None, TypeError, "not NoneType"), (4.1, TypeError, "not float"), (b"Sales rose", TypeError, "not bytes"), ({"a": "b"}, TypeError, "not dict"), ({"a"}, TypeError, "not set"),
    (["Sales rose", None], TypeError, "text 1 is of type NoneType"), (["a", "b", float("nan")], TypeError, "text 2 is of type float"),
    ([b"Sales rose"], TypeError, "text 0 is of type bytes"), ("", ValueError, "text 0 is empty"), (["a", " \t\n"], ValueError, "text 1 is empty")])
def test_what_is_no_text_is_named(classify, given, error, words):
    with pytest.raises(error, match=words): classify(given)


def test_long_and_strange_texts(classify):
    "A megabyte, with and without spaces, half characters, and signs of every kind: an answer, and the truth about what was cut."
    megabyte = "rose " + "fell "*200_000
    assert classify(megabyte)["truncated"] is True and classify(megabyte)["label"] == "negative"
    assert classify("x"*2**20)["truncated"] is True # one word, of which the end was not read
    assert classify("rose " + "sales "*14)["truncated"] is False and classify("sales "*17)["truncated"] is True
    assert classify("rose" + " "*50_000) == classify(" "*50_000 + "rose") == classify("rose") # space is no text
    assert classify("[UNK] rose")["truncated"] is False # what looks like a special piece is text
    assert classify("\ud800")["label"] == "positive" # half a character reads as a question mark
    assert classify(["\0", "日本", "🚀", "e\u0301"]) == [classify(text) for text in ("\0", "日本", "🚀", "e\u0301")]


def test_many_texts_keep_their_order(classify):
    texts = [" ".join((["rose", "fell", "sales"]*6)[i % 3:i % 3 + 1 + i % 13]) for i in range(1000)]
    expected = {text: classify(text) for text in {*texts}}
    assert classify(texts) == [expected[text] for text in texts]


def test_threads_may_share_it(classify):
    texts, answers = ["Sales rose", "sales fell", "Sales"]*20, {}
    expected = classify(texts)
    workers = [threading.Thread(target=lambda i=i: answers.update({i: classify(texts)})) for i in range(8)]
    for worker in workers: worker.start()
    for worker in workers: worker.join()
    assert [*answers.values()] == [expected]*8


def test_folders_that_hold_no_model(tmp_path, folder):
    with pytest.raises(RunError, match="there is no folder"): Classifier(tmp_path/"nothing")
    with pytest.raises(RunError, match="holds no checkpoint"): Classifier(tmp_path)
    float_only = tmp_path/"float"
    save_word_model(float_only, WEIGHTS)
    (float_only/"checkpoint_info.json").write_text('{"files": {}}')
    with pytest.raises(RunError, match="not as ONNX"): Classifier(float_only)


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json", "config.json"])
def test_a_tampered_file_is_named(tmp_path, name):
    save_word_model(tmp_path/"words", WEIGHTS)
    path = tmp_path/"words"/name
    content = bytearray(path.read_bytes())
    content[len(content)//2] ^= 1
    path.write_bytes(content)
    with pytest.raises(RunError, match=f"{name} is damaged"): Classifier(tmp_path/"words")
    path.unlink()
    with pytest.raises(RunError, match=f"{name} is missing"): Classifier(tmp_path/"words")


def test_the_base_package_is_enough(tmp_path, folder):
    "In an environment of its own, without PyTorch and what else the study needs, a sentence is classified."
    source, python = tmp_path/"source", tmp_path/"env/bin/python"
    shutil.copytree(ROOT/"fincompress", source/"fincompress", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("settings.ini", "setup.py", "pyproject.toml", "README.md", "LICENSE"): shutil.copy(ROOT/name, source)
    venv.create(tmp_path/"env", with_pip=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", source], check=True, timeout=600)
    program = f"""
import sys
from fincompress import Classifier
print(Classifier({str(folder)!r})("Sales rose")["label"], *[name for name in ("torch", "transformers", "pandas", "sklearn") if name in sys.modules])
try: import torch
except ImportError: print("no torch")
"""
    said = subprocess.run([python, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True).stdout.split("\n")
    assert said[:2] == ["positive", "no torch"]
    def command(*words): return subprocess.run([tmp_path/"env/bin/fincompress", *words], cwd=tmp_path, capture_output=True, text=True)
    assert "run" in command("--help").stdout
    assert "positive" in command("classify", folder, "Sales rose").stdout


# The command

def command(*words, given=b""):
    return subprocess.run([Path(sys.executable).with_name("fincompress"), "classify", *map(str, words)], input=given, capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT)})

def test_the_command_answers_words_and_lines(folder, classify):
    shown = command(folder, "Sales rose", "[b]fell[/b] " + "sales "*20).stdout.decode()
    assert "positive" in shown and "[b]fell[/b]" in shown and "yes" in shown
    lines = [f"{i} " + " ".join((["rose", "fell", "sales,"]*3)[i % 3:i % 3 + 1 + i % 4]) for i in range(1200)] # some more than are answered at once
    result = command(folder, "--csv", given="\n".join(lines + ["", "  ", "日本"]).encode())
    rows = [*csv.DictReader(io.StringIO(result.stdout.decode()))]
    assert [row["text"] for row in rows] == lines + ["日本"] and [row["label"] for row in rows] == [answer["label"] for answer in classify(lines + ["日本"])]
    assert sum(float(rows[0][label]) for label in classify("rose")["scores"]) == pytest.approx(1, abs=2e-4) and [*rows[0]][0] == "text" and rows[0]["truncated"] == ""
    assert command(folder, "--csv").stdout.decode().splitlines() == ["text,label,negative,neutral,positive,truncated"]

@pytest.mark.parametrize("words, given, said", [(["Sales rose", " "], b"", "a sentence is empty"), ([], b"\xff\xfe", "no text in UTF-8")])
def test_the_command_refuses_what_is_no_sentence(folder, words, given, said):
    result = command(folder, *words, given=given)
    assert result.returncode == 1 and said in result.stderr.decode() and "Traceback" not in result.stderr.decode() and result.stdout == b""

def test_the_command_does_not_wait_for_somebody_to_type(monkeypatch):
    from fincompress.app.cli import sentences
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    with pytest.raises(RunError, match="or pipe lines in"): [*sentences([], sys.stdin)]
    assert [*sentences(["Sales rose"], sys.stdin)] == ["Sales rose"]

def test_the_command_names_a_folder_without_a_model(tmp_path):
    for place, said in ((tmp_path/"nowhere", "there is no folder"), (tmp_path, "holds no checkpoint")):
        result = command(place, "Sales rose")
        assert result.returncode == 1 and said in result.stderr.decode() and "Traceback" not in result.stderr.decode()


@pytest.mark.parametrize("wrong", [dict(threads=0), dict(threads=-1), dict(threads="2"), dict(batch_size=0), dict(batch_size=-1), dict(batch_size=1.5), dict(batch_size=None)])
def test_numbers_that_make_no_sense(folder, wrong):
    with pytest.raises(ValueError, match=f"{[*wrong][0]} must be a whole number from 1"): Classifier(folder, **wrong)


def test_a_name_that_is_neither_folder_nor_on_the_hub(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(RunError, match="cannot be reached"): Classifier("nobody/nothing")
    with pytest.raises(RunError, match="there is no folder ''"): Classifier("")


def test_both_sessions_are_of_the_model_that_was_opened(tmp_path):
    "A folder that is replaced while a classifier is in use does not change its answers."
    save_word_model(tmp_path/"words", WEIGHTS)
    classify = Classifier(tmp_path/"words", threads=2)
    save_word_model(tmp_path/"words", {word: logits[::-1] for word, logits in WEIGHTS.items()})
    assert classify("rose")["label"] == "positive" and [a["label"] for a in classify(["rose"]*50)] == ["positive"]*50


def test_int8_is_exact_on_processors_without_vnni(monkeypatch):
    "The way that is chosen there opens and gives the same answers."
    import numpy as np
    from fincompress.lib.onnx import runtime as inference
    from fincompress.lib.onnx.graph import Graph, linear
    from onnx import TensorProto
    g, rows = Graph(), np.full((3, 64), 127, np.int8)
    x = g.add("Identity", "x")
    linear(g, {"a.weight": rows, "a.scale": np.ones(3, np.float32), "a.bias": np.zeros(3, np.float32)}, x, "a")
    both = [(TensorProto.FLOAT, ["n", 64]), (TensorProto.FLOAT, ["n", 3])]
    graph = g.model({"x": both[0]}, {"y": both[1]}).SerializeToString()
    for vnni in (True, False):
        monkeypatch.setattr(inference, "exact_int8", lambda: vnni)
        session = inference.open_session(graph, 1, "example")
        assert np.allclose(session.run(None, {"x": np.full((2, 64), 255, np.float32)})[0], 255*127*64)
