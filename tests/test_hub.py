"""The code that fetches from the Hugging Face Hub, against a stand-in on 127.0.0.1: rows, model, and a quick, clear end when the Hub fails."""
import json, os, signal, subprocess, sys, threading
from pathlib import Path

import pytest

import hub_stand_in
from fincompress.lib.run.hub import reach_hub
from fincompress.lib.run.files import RunError

ROOT = Path(__file__).resolve().parents[1]
DATA, BACKBONE = 'read_source("hub", 0.1, 10, 1000, 42)', 'open_backbone("ProsusAI/finbert", [], 0, "")'
SENTENCES = ["Profit rose", "a loss", "café", "profit fell fell"]
STUDY = """
import huggingface_hub # here, so that no time is measured but the Hub's
from fincompress.data import read_source
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

def model(model, tokenizer, with_head):
    batch = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    logits = model.eval()(**batch).logits.tolist()
    inputs = dict(ids=batch["input_ids"].tolist(), mask=batch["attention_mask"].tolist())
    return dict(**inputs, logits=logits, pieces=len(tokenizer), with_head=with_head, id2label=model.config.id2label)

answer = EXPRESSION
threads = [t.name for t in threading.enumerate() if t.name not in ("MainThread", "tqdm_monitor")]
print(json.dumps(dict(answer=answer, threads=threads)))
"""


def environment(url, home, **more) -> dict[str, str]:
    "This process's environment, without anything that is said about the Hub elsewhere; what the libraries read when they are imported."
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING", "TRANSFORMERS_")) and not k.lower().endswith("_proxy")}
    off = dict.fromkeys(("HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_PROGRESS_BARS", "DISABLE_SAFETENSORS_CONVERSION"), "1")
    return {**kept, **off, "HF_UPDATE_DOWNLOAD_COUNTS": "0", "HF_ENDPOINT": url, "HF_HOME": str(home), "OMP_NUM_THREADS": "1", **more}


def ask(expression, url, home, imports=STUDY, threads_left=0, **more):
    "An expression's value in a new process that knows this Hub; the process ends by itself and leaves no process behind."
    program = PROGRAM.replace("IMPORTS", imports).replace("EXPRESSION", expression).replace("SENTENCES", repr(SENTENCES))
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    process = subprocess.Popen([sys.executable, "-c", program], env=environment(url, home, **more), cwd=ROOT, **pipes)
    try: out, err = process.communicate(timeout=300)
    except subprocess.TimeoutExpired: os.killpg(process.pid, signal.SIGKILL), process.communicate(); raise
    assert process.returncode == 0, err
    with pytest.raises(ProcessLookupError): os.killpg(process.pid, 0) # nobody is left of its group
    said = json.loads(out.splitlines()[-1])
    assert len(said["threads"]) <= threads_left, said["threads"]
    return said["answer"]


@pytest.fixture(autouse=True)
def nothing_left():
    "No server's thread outlives its test."
    before = {*threading.enumerate()}
    yield
    assert not [t.name for t in {*threading.enumerate()} - before if "serve_forever" in t.name]


@pytest.fixture(scope="module")
def repositories(): return hub_stand_in.everything()


@pytest.fixture(scope="module")
def fetched(repositories, tmp_path_factory):
    "Data and model, fetched; then once more from the cache, when the Hub is gone."
    home, both = tmp_path_factory.mktemp("hf"), f"dict(table=table({DATA}), **model(*{BACKBONE}))"
    with hub_stand_in.hub(repositories) as server: online = ask(both, server.url, home)
    return online, ask(both, server.url, home, HF_HUB_OFFLINE="1"), server.asked


def test_the_data(fetched):
    "Sentences, classes and sources; what annotators did not agree on is transfer text, without a class."
    number = dict(negative=0, neutral=1, positive=2)
    fiqa = [("Zebrafone jumps after a bold forecast", "positive"), ("Zebrafone jumps while Kettleworks sinks", "negative"),
            ("Zebrafone jumps while Kettleworks sinks", "positive"), ("Kettleworks names a new auditor", "neutral"),
            ("Traders shun Kettleworks", "negative")]
    transfer = [[text, None, "phrasebank"] for text, _ in hub_stand_in.DOUBTFUL]
    agreed = [[text, number[label], "phrasebank"] for text, label in hub_stand_in.AGREED]
    rows = fetched[0]["table"]
    assert rows[:-len(fiqa)] == transfer + agreed
    assert sorted(rows[-len(fiqa):]) == sorted([text, number[label], "fiqa"] for text, label in fiqa)


