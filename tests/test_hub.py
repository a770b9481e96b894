"""The code that fetches from the Hugging Face Hub, against a stand-in on 127.0.0.1.

Rows and a model arrive as they should, and the end is quick and clear when the Hub fails.
"""
import csv
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import hub_stand_in
import pytest

from fincompress.lib.run.files import RunError
from fincompress.lib.run.hub import reach_hub

ROOT = Path(__file__).resolve().parents[1]
DATA = 'read_sources(["phrasebank", "fiqa"], Reading())'
OWN_DATA = 'read_sources("you/headlines", Reading())'
BACKBONE = 'open_backbone("ProsusAI/finbert", [], 0, "")'
SENTENCES = ["Profit rose", "a loss", "café", "profit fell fell"]
NUMBER = dict(negative=0, neutral=1, positive=2)
STUDY = """
import huggingface_hub # here, so that no time is measured but the Hub's
from fincompress.lib.text.sources import Reading, read_sources
from fincompress.teacher import open_backbone
"""
PROGRAM = """
import json, os, sys, threading, time
from fincompress.lib.run.hub import from_hub
from fincompress.lib.run.files import RunError
IMPORTS

def told(action):
    begun = time.perf_counter()
    try: action(); message = None
    except RunError as error: message = str(error)
    return dict(message=message, seconds=time.perf_counter() - begun)

def table(frame): return json.loads(frame.to_json(orient="values"))

def own(frame): return dict(table=table(frame), revisions=frame.attrs["revisions"])

def model(model, tokenizer, with_head):
    batch = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    logits = model.eval()(**batch).logits.tolist()
    inputs = dict(ids=batch["input_ids"].tolist(), mask=batch["attention_mask"].tolist())
    facts = dict(pieces=len(tokenizer), with_head=with_head, id2label=model.config.id2label)
    return dict(**inputs, logits=logits, **facts)

answer = EXPRESSION
threads = [t.name for t in threading.enumerate() if t.name not in ("MainThread", "tqdm_monitor")]
print(json.dumps(dict(answer=answer, threads=threads)))
"""


def environment(url, home, **more) -> dict[str, str]:
    "This process's environment, with this Hub alone, as the libraries read it at their import."
    kept = {name: value for name, value in os.environ.items()
            if not name.startswith(("HF_", "HUGGING", "TRANSFORMERS_"))
            and not name.lower().endswith("_proxy")}
    off = ("HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_PROGRESS_BARS",
           "DISABLE_SAFETENSORS_CONVERSION")
    return {**kept, **dict.fromkeys(off, "1"), "HF_UPDATE_DOWNLOAD_COUNTS": "0",
            "HF_ENDPOINT": url, "HF_HOME": str(home), "OMP_NUM_THREADS": "1", **more}


def ask(expression, url, home, imports=STUDY, threads_left=0, **more):
    "An expression's value in a new process that knows this Hub, and leaves no process behind."
    program = PROGRAM.replace("IMPORTS", imports).replace("EXPRESSION", expression)
    program = program.replace("SENTENCES", repr(SENTENCES))
    process = subprocess.Popen(
        [sys.executable, "-c", program], env=environment(url, home, **more), cwd=ROOT,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        out, err = process.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise
    assert process.returncode == 0, err
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0) # its group is empty
    said = json.loads(out.splitlines()[-1])
    assert len(said["threads"]) <= threads_left, said["threads"]
    return said["answer"]


@pytest.fixture(autouse=True)
def nothing_left():
    "No server's thread outlives its test."
    before = {*threading.enumerate()}
    yield
    left = {*threading.enumerate()} - before
    assert not [thread.name for thread in left if "serve_forever" in thread.name]


@pytest.fixture(scope="module")
def repositories():
    return hub_stand_in.everything()


@pytest.fixture(scope="module")
def fetched(repositories, tmp_path_factory):
    "Data and model, fetched; then once more from the cache, when the Hub is gone."
    home = tmp_path_factory.mktemp("hf")
    both = f"dict(own=own({OWN_DATA}), table=table({DATA}), **model(*{BACKBONE}))"
    with hub_stand_in.hub(repositories) as server:
        online = ask(both, server.url, home)
    return online, ask(both, server.url, home, HF_HUB_OFFLINE="1"), server.asked


def test_the_data(fetched):
    "Sentences, classes, sources; sentences without full agreement are transfer text."
    fiqa = [("Zebrafone jumps after a bold forecast", "positive"),
            ("Zebrafone jumps while Kettleworks sinks", "negative"),
            ("Zebrafone jumps while Kettleworks sinks", "positive"),
            ("Kettleworks names a new auditor", "neutral"),
            ("Traders shun Kettleworks", "negative")]
    transfer = [[text, None, "phrasebank"] for text, _ in hub_stand_in.DOUBTFUL]
    agreed = [[text, NUMBER[label], "phrasebank"] for text, label in hub_stand_in.AGREED]
    rows = fetched[0]["table"]
    assert rows[:-len(fiqa)] == transfer + agreed
    expected = sorted([text, NUMBER[label], "fiqa"] for text, label in fiqa)
    assert sorted(rows[-len(fiqa):]) == expected


