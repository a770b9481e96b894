"""`fincompress serve` as a process of its own: clients that come together, are slow, or go away.

The model of the process waits for a file where a text says so. So a test decides what arrives
during a call, and no test depends on the machine's speed."""
import configparser
import json
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import typer

from fincompress import Classifier
from fincompress.app.cli import app
from fincompress.app.serve.service import serve_model
from fincompress.lib.onnx.word_model import save_word_model

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS = {"rose": (0, 0, 2), "fell": (2, 0, 0), "sales": (0, 0.5, 0), "profit": (0, 0.4, 0)}
PROGRAM = """
import json, sys, time
from pathlib import Path
from fincompress.app.serve.service import serve_model
from fincompress.lib.onnx.runtime import OnnxModel

read = OnnxModel.read

def gated(self, texts, batch_size=32):
    for text in texts:
        gate = Path(text)
        if gate.suffix == ".gate":
            gate.with_suffix(".reached").touch()
            while not gate.exists():
                time.sleep(0.005)
    if "broken" in texts:
        raise ArithmeticError("overflow")
    return read(self, texts, batch_size)

OnnxModel.read = gated
serve_model(sys.argv[1], port=0, tell=lambda address: print(address, flush=True),
            **json.loads(sys.argv[2]))
print("ended well", flush=True)
"""
OPTIONS = dict(queue_size=8, batch_size=64, max_texts=5, max_characters=500, max_bytes=20_000)
LONG = 60  # seconds after which a test gives up; none is so slow


def until(condition):
    "Wait until a condition holds."
    ends = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < ends, "waited in vain"
        time.sleep(0.01)


class Service:
    "A service in a process of its own."
    def __init__(self, folder, **options):
        words = [sys.executable, "-c", PROGRAM, folder/"words", json.dumps(options)]
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        self.address = self.process.stdout.readline().strip()
        self.place = ("127.0.0.1", int(self.address.rpartition(":")[2]))
        self.http = httpx.Client(base_url=self.address, timeout=LONG)

    def ask(self, inputs, **more):
        return self.http.post("/predict", json=dict(inputs=inputs, **more))

    def metric(self, name):
        "The value of a metric; 0 if it was not counted yet."
        text = self.http.get("/metrics").text
        found = re.search(rf"^fincompress_{re.escape(name)} (\S+)$", text, re.M)
        return float(found[1]) if found else 0

    def raw(self, content=b"", length=None):
        "A connection of bytes: a request's head, and the first part of its body."
        length = len(content) if length is None else length
        connection = socket.create_connection(self.place, timeout=LONG)
        head = f"POST /predict HTTP/1.1\r\nHost: here\r\nContent-Length: {length}\r\n\r\n"
        connection.sendall(head.encode() + content)
        return connection

    def close(self):
        self.http.close()
        self.process.kill()
        self.process.communicate()


class Held:
    "While it is open, the service computes a text, and everything else waits."
    def __init__(self, service, folder):
        self.service, self.gate = service, folder/f"{time.monotonic_ns()}.gate"

    def __enter__(self):
        self.pool = ThreadPoolExecutor(16)
        self.first = self.pool.submit(self.service.ask, str(self.gate))
        until(self.gate.with_suffix(".reached").exists)
        return self

    def ask(self, inputs):
        "Send a request and wait until it is in the queue; its answer comes later."
        before = self.service.metric("queue_texts")
        asked = self.pool.submit(self.service.ask, inputs)
        until(lambda: self.service.metric("queue_texts") > before)
        return asked

    def __exit__(self, *_):
        self.gate.touch()
        self.pool.shutdown()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("service")
    save_word_model(place/"words", WEIGHTS, max_length=64)
    return place


@pytest.fixture(scope="module")
def classify(folder):
    return Classifier(folder/"words")


@pytest.fixture(scope="module")
def service(folder):
    found = Service(folder, body_seconds=1, **OPTIONS)
    yield found
    found.close()


@pytest.fixture
def held(service, folder):
    with Held(service, folder) as found:
        yield found


def received(connection):
    "An answer of JSON on a connection of bytes."
    found = b""
    while not found.endswith(b"}"):
        part = connection.recv(10_000)
        assert part, found
        found += part
    return found


def scores(answer):
    return {each["label"]: each["score"] for each in answer}


# Requests that come together


@pytest.mark.parametrize("count", [8, 64])
def test_every_client_gets_its_own_answers(folder, classify, count):
    service = Service(folder)
    words = [*WEIGHTS]

    def client(number):
        with httpx.Client(base_url=service.address, timeout=LONG) as http:
            found = []
            for i in range(5):
                texts = [" ".join(words[(number + i + j) % 4] for j in range(n)) for n in (1, 2, 3)]
                answers = http.post("/predict", json=dict(inputs=texts)).json()
                found.append((texts, [scores(answer) for answer in answers]))
            return found

    try:
        with ThreadPoolExecutor(count) as pool:
            for found in pool.map(client, range(count)):
                for texts, answers in found:
                    assert answers == [each["scores"] for each in classify(texts)]
        assert service.metric('requests_total{status="200"}') == 5*count
        assert service.metric("texts_total") == 15*count
    finally:
        service.close()


