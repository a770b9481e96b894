"""The demo in a browser: what it answers, what it refuses, and that nothing leaves the machine."""
import asyncio
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fincompress.app.demo.models import class_probabilities, cut_texts, default_model, open_models
from fincompress.app.demo.page import EXAMPLES
from fincompress.lib.run.checkpoint import LABELS
from fincompress.lib.run.files import RunError
from fincompress.lib.run.stage import STAGES, stage_file

ROOT = Path(__file__).resolve().parents[1]
SMOKE = ROOT/"outputs/smoke"
ELSEWHERE = 0.37  # macro-F1 of a compact model on a foreign set, invented
COMPACT = ["compact_wide", "compact_narrow", "compact_tiny"]
WATCHED = """
import os
import sys

def host_of(event, what):
    if event == "socket.getaddrinfo":
        return what[0]
    if event == "socket.connect" and isinstance(what[1], tuple):
        return what[1][0]

def watch(event, what):
    host = host_of(event, what)
    if host not in (None, "", "127.0.0.1", "::1", "localhost", "0.0.0.0"):
        with open(os.environ["OUTSIDE"], "a") as file:
            file.write(f"{event} {host}\\n")

sys.addaudithook(watch)
from fincompress.app.cli import main
main()
"""
HOSTILE = ("Orders rose <img src=x onerror=document.title='owned'> & {{costs}} ${1+1} fell, "
           "日本 🚀")


# A demo that runs


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def run(folder):
    "A copy of the smoke run, of which one model was damaged on the way."
    if not stage_file(SMOKE, STAGES[-1]).exists():
        pytest.fail("there is no finished smoke run: make smoke")
    for part in ("checkpoints", "results", "stages"):
        shutil.copytree(SMOKE/part, folder/"run"/part)
    shutil.copy(SMOKE/"run.json", folder/"run")
    columns = ["model", "role", "set", "macro_f1"]
    judged = [["compact_wide", "test", "own_test", 0.5],
              ["compact_wide", "foreign test", "twitter", ELSEWHERE]]
    pd.DataFrame(judged, columns=columns).to_csv(folder/"run/results/world.csv", index=False)
    (folder/"run/checkpoints/student_ptq/model.safetensors").write_bytes(b"<b>damaged</b>")
    return folder/"run"


@pytest.fixture(scope="module")
def address(run, folder):
    "The command in a process of its own, whose connections to other machines are noted."
    environment = {**os.environ, "OUTSIDE": str(folder/"outside.txt"), "OMP_NUM_THREADS": "1",
                   "GRADIO_TEMP_DIR": str(folder/"gradio"), "PYTHONPATH": str(ROOT)}
    with open(folder/"stderr.txt", "w") as errors:
        server = subprocess.Popen([sys.executable, "-c", WATCHED, "demo", str(run)], text=True,
                                  env=environment, stdout=subprocess.PIPE, stderr=errors)
    line = server.stdout.readline()
    assert line.startswith("demo: http://127.0.0.1:"), (folder/"stderr.txt").read_text()
    yield line.split()[1]
    server.terminate()
    server.wait(30)


@pytest.fixture(scope="module")
def asked():
    "The address of every request of the browser."
    return []