def test_a_data_set_of_your_own(fetched):
    "Any data set by its name: all its splits, classes by their names, \"NA\" as a text."
    own = fetched[0]["own"]
    rows = [("Sales rose", "positive"), ("NA", "neutral"), ("Sales fell", "negative")]
    assert own["table"] == [[text, NUMBER[label], "you/headlines"] for text, label in rows]
    assert own["revisions"] == {"you/headlines": hub_stand_in.REVISION}


def test_the_model(fetched):
    "The original model's outputs, in this project's order: found by name."
    import torch
    online = fetched[0]
    ids = torch.tensor(online["ids"])
    with torch.no_grad():
        original = hub_stand_in.finbert()(ids, torch.tensor(online["mask"])).logits
    order = [hub_stand_in.FINBERT_LABELS.index(name) for name in NUMBER]
    assert order != sorted(order)
    assert torch.allclose(torch.tensor(online["logits"]), original[:, order], atol=1e-5)
    assert online["with_head"] is True
    assert online["id2label"] == {"0": "negative", "1": "neutral", "2": "positive"}


def test_the_tokeniser(fetched):
    "Every piece of vocab.txt at its own place, letters in lower case, accents off."
    pieces = hub_stand_in.PIECES
    assert fetched[0]["pieces"] == len(pieces) == hub_stand_in.SHAPE["vocab_size"]
    read = [[pieces[i] for i in row if i != 0] for row in fetched[0]["ids"]]
    expected = ["profit", "rose"], ["a", "loss"], ["c", "##a", "##f", "##e"], \
        ["profit", "fell", "fell"]
    assert read == [["[CLS]", *words, "[SEP]"] for words in expected]


def test_nothing_else_is_fetched(fetched):
    "Each file once, none of other frameworks, nothing sent, and no conversion asked for."
    asked = fetched[2]
    got = [path for method, path in asked if method == "GET" and "/resolve/" in path]
    unwanted = "tf_model", "flax", "onnx", "discussions", "telemetry", "spaces"
    assert len(got) == len({*got})
    for word in unwanted:
        assert not [path for _, path in asked if word in path], word
    assert {method for method, _ in asked} <= {"GET", "HEAD"}


def test_the_cache_serves_without_the_hub(fetched):
    assert fetched[0] == fetched[1]


def test_a_hub_with_gaps(repositories, tmp_path):
    "No data set, no such model, and a model without its vocab.txt."
    finbert = repositories["ProsusAI/finbert"]
    gap = {name: data for name, data in finbert.items() if name != "vocab.txt"}
    actions = [DATA, OWN_DATA, BACKBONE.replace("finbert", "finbort"), BACKBONE]
    expression = f"[{', '.join(f'told(lambda: {action})' for action in actions)}]"
    with hub_stand_in.hub({"ProsusAI/finbert": gap}) as server:
        answers = ask(expression, server.url, tmp_path)
    data, own, model, vocabulary = (said["message"] for said in answers)
    assert "phrasebank (takala/financial_phrasebank) cannot be opened" in data
    assert "the data set you/headlines (there is no such file here" in own
    assert "the model ProsusAI/finbort cannot be opened" in model
    for message in (data, own, model):
        assert "check the name" in message
    assert "the tokeniser of ProsusAI/finbert has 5 pieces" in vocabulary
    assert "vocab.txt" in vocabulary


@pytest.fixture(scope="module")
def failures(repositories, tmp_path_factory):
    "Hubs that fail: kind → (address, what was said about the data and about the model)."
    # The libraries know a good one, so that nothing fails unless the code asks first.
    with (hub_stand_in.hub(repositories) as good, hub_stand_in.hub(mood="busy") as busy,
          hub_stand_in.hanging_port() as hanging):
        places = dict(busy=busy.url, refusing=hub_stand_in.closed_port(), hanging=hanging)
        each = (f"[os.environ.update(HF_ENDPOINT=place), "
                f"told(lambda: {DATA}), told(lambda: {BACKBONE})]")
        expression = f"[{each} for place in {[*places.values()]}]"
        answers = ask(expression, good.url, tmp_path_factory.mktemp("hf"))
        assert good.asked == []
    return {kind: (place, answer[1:]) for (kind, place), answer in zip(places.items(), answers)}


@pytest.mark.parametrize("kind, expected", [
    ("busy", "answers 503"),
    ("refusing", "cannot be reached"),
    ("hanging", "cannot be reached (timed out)"),
])
def test_a_hub_that_fails(kind, expected, failures):
    "Data and model alike: within seconds, with the address and what can be done."
    address, answers = failures[kind]
    for said in answers:
        assert f"the Hub at {address} " in said["message"]
        assert expected in said["message"]
        assert "run offline (profile local" in said["message"]
        assert said["seconds"] < 15