def test_the_model(fetched):
    "The original model's outputs, in this project's order: found by name, whatever order the model has."
    import torch
    online = fetched[0]
    with torch.no_grad(): original = hub_stand_in.finbert()(torch.tensor(online["ids"]), torch.tensor(online["mask"])).logits
    order = [hub_stand_in.FINBERT_LABELS.index(name) for name in ("negative", "neutral", "positive")]
    assert order != sorted(order) and torch.allclose(torch.tensor(online["logits"]), original[:, order], atol=1e-5)
    assert online["with_head"] is True and online["id2label"] == {"0": "negative", "1": "neutral", "2": "positive"}


def test_the_tokeniser(fetched):
    "Every piece of vocab.txt at its own place, letters in lower case, accents off."
    pieces = hub_stand_in.PIECES
    assert fetched[0]["pieces"] == len(pieces) == hub_stand_in.SHAPE["vocab_size"]
    read = [[pieces[i] for i in row if i != 0] for row in fetched[0]["ids"]]
    expected = ["profit", "rose"], ["a", "loss"], ["c", "##a", "##f", "##e"], ["profit", "fell", "fell"]
    assert read == [["[CLS]", *words, "[SEP]"] for words in expected]


def test_nothing_else_is_fetched(fetched):
    "Each file once, none of other frameworks, nothing sent, and no conversion asked for."
    asked, got = fetched[2], [path for method, path in fetched[2] if method == "GET" and "/resolve/" in path]
    unwanted = "tf_model", "flax", "onnx", "discussions", "telemetry", "spaces"
    assert len(got) == len({*got}) and not any(word in path for _, path in asked for word in unwanted)
    assert {method for method, _ in asked} <= {"GET", "HEAD"}


def test_the_cache_serves_without_the_hub(fetched): assert fetched[0] == fetched[1]


def test_a_hub_with_gaps(repositories, tmp_path):
    "No data set, no such model, and a model without its vocab.txt, with which the library would go on with five pieces."
    gap = {name: data for name, data in repositories["ProsusAI/finbert"].items() if name != "vocab.txt"}
    actions = DATA, BACKBONE.replace("finbert", "finbort"), BACKBONE
    expression = f"[{', '.join(f'told(lambda: {action})' for action in actions)}]"
    with hub_stand_in.hub({"ProsusAI/finbert": gap}) as server: answers = ask(expression, server.url, tmp_path)
    data, model, vocabulary = (said["message"] for said in answers)
    assert "PhraseBank (takala/financial_phrasebank) cannot be opened" in data and "check the name" in data
    assert "the model ProsusAI/finbort cannot be opened" in model and "check the name" in model
    assert "the tokeniser of ProsusAI/finbert has 5 pieces" in vocabulary and "vocab.txt" in vocabulary


@pytest.fixture(scope="module")
def failures(repositories, tmp_path_factory): # address → what was said about the data, and about the model
    "Hubs that fail, named in turn to one process; a good one is what its libraries know, so that nothing fails unless the code looks first."
    with hub_stand_in.hub(repositories) as good, hub_stand_in.hub(mood="busy") as busy, hub_stand_in.hanging_port() as hanging:
        places = dict(busy=busy.url, refusing=hub_stand_in.closed_port(), hanging=hanging)
        each = f"[os.environ.update(HF_ENDPOINT=place), told(lambda: {DATA}), told(lambda: {BACKBONE})]"
        answers = ask(f"[{each} for place in {[*places.values()]}]", good.url, tmp_path_factory.mktemp("hf"))
        assert good.asked == []
    return {kind: (place, answer[1:]) for (kind, place), answer in zip(places.items(), answers)}


@pytest.mark.parametrize("kind, expected", [("busy", "answers 503"), ("refusing", "cannot be reached"), ("hanging", "cannot be reached (timed out)")])
def test_a_hub_that_fails(kind, expected, failures):
    "Data and model alike: within seconds, with the address and what can be done."
    address, answers = failures[kind]
    for said in answers:
        assert f"the Hub at {address} " in said["message"] and expected in said["message"] and "run offline (profile local" in said["message"]
        assert said["seconds"] < 15