def test_what_waits_is_computed_together(service, held):
    calls, texts = service.metric("batch_texts_count"), service.metric("texts_total")
    asked = [held.ask(each) for each in ("sales rose", ["sales fell", "rose"], "profit")]
    assert not any(each.done() for each in asked)
    held.gate.touch()
    assert held.first.result().status_code == 200
    answers = [each.result().json() for each in asked]
    assert [answers[0][0]["label"], answers[1][0][0]["label"]] == ["positive", "negative"]
    assert service.metric("texts_total") - texts == 5
    assert service.metric("batch_texts_count") - calls == 2  # the held text, then all others


def test_a_text_that_breaks_the_model_spoils_its_own_request_alone(service, held):
    asked = [held.ask(each) for each in ("sales rose", "broken", "sales fell")]
    held.gate.touch()
    assert [each.result().status_code for each in asked] == [200, 424, 200]
    assert asked[1].result().json() == dict(error="the model failed: overflow",
                                            error_type="Backend")


def test_a_full_queue_refuses(service, held):
    asked = [held.ask(["sales rose"]*5), held.ask(["sales fell"]*3)]
    refused = service.ask("profit")
    assert refused.status_code == 429 and int(refused.headers["retry-after"]) > 0
    assert refused.json()["error_type"] == "Overloaded"
    assert "8 texts are waiting" in refused.json()["error"]
    assert service.http.get("/health").status_code == 200
    held.gate.touch()
    assert [each.result().status_code for each in asked] == [200, 200]
    assert service.ask("profit").status_code == 200


# Clients that are too large, slow, or gone


def test_what_is_too_large_is_refused_while_it_is_read(service):
    "One body says its size, one comes in chunks that never end; no more than the limit is read."
    long = service.http.post("/predict", content=b" "*30_000)
    with service.raw(length=10**12) as announced:
        answers = [received(announced)]
    connection = socket.create_connection(service.place, timeout=LONG)
    head = b"POST /predict HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\n"
    with connection:
        connection.sendall(head + b"5000\r\n" + b" "*0x5000 + b"\r\n")
        answers.append(received(connection))
    assert long.status_code == 413
    for answer in answers:
        assert answer.startswith(b"HTTP/1.1 413 ") and b"20,000 bytes" in answer


def test_too_many_and_too_long_texts(service):
    many = service.ask(["sales rose"]*6)
    long = service.ask(["sales rose", "r"*501])
    assert many.status_code == long.status_code == 413
    assert many.json() == dict(error="6 texts in a request, at most 5", error_type="Validation")
    assert "text 1 has 501 characters" in long.json()["error"]
    cut = service.ask("rose "*90)
    assert cut.status_code == 200
    assert service.ask("rose "*90, truncate=False).status_code == 422


def test_a_slow_client_hurts_no_other(service):
    with service.raw(b'{"inputs"', length=30) as slow:
        assert service.ask("sales rose").status_code == 200
        answer = received(slow)
        assert answer.startswith(b"HTTP/1.1 408 ") and b'"error_type":"Validation"' in answer
        assert b"connection: close" in answer.lower()
    assert service.ask("sales rose").status_code == 200


def test_a_client_that_goes_away_leaves_the_queue(service, held):
    texts, gone = service.metric("texts_total"), service.metric('requests_total{status="499"}')
    body = json.dumps(dict(inputs=["sales rose"]*5)).encode()
    with service.raw(body):
        until(lambda: service.metric("queue_texts") == 5)
    until(lambda: service.metric("queue_texts") == 0)
    asked = held.ask(["profit"]*5)
    held.gate.touch()
    assert asked.result().status_code == 200
    assert service.metric("texts_total") - texts == 6  # the held text and the last five
    assert service.metric('requests_total{status="499"}') == gone + 1


def test_a_client_that_goes_away_in_a_body_leaves_no_trace(service):
    before = service.metric('requests_total{status="499"}')
    service.raw(b'{"inputs"', length=30).close()
    until(lambda: service.metric('requests_total{status="499"}') == before + 1)
    assert service.ask("sales rose").status_code == 200


BODIES = { # body → words of the message
    b'{"inputs": "sales': "JSON", b"": "JSON", b"\xff\xfe": "JSON", b"[" * 9000: "JSON",
    b'{"inputs": {"a": 1}}': "inputs: give a text", b"null": "the body: Input should be an object",
    b'{"inputs": ["rose", null]}': "text 1 is of type NoneType",
    b'{"inputs": ["rose", "\\n"]}': "text 1 is empty",
    b'{"inputs": [["rose"], ["sales", "fell"]]}': "list 1 has 2 items",
    b'{"inputs": "rose", "raw_scores": 1}': "raw_scores",
}