def test_a_hub_that_stops_halfway(repositories, tmp_path):
    "It greets, and then sends no file: the wait is limited, and the process can end."
    download = 'lambda: huggingface_hub.hf_hub_download("ProsusAI/finbert", "config.json")'
    fetch = f'told(lambda: from_hub("the model", {download}, seconds=1))'
    with hub_stand_in.hub(repositories, mood="silent") as server:
        said = ask(fetch, server.url, tmp_path, imports="import huggingface_hub", threads_left=1)
    assert "the model cannot be opened" in said["message"]
    assert "no answer within 1 s" in said["message"]
    assert said["seconds"] < 15


def test_something_else_at_the_address(monkeypatch):
    "A server that speaks no HTTP, and addresses that are none."
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with hub_stand_in.hub(mood="foreign") as server:
        for address in (server.url, "huggingface", "http://"):
            monkeypatch.setenv("HF_ENDPOINT", address)
            with pytest.raises(RunError, match="cannot be reached"):
                reach_hub()


def test_offline_asks_nothing(monkeypatch):
    with hub_stand_in.hub(mood="busy") as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        reach_hub()
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        with pytest.raises(RunError, match="503"):
            reach_hub()
    assert server.asked == [("HEAD", "")]


def agreed_sentences():
    "Forty invented sentences of each class."
    words = dict(negative="Lossby", neutral="Evenby", positive="Gainby")
    return [(f"Factory {i} of {word} reported number {i*i}", label)
            for label, word in words.items() for i in range(40)]


@pytest.fixture(scope="module")
def data_stage(tmp_path_factory):
    "The run directory of the first stage, from the Hub."
    folder = tmp_path_factory.mktemp("stage")
    agreed = agreed_sentences()
    archive = hub_stand_in.phrasebank_archive(agreed, agreed[:5] + hub_stand_in.DOUBTFUL)
    repositories = {
        "datasets/takala/financial_phrasebank": {"data/FinancialPhraseBank-v1.0.zip": archive},
        "datasets/pauri32/fiqa-2018": hub_stand_in.fiqa_files(),
    }
    command = [Path(sys.executable).with_name("fincompress"), "run", "--profile", "smoke",
               "--run-dir", folder/"run", "--only", "data",
               "-p", "source=[phrasebank, fiqa]", "-p", "pair_kinds=[]"]
    with hub_stand_in.hub(repositories) as server:
        environs = environment(server.url, folder/"hf", MPLBACKEND="agg")
        result = subprocess.run(command, cwd=ROOT, env=environs, capture_output=True, text=True,
                                timeout=600)
    assert result.returncode == 0, result.stderr
    return folder/"run"


def test_the_data_stage(data_stage):
    "Splits and transfer text without a sentence in two of them."
    def texts_of(name):
        lines = (data_stage/f"data/{name}.csv").read_text(encoding="utf-8").splitlines()
        return {row["text"] for row in csv.DictReader(lines)}

    texts = {name: texts_of(name) for name in ("train", "val", "test", "transfer")}
    fiqa = {line.partition(",")[0] for rows in hub_stand_in.FIQA.values() for line in rows}
    doubtful = {text for text, _ in hub_stand_in.DOUBTFUL}
    assert texts["transfer"] == doubtful # a labelled sentence is no transfer text
    labelled = texts["train"] | texts["val"] | texts["test"]
    assert labelled == {text for text, _ in agreed_sentences()} | fiqa
    assert sum(map(len, texts.values())) == len(labelled | doubtful)


def test_the_data_card(data_stage):
    "Where the sentences are from, and which revisions they are."
    card = json.loads((data_stage/"data/data_card.json").read_text())
    assert card["source"] == "phrasebank, fiqa"
    assert card["synthetic"] is False
    assert card["conflicting"] == 1
    assert {*card["licences"]} == {"phrasebank", "fiqa"}
    names = ("takala/financial_phrasebank", "pauri32/fiqa-2018")
    assert card["revisions"] == dict.fromkeys(names, hub_stand_in.REVISION)


BROKEN = { # kind → (data set, its files, words of the message)
    "archive": ("takala/financial_phrasebank",
                {"data/FinancialPhraseBank-v1.0.zip": b"not found, said the proxy"},
                ["phrasebank (takala/financial_phrasebank) cannot be opened (BadZipFile"]),
    "empty": ("takala/financial_phrasebank", {"README.md": b"moved"},
              [f"its revision {hub_stand_in.REVISION} has no file"]),
    "columns": ("pauri32/fiqa-2018", {"train.csv": b"text,score\nZebrafone jumps,0.7\n"},
                ["fiqa (pauri32/fiqa-2018) cannot be opened", "sentence"]),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_files_of_the_hub_that_are_not_what_they_should_be(kind, repositories, tmp_path):
    name, files, expected = BROKEN[kind]
    with hub_stand_in.hub({**repositories, f"datasets/{name}": files}) as server:
        said = ask(f"told(lambda: {DATA})", server.url, tmp_path)
    assert all(words in said["message"] for words in expected), said["message"]