def test_a_hub_that_stops_halfway(repositories, tmp_path):
    "It greets, and then sends no file: the bound ends the wait, and the process ends although its request does not."
    fetch = 'told(lambda: from_hub("the model", lambda: huggingface_hub.hf_hub_download("ProsusAI/finbert", "config.json"), seconds=1))'
    with hub_stand_in.hub(repositories, mood="silent") as server:
        said = ask(fetch, server.url, tmp_path, imports="import huggingface_hub", threads_left=1)
    assert "the model cannot be opened" in said["message"] and "no answer within 1 s" in said["message"]
    assert said["seconds"] < 15


def test_something_else_at_the_address(monkeypatch):
    "A server that speaks no HTTP, and an address that is none."
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with hub_stand_in.hub(mood="foreign") as server:
        for address in (server.url, "huggingface", "http://"):
            monkeypatch.setenv("HF_ENDPOINT", address)
            with pytest.raises(RunError, match="cannot be reached"): reach_hub()


def test_offline_asks_nothing(monkeypatch):
    with hub_stand_in.hub(mood="busy") as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url), monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        reach_hub()
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        with pytest.raises(RunError, match="503"): reach_hub()
    assert server.asked == [("HEAD", "")]


def test_the_data_stage(tmp_path):
    "The first notebook of the study, from the Hub: splits and transfer text without a sentence in two of them, and where they came from."
    import csv
    names = ("negative", "neutral", "positive")
    agreed = [(f"Factory {i} of {word} reported number {i*i}", name) for name, word in zip(names, ("Lossby", "Evenby", "Gainby")) for i in range(40)]
    archive = {"data/FinancialPhraseBank-v1.0.zip": hub_stand_in.phrasebank_archive(agreed, agreed[:5] + hub_stand_in.DOUBTFUL)}
    repositories = {"datasets/takala/financial_phrasebank": archive, "datasets/pauri32/fiqa-2018": hub_stand_in.fiqa_files()}
    words = ["run", "--profile", "smoke", "--run-dir", tmp_path/"run", "--only", "data", "-p", "source=hub"]
    with hub_stand_in.hub(repositories) as server:
        environs = environment(server.url, tmp_path/"hf", MPLBACKEND="agg")
        result = subprocess.run([Path(sys.executable).with_name("fincompress"), *words], cwd=ROOT, env=environs, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    def texts_of(name): return {row["text"] for row in csv.DictReader((tmp_path/f"run/data/{name}.csv").read_text(encoding="utf-8").splitlines())}
    texts = {name: texts_of(name) for name in ("train", "val", "test", "transfer")}
    fiqa = {line.partition(",")[0] for rows in hub_stand_in.FIQA.values() for line in rows}
    assert texts["transfer"] == {text for text, _ in hub_stand_in.DOUBTFUL} # what is labelled is no transfer text
    assert set.union(*(texts[name] for name in ("train", "val", "test"))) == {text for text, _ in agreed} | fiqa
    assert sum(map(len, texts.values())) == len(set.union(*texts.values()))
    card = json.loads((tmp_path/"run/data/data_card.json").read_text())
    assert card["source"] == "Hugging Face Hub" and card["synthetic"] is False and card["conflicting"] == 1
    assert {*card["licences"]} == {"phrasebank", "fiqa"}
    assert card["revisions"] == dict.fromkeys(("takala/financial_phrasebank", "pauri32/fiqa-2018"), hub_stand_in.REVISION)


def test_files_of_the_hub_that_are_not_what_they_should_be(repositories, tmp_path):
    "An archive that is none, a table without its columns, and a data set without its files."
    names = "takala/financial_phrasebank", "pauri32/fiqa-2018"
    broken = {"archive": {"data/FinancialPhraseBank-v1.0.zip": b"not found, said the proxy"}, "empty": {"README.md": b"moved"}}
    tables = {"train.csv": b"text,score\nZebrafone jumps,0.7\n"}
    said = {}
    for kind, first, second in (("archive", broken["archive"], None), ("empty", broken["empty"], None), ("table", None, tables)):
        files = {f"datasets/{name}": new or repositories[f"datasets/{name}"] for name, new in zip(names, (first, second))}
        with hub_stand_in.hub(files) as server: said[kind] = ask(f"told(lambda: {DATA})", server.url, tmp_path/kind)["message"]
    assert "PhraseBank (takala/financial_phrasebank) cannot be opened (BadZipFile" in said["archive"]
    assert f"its revision {hub_stand_in.REVISION} has no file" in said["empty"]
    assert "FiQA (pauri32/fiqa-2018) cannot be opened" in said["table"] and "sentence" in said["table"]