@pytest.fixture
def opened(browser, address, asked):
    "A function that opens the page at a width; the page may not complain of anything."
    contexts = []
    complaints = []

    def note(message):
        if message.type == "error":
            complaints.append(message.text)

    def opened(width=1400, **options):
        context = browser.new_context(viewport=dict(width=width, height=900), **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", note)
        page.goto(address)
        page.wait_for_selector("#sentence textarea")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert complaints == []


def ask(page, text):
    page.fill("#sentence textarea", text)
    page.press("#sentence textarea", "Enter")
    shown = "text => document.querySelector('#answers caption')?.innerText.includes(text)"
    page.wait_for_function(shown, arg=text[:20])
    page.wait_for_selector("#words .words")


def message(page):
    "The message that appears; it is closed again."
    toast = page.locator(".toast-body").first
    toast.wait_for()
    text = toast.inner_text()
    toast.get_by_test_id("toast-close").click()
    toast.wait_for(state="detached")
    return text


def tab(page, name):
    page.get_by_role("tab", name=name).click()


# One sentence


def test_the_models_answer_a_sentence(opened):
    page = opened()
    ask(page, "Orders rose by a third.")
    rows = page.locator("#answers tbody tr").all_inner_texts()
    models = [row.split("\n")[0] for row in rows]
    assert models[0] == "Teacher"
    assert models[-1] == "TF-IDF, linear"
    compact = {"Compact, wide", "Compact, narrow", "Compact, tiny"}
    assert {"Student, vanilla KD", *compact} <= {*models}
    assert page.locator("#words .words span").count() == 5


def test_an_answers_numbers_agree(opened):
    "The label is that of the largest probability, as far as the rounded numbers show it."
    page = opened()
    ask(page, "Orders rose by a third.")
    for row in page.locator("#answers tbody tr").all():
        numbers = row.locator(".numbers span").all_inner_texts()
        shares = [float(text.split()[1].rstrip("%")) for text in numbers]
        largest = {label for label, share in zip(LABELS, shares) if share == max(shares)}
        assert sum(shares) == pytest.approx(100, abs=0.3)
        assert row.locator(".label").inner_text().split("\n")[0] in largest
        assert float(row.locator(".ms").inner_text().split()[0]) > 0


def test_scores_are_beside_the_models(opened):
    "Macro-F1 on the own kind of text, and on text from elsewhere where it was measured."
    page = opened(400)
    ask(page, "Orders rose by a third.")
    captions = page.locator("#answers .scores").all_inner_texts()
    assert captions and all(re.match(r"\d\.\d\d here", caption) for caption in captions)
    assert f"{ELSEWHERE:.2f} elsewhere" in "".join(captions)
    assert "has not learned from" in page.locator("#answers .hint").inner_text()
    assert page.evaluate("document.documentElement.scrollWidth") <= 400


def test_what_is_typed_stays_text(opened):
    page = opened()
    ask(page, HOSTILE)
    assert HOSTILE in page.locator("#answers caption").inner_text()
    assert page.title() == "FinCompress"
    assert page.locator("#answers img, #words img").count() == 0
    assert page.locator("#words .words span").count() == len(HOSTILE.split())


def test_a_sample_sentence(opened):
    page = opened()
    sample = EXAMPLES["negative"][0]
    page.get_by_role("button", name=sample).click()
    page.wait_for_selector("#words .words")
    assert sample in page.locator("#answers caption").inner_text()
    assert page.input_value("#sentence textarea") == sample


def test_a_choice_of_models(opened):
    page = opened()
    page.fill("#sentence textarea", "Orders rose")
    page.get_by_role("button", name="Which models are asked").click()
    page.get_by_label("Pruned teacher, 30%").check()
    page.get_by_label("Teacher", exact=True).uncheck()
    page.click("#ask")
    pruned = "document.querySelector('#answers tbody')?.innerText.includes('Pruned teacher, 30%')"
    page.wait_for_function(pruned)
    assert not page.locator("#answers tbody").inner_text().startswith("Teacher")
    assert "unlike the teacher" not in page.locator("#answers").inner_text()
    for box in page.get_by_role("checkbox").all():
        box.uncheck()
    page.click("#ask")
    assert "tick at least one" in message(page)


def test_a_model_that_does_not_open_is_listed(opened):
    text = opened().locator("#notices").inner_text()
    assert "Student, PTQ int8 is not here." in text
    assert "checkpoints/student_ptq/model.safetensors is damaged" in text


def test_by_keyboard_alone(opened):
    page = opened()
    for _ in range(12):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.tagName") == "TEXTAREA":
            break
    page.keyboard.type("Orders rose")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_selector("#words .words")
    assert "Orders rose" in page.locator("#answers caption").inner_text()


# Many texts


def answer_all(page) -> Path:
    "Press the button; the downloaded answers."
    page.click("#answer-all")
    page.wait_for_selector("#download:not([disabled])")
    with page.expect_download() as download:
        page.click("#download")
    assert download.value.suggested_filename == "answers.csv"
    return download.value.path()


def give_file(page, file):
    tab(page, "Headlines")
    page.set_input_files("#file input[type=file]", file)
    page.wait_for_selector("#file .file-preview")


def test_a_table_of_1000_lines_comes_back(opened, tmp_path):
    page = opened()
    headlines = [f'Orders of "unit {i}" rose by {i}%, and costs fell' for i in range(1000)]
    given = pd.DataFrame(dict(id=range(1000), headline=headlines))
    given.loc[7, "headline"] = ""
    given.to_csv(tmp_path/"mine.csv", index=False)
    give_file(page, tmp_path/"mine.csv")
    answered = pd.read_csv(answer_all(page), keep_default_na=False)
    assert answered.columns.tolist() == ["id", "headline", "sentiment", *LABELS, "cut"]
    assert answered.headline.tolist() == given.headline.tolist()
    assert answered.sentiment[7] == ""
    assert (answered.sentiment.drop(7) != "").all()
    assert "Orders of" in page.locator("#table").inner_text()


def test_pasted_lines(opened):
    page = opened()
    tab(page, "Headlines")
    page.fill("#lines textarea", "Orders rose\n\n  Orders fell <b>again</b>  \n日本 🚀")
    answered = pd.read_csv(answer_all(page))
    assert answered.text.tolist() == ["Orders rose", "Orders fell <b>again</b>", "日本 🚀"]


# Messages


def test_what_cannot_be_answered_gets_a_message(opened):
    page = opened()
    page.click("#ask")
    assert "type a sentence first" in message(page)
    page.fill("#sentence textarea", "x"*2**20)
    page.click("#ask")
    assert "1,048,576 characters, and a sentence may have 1,000" in message(page)
    tab(page, "Headlines")
    page.click("#answer-all")
    assert "There is no text in it" in message(page)
    page.fill("#lines textarea", "rose "*209_715)
    page.click("#answer-all")
    assert "1,048,575 characters, and 200,000 may be pasted" in message(page)


WRONG = {
    "an open quotation mark": (b'text\n"Orders rose\nOrders fell\n',
                               "is not CSV (unexpected end of data)"),
    "a field too many": (b"text,id\nOrders rose, then fell,1\n",
                         "line 2: 3 fields, and the first line has 2"),
    "no such column": (b"<b>a</b>,b\n1,2\n", "mine.csv has no column named text"),
    "a picture": (b"\x89PNG\r\n\x1a\n\0", "not text in UTF-8"),
    "nothing": (b"", "has no column"),
    "too many lines": (b"text\n" + b"Orders rose\n"*5001, "5,001 texts, and 5,000 are answered"),
    "too many bytes": (b"text\n" + b"x"*2_100_000, "2,000,000 are read"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_file_gets_a_message(opened, tmp_path, wrong):
    content, words = WRONG[wrong]
    (tmp_path/"mine.csv").write_bytes(content)
    page = opened()
    give_file(page, tmp_path/"mine.csv")
    page.click("#answer-all")
    assert words in message(page)


# The benchmark


def test_the_benchmark_is_in_tables_and_figures(opened):
    page = opened()
    tab(page, "Benchmark")
    page.wait_for_selector("#benchmark img")
    text = page.locator("#benchmark").inner_text()
    for shown in ("Student, vanilla KD", "Compact, narrow", "BERT-base, ONNX int8", "The floor is"):
        assert shown in text
    figures = page.locator("#benchmark img").all()
    assert len(figures) == 2
    for figure in figures:
        assert figure.evaluate("image => image.naturalWidth") > 500
        assert "Macro-F1 on test against" in figure.get_attribute("alt")


def test_the_benchmark_follows_the_runs_files(opened, run):
    opened() # the page is there before the files change
    file = run/"results/benchmark_results.csv"
    table = pd.read_csv(file)
    table.loc[table.variant == "student_vanilla_kd", "test_macro_f1"] = 0.98765
    table.to_csv(file, index=False)
    page = opened()
    tab(page, "Benchmark")
    changed = "document.querySelector('#benchmark').innerText.includes('0.988')"
    page.wait_for_function(changed)


# Any screen


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_telephone(opened, scheme):
    page = opened(400, color_scheme=scheme)

    def width():
        return page.evaluate("document.documentElement.scrollWidth")

    ask(page, HOSTILE + " x"*20 + "y"*200)
    assert width() <= 400
    for name, shown in (("Headlines", "#lines"), ("Benchmark", "#benchmark img")):
        tab(page, name)
        page.wait_for_selector(shown)
        assert width() <= 400, name
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    brightest = max(map(int, background.strip("rgb()").split(",")))
    assert (brightest < 60) == (scheme == "dark")


# Many visitors


CLIENTS = 50
SECONDS = 10


async def one_answer(client, number) -> str:
    "What the page's own question is answered, as a program asks it."
    data = [f"Orders of unit {number} rose", ["teacher", "compact_wide"]]
    begun = (await client.post("call/compare", json=dict(data=data))).raise_for_status()
    answer = await client.get(f"call/compare/{begun.json()['event_id']}")
    return answer.raise_for_status().text


async def one_client(client, number, until, waits, errors):
    "Ask one sentence after the other."
    while time.monotonic() < until:
        begun = time.monotonic()
        try:
            said = await one_answer(client, number)
            (answers,) = json.loads(said.rpartition("data: ")[2])
            if "event: complete" not in said or f"unit {number} rose" not in answers:
                errors.append(said)
        except Exception as error:
            errors.append(repr(error))
        waits.append(time.monotonic() - begun)


async def all_clients(address, waits, errors):
    import httpx
    until = time.monotonic() + SECONDS
    limits = httpx.Limits(max_connections=CLIENTS)
    async with httpx.AsyncClient(base_url=f"{address}gradio_api/", timeout=120, limits=limits,
                                 trust_env=False) as client:
        jobs = [one_client(client, number, until, waits, errors) for number in range(CLIENTS)]
        await asyncio.gather(*jobs)


def test_fifty_clients_at_a_time(address, capsys, record_property):
    waits = []
    errors = []
    # a thread of its own, since the browser's event loop is in this one
    crowd = threading.Thread(target=lambda: asyncio.run(all_clients(address, waits, errors)))
    crowd.start()
    crowd.join()
    p50, p95 = np.percentile(waits, (50, 95))
    record_property("p95_seconds", round(float(p95), 3))
    with capsys.disabled():
        print(f"\n{CLIENTS} clients for {SECONDS} s: {len(waits)} answers, median {p50:.2f} s, "
              f"95th percentile {p95:.2f} s, {len(errors)} errors")
    assert errors == []


def test_nothing_has_left_the_machine(address, asked, folder):
    outside = [url for url in asked if not url.startswith((address, "data:", "blob:"))]
    assert len(asked) > 100
    assert outside == []
    assert not (folder/"outside.txt").exists(), (folder/"outside.txt").read_text()


def test_no_exception_was_printed_by_the_server(address, folder):
    assert "Traceback" not in (folder/"stderr.txt").read_text()


# Without a browser


def test_the_models_of_a_run(run):
    models, refused = open_models(run)
    assert [*refused] == ["student_ptq"]
    damaged = "checkpoints/student_ptq/model.safetensors is damaged"
    assert refused["student_ptq"].startswith(damaged)
    names = [*models]
    assert names[0] == "teacher"
    assert names[-1] == "baseline_tfidf"
    assert [name for name in names if name in COMPACT] == COMPACT
    assert default_model(models) == "compact_wide"


def test_threads_may_share_a_model(run):
    models, _ = open_models(run, ["teacher"])
    model = models["teacher"]
    texts = [f"Orders of unit {i} rose" for i in range(20)]
    expected = class_probabilities(model, texts)
    found = []

    def work():
        for _ in range(5):
            found.append((class_probabilities(model, texts),
                          cut_texts(model, [*texts, "rose "*200])))

    workers = [threading.Thread(target=work) for _ in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(found) == 30
    assert all(np.allclose(chances, expected) for chances, _ in found)
    assert all(cut == [False]*20 + [True] for _, cut in found)


@pytest.fixture
def places(run, tmp_path, monkeypatch):
    "A folder with the run, a run without weights as it is committed, and one of before."
    (tmp_path/"run").symlink_to(run)
    clone = tmp_path/"clone/checkpoints/teacher"
    clone.mkdir(parents=True)
    shutil.copy(run/"checkpoints/teacher/checkpoint_info.json", clone)
    (tmp_path/"old/checkpoints/student_wide_int8").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def taken_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield str(taken.getsockname()[1])


REFUSALS = [
    (["nowhere"], "nowhere has no model that opens"),
    (["run", "--variant", "teacher", "--variant", "student_tiny"], "student_tiny does not open"),
    (["clone"], "teacher does not open: checkpoints/teacher/config.json does not exist"),
    (["old"], "made by an earlier version"),
    (["run", "--variant", "student_wide_int8"], "the model is now called compact_wide"),
    (["run", "--variant", "baseline_tfidf", "--port", "taken"], "choose another with --port"),
]


@pytest.mark.parametrize("words, said", REFUSALS)
def test_refusals(places, taken_port, words, said):
    from typer.testing import CliRunner

    from fincompress.app.cli import app
    words = [taken_port if word == "taken" else word for word in words]
    result = CliRunner().invoke(app, ["demo", *words])
    assert isinstance(result.exception, RunError)
    assert said in str(result.exception)