@pytest.mark.parametrize("body", BODIES, ids=range(len(BODIES)))
def test_a_mistake_is_named(service, body):
    answer = service.http.post("/predict", content=body)
    assert answer.status_code == 422
    assert BODIES[body] in answer.json()["error"]
    assert answer.json()["error_type"] == "Validation"


def test_half_characters_are_read_or_refused(service):
    answer = service.http.post("/predict", content=b'{"inputs": ["rose \\ud83d", "rose"]}')
    assert answer.status_code in (200, 422)
    assert service.ask("sales rose \U0001f680").status_code == 200


def test_unknown_paths_and_methods(service):
    for method, path, status in (("GET", "/embed", 404), ("GET", "/predict", 405),
                                 ("GET", "/docs", 404)):
        answer = service.http.request(method, path)
        assert answer.status_code == status
        assert path in answer.json()["error"] and answer.json()["error_type"] == "Validation"


def test_the_service_describes_itself(service):
    info = service.http.get("/info").json()
    assert info["model_id"] == "words" and len(info["model_sha"]) == 64
    assert info["model_type"]["classifier"]["id2label"]["0"] == "negative"
    assert info["max_client_batch_size"] == 5 and info["max_input_length"] == 64
    described = service.http.get("/openapi.json").json()["paths"]["/predict"]["post"]
    examples = described["requestBody"]["content"]["application/json"]["examples"].values()
    assert {*described["responses"]} >= {"200", "413", "422", "424", "429"}
    for example in examples:
        assert service.http.post("/predict", json=example["value"]).status_code == 200


# The end


def refuses(place):
    "Whether a new connection is refused."
    try:
        socket.create_connection(place, timeout=LONG).close()
    except OSError:
        return True
    return False


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGTERM on Windows")
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_service_finishes_what_has_begun(folder, sent):
    "A computed and a waiting request get answers; new clients are refused; the code is 0."
    service = Service(folder)
    with Held(service, folder) as held:
        waiting = held.ask(["sales rose", "sales fell"])
        service.process.send_signal(sent)
        until(lambda: refuses(service.place))
        assert service.process.poll() is None and not waiting.done()
    assert held.first.result().status_code == 200
    assert [answer[0]["label"] for answer in waiting.result().json()] == ["positive", "negative"]
    assert service.process.wait(LONG) == 0
    service.close()


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGTERM on Windows")
def test_idle_and_slow_clients_do_not_keep_a_service_alive(folder):
    service = Service(folder, body_seconds=1)
    with service.raw(b'{"inputs"', length=30), socket.create_connection(service.place):
        assert service.ask("sales rose").status_code == 200
        service.process.terminate()
        assert service.process.wait(LONG) == 0
    service.close()


# The image


@pytest.fixture(scope="module")
def steps():
    "Pairs of an instruction and its words, of the Dockerfile's last stage."
    text = (ROOT/"Dockerfile").read_text().replace("\\\n", "")
    found = [line.split(maxsplit=1) for line in text.splitlines() if re.match("[A-Z]", line)]
    last = max(i for i, (name, _) in enumerate(found) if name == "FROM")
    return found[last:]


def test_the_image_runs_the_command_as_another_user_than_root(steps):
    "The command is a script of the package, one of its verbs, and takes the options given."
    users = [words for name, words in steps if name == "USER"]
    assert users and users[-1].split(":")[0] not in ("root", "0")
    ((_, words),) = [step for step in steps if step[0] == "CMD"]
    script, verb, *given = json.loads(words)
    settings = configparser.ConfigParser(delimiters=["="])
    settings.read(ROOT/"settings.ini")
    assert settings["DEFAULT"]["console_scripts"].startswith(f"{script}=")
    command = typer.main.get_command(app).commands[verb]
    assert command.make_context(verb, given).params["host"] == "0.0.0.0"


def test_the_image_tells_its_health_and_port(steps):
    named = dict(steps)
    (port,) = [default for name, default in zip(serve_model.__code__.co_varnames,
                                                serve_model.__defaults__) if name == "port"]
    assert named["EXPOSE"] == str(port)
    assert f"127.0.0.1:{port}/health" in named["HEALTHCHECK"]


def test_the_image_is_built_from_what_is_sent(steps):
    "Files that are copied from the clone exist, and `.dockerignore` lets them in."
    lines = (ROOT/".dockerignore").read_text().split()
    text = (ROOT/"Dockerfile").read_text()
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.M)
    names = [name for line in copied for name in line.split()]
    assert lines[0] == "*" and names
    for name in names:
        assert (ROOT/name).exists() and f"!{name}" in lines


def test_the_linter_is_content_with_the_image():
    linter = Path(sys.executable).with_name("hadolint")
    result = subprocess.run([linter, ROOT/"Dockerfile"], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
