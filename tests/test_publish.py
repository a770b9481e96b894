"""What is published: one folder with both forms, one commit, nothing where the Hub fails.

The Hub is a stand-in on this machine."""
import json
import shutil
import string
import subprocess
import sys
import types

import hub_stand_in
import numpy as np
import pytest
import torch
import yaml
from test_export import (
    DECIDING,
    LABELS,
    NOTE,
    WORDS,
    card_of,
    contents,
    front_matter,
    sentences,
    trained,
    write_data,
)
from test_hub import ROOT, environment
from typer.testing import CliRunner

from fincompress import Classifier
from fincompress.app import cli
from fincompress.app.deploy import publish as publishing
from fincompress.app.deploy.hub_folder import transformers_logits, write_published
from fincompress.app.deploy.publish import write_space
from fincompress.app.templates import render
from fincompress.compact import with_pieces
from fincompress.lib.examples import toy_tokenizer
from fincompress.lib.onnx.checkpoint import save_onnx
from fincompress.lib.run.checkpoint import load_tokenizer, read_info
from fincompress.lib.run.files import RunError, write_json
from fincompress.lib.text.vocabulary import trim_tokenizer
from fincompress.pruning import remove_units
from fincompress.ptq import quantize, save_int8
from fincompress.student import load_encoder, save_encoder

FOR_CLASSIFIER = {
    "model.onnx", "tokenizer.json", "config.json", "checkpoint_info.json", "README.md"}
BOTH = FOR_CLASSIFIER | {"model.safetensors", "tokenizer_config.json"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "A student in float, in int8, as a compact model, and one with layers of unequal shape."
    folder = tmp_path_factory.mktemp("home")/"run"
    train, val = write_data(folder, sentences(320))
    letters = string.ascii_lowercase
    pieces = [*letters, *(f"##{letter}" for letter in letters), *DECIDING, *WORDS]
    tokenizer = toy_tokenizer(pieces)
    student = trained(tokenizer, train, val, 1)
    pruned = remove_units(trained(tokenizer, train[:40], val[:20], 2), {"heads": {1: [0]}})
    record = dict(technique="invented", hyperparameters=dict(max_length=16), inputs={})
    whole = dict(metrics={}, tokenizer=tokenizer, **record)
    save_encoder(student, folder/"checkpoints/student", **whole)
    save_int8(quantize(student), folder/"checkpoints/student_ptq", **whole)
    save_encoder(pruned, folder/"checkpoints/pruned", **whole)
    kept = [*range(len(tokenizer) - 2)]
    trimmed = with_pieces(student, kept)
    cut = trim_tokenizer(tokenizer, kept)
    save_encoder(trimmed, folder/"checkpoints/compact_narrow_trimmed",
                 **whole | dict(tokenizer=cut))
    save_onnx(quantize(trimmed), folder/"checkpoints/compact_narrow", cut, val.text, val.label,
              16, word_bits=4, **record)
    return folder


@pytest.fixture(scope="module")
def published(run, tmp_path_factory):
    place = tmp_path_factory.mktemp("published")
    variants = ("student", "student_ptq", "compact_narrow", "pruned")
    return {variant: write_published(run, variant, f"you/{variant}", place/variant)
            for variant in variants}


def files_in(folder) -> set[str]:
    return {path.name for path in folder.iterdir()}


# The folder


@pytest.mark.parametrize("variant", ["student", "student_ptq", "compact_narrow"])
def test_both_forms_are_one_model(variant, published):
    "Classifier and transformers, with one tokeniser: the same classes, as the record says."
    folder = published[variant]
    info = read_info(folder)
    assert files_in(folder) == BOTH
    assert {*info["files"]} == {"model.onnx", "tokenizer.json", "config.json"}
    texts = [*sentences(320).text[200:]]
    with_classifier = [answer["label"] for answer in Classifier(folder)(texts)]
    with_transformers = [LABELS[i] for i in transformers_logits(folder, texts).argmax(1)]
    same = np.equal(with_classifier, with_transformers).mean()
    assert same == info["metrics"]["float_label_agreement"] >= 0.98
    assert {*with_classifier} == {*LABELS}
    assert f"{same:.1%} of the sentences" in card_of(folder)
    assert ("word embeddings in 4 bits" in card_of(folder)) == (variant == "compact_narrow")


@pytest.mark.parametrize("variant", ["student", "student_ptq", "compact_narrow"])
def test_configuration_and_tokeniser_agree(variant, published):
    folder = published[variant]
    vocabulary = json.loads((folder/"tokenizer.json").read_text())["model"]["vocab"]
    assert len(vocabulary) == json.loads((folder/"config.json").read_text())["vocab_size"]


def test_in_float_both_forms_give_the_same_probabilities(published):
    texts = [*sentences(320).text[200:]]
    scores = [answer["scores"].values() for answer in Classifier(published["student"])(texts)]
    logits = torch.tensor(transformers_logits(published["student"], texts))
    assert np.abs(np.array([[*row] for row in scores]) - logits.softmax(1).numpy()).max() < 1e-4


def test_a_pipeline_cuts_where_the_classifier_does(published):
    from transformers import pipeline
    text = "rose " + "sales "*40 + "fell fell fell"
    classify = pipeline("text-classification", model=str(published["student"]))
    theirs = classify(text, truncation=True)[0]
    ours = Classifier(published["student"])(text)
    assert ours["truncated"]
    assert theirs["label"] == ours["label"]
    assert theirs["score"] == pytest.approx(ours["scores"][ours["label"]], abs=1e-4)


def test_layers_of_unequal_shape_are_published_as_onnx(published):
    assert files_in(published["pruned"]) == FOR_CLASSIFIER
    assert front_matter(published["pruned"])["library_name"] == "onnxruntime"


def test_without_its_own_float_weights_a_compact_model_is_published_as_onnx(run, tmp_path):
    "The float checkpoint of the run was made again since, from other inputs."
    shutil.copytree(run, tmp_path/"run")
    origin = run/"checkpoints/compact_narrow_trimmed"
    again = load_encoder(origin)
    torch.nn.init.zeros_(again.classifier.bias)
    save_encoder(again, tmp_path/"run/checkpoints/compact_narrow_trimmed", technique="again",
                 metrics={}, hyperparameters={}, inputs={"data/train.csv": "another"},
                 tokenizer=load_tokenizer(origin))
    folder = write_published(tmp_path/"run", "compact_narrow", "you/again")
    assert folder == tmp_path/"run/exports/compact_narrow-hub"
    assert files_in(folder) == FOR_CLASSIFIER
    assert "transformers" not in card_of(folder).split("## Origin")[0]


def test_the_card(published):
    card = card_of(published["compact_narrow"])
    block = front_matter(published["compact_narrow"])
    assert block["license"] == "cc-by-nc-sa-3.0"
    assert block["library_name"] == "transformers"
    assert block["base_model"] == "ProsusAI/finbert"
    assert "onnx" in block["tags"]
    (model,) = block["model-index"]
    metrics = [metric["type"] for result in model["results"] for metric in result["metrics"]]
    assert model["name"] == "compact_narrow"
    assert {*metrics} == {"f1", "accuracy"}
    for told in (NOTE, "6.2% of test in train", "# compact_narrow\n",
                 'Classifier("you/compact_narrow")', "`model.safetensors`, for transformers",
                 'pipeline("text-classification", model="you/compact_narrow"'):
        assert told in card, told
    assert hub_stand_in.validated(card) == []


# The command


def publish_command(*words):
    return CliRunner().invoke(cli.app, ["publish", *map(str, words)])


def refused(result) -> str:
    "The message of the `RunError` that ended a command."
    assert isinstance(result.exception, RunError)
    return str(result.exception)


@pytest.mark.parametrize("name", [
    "fast", "you/", "you/a b", "you/../up", "you/x--y", "https://huggingface.co/you/fast",
    "you/" + "x"*100])
def test_names_that_are_not_names(name, run, tmp_path):
    for words in ([name], ["you/fast", "--space", name]):
        result = publish_command(run, "student", "--dry-run", "--out", tmp_path/"out", "--to",
                                 *words)
        assert "not a name on the Hub" in refused(result)
        assert not [*tmp_path.iterdir()]


@pytest.fixture
def no_hub(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", hub_stand_in.closed_port())
    monkeypatch.setenv("HF_HOME", str(tmp_path/"hf"))
    monkeypatch.setenv("HF_TOKEN", "")


def test_a_dry_run_needs_no_hub_and_no_token(run, tmp_path, no_hub):
    words = ["--to", "you/fast", "--space", "you/fast", "--dry-run", "--out", tmp_path/"out"]
    result = publish_command(run, "compact_narrow", *words)
    assert result.exit_code == 0, result.exception
    assert result.stdout.split() == [str(tmp_path/"out"), str(tmp_path/"out-space")]
    assert files_in(tmp_path/"out") == BOTH
    space = tmp_path/"out-space"
    assert json.loads((space/"space.json").read_text()) == {"model": "you/fast"}
    before = contents(space)
    assert publish_command(run, "compact_narrow", *words).exit_code == 0
    assert contents(space) == before  # an earlier one is replaced
    (tmp_path/"out/notes.txt").write_text("mine")
    assert "--out" in refused(publish_command(run, "compact_narrow", *words))
    assert (tmp_path/"out/notes.txt").read_text() == "mine"


@pytest.mark.parametrize("variant, words", [
    ("students", "choose one of"),
    ("student_narrow_int8", "the model is now called compact_narrow")])
def test_models_that_the_run_does_not_have(run, tmp_path, no_hub, variant, words):
    result = publish_command(run, variant, "--to", "you/fast", "--dry-run", "--out",
                             tmp_path/"out")
    assert words in refused(result)


def test_ctrl_c(run, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt
    monkeypatch.setattr(publishing, "publish", interrupted)
    result = publish_command(run, "student", "--to", "you/fast")
    assert result.exit_code == 130
    assert "not published" in result.output


# The Space


def test_the_spaces_folder(tmp_path):
    folder = write_space("you/fast", "you/fast-demo", tmp_path/"space")
    readme = (folder/"README.md").read_text()
    block = yaml.safe_load(readme.split("---\n")[1])
    expected = dict(sdk="gradio", app_file="app.py", models=["you/fast"], title="fast-demo")
    assert {name: block[name] for name in expected} == expected
    assert hub_stand_in.validated(readme) == []
    assert (folder/"requirements.txt").read_text().startswith("fincompress @ git+https://")
    assert (folder/"app.py").read_text() == render("space_app.py.j2")


def gradio_stub(told: list, made: dict):
    "A gradio that only notes what it is given."
    stub = types.ModuleType("gradio")
    stub.Error = type("Error", (Exception,), {})
    stub.Warning = told.append
    stub.Textbox = stub.Label = dict
    stub.Interface = lambda fn, inputs, outputs, **more: made.update(fn=fn, **more)
    return stub


def test_the_spaces_program(published, tmp_path, monkeypatch):
    "It answers, and has messages for what is not a sentence."
    folder = write_space("you/fast", "you/fast-demo", tmp_path/"space")
    write_json(folder/"space.json", dict(model=str(published["compact_narrow"])))
    told = []
    made = {}
    stub = gradio_stub(told, made)
    monkeypatch.setitem(sys.modules, "gradio", stub)
    program = (folder/"app.py").read_text()
    names = {"__name__": "space", "__file__": str(folder/"app.py")}
    exec(compile(program, "app.py", "exec"), names)
    answer = made["fn"]("Sales rose")
    assert max(answer, key=answer.get) == "positive"
    assert [*answer] == LABELS
    assert told == []
    made["fn"]("sales "*100)
    assert "only its beginning" in told[0]
    wrong = {"": "no text", " \n": "no text", None: "no text", "x"*3000: "3,000 characters"}
    for text, words in wrong.items():
        with pytest.raises(stub.Error, match=words):
            made["fn"](text)


# Against the stand-in


PROGRAM = """
import json, os, sys
from fincompress import Classifier
from fincompress.app.deploy.hub_folder import transformers_logits
from fincompress.app.deploy.publish import check_access, publish, upload
from fincompress.lib.run.files import RunError
job = json.load(sys.stdin)
answers = {}

def told(action, *arguments, **more):
    try:
        return action(*arguments, **more)
    except RunError as error:
        return f"refused: {error}"

def go(variant, name, **more):
    said = []
    folder = f"{job['out']}/{variant}"
    return told(publish, job["run"], variant, name, folder=folder, tell=said.append, **more), said

answers["first"] = go("compact_narrow", "you/fast", space="you/fast-demo", private=True)
fetched = Classifier("you/fast")
answers["labels"] = [answer["label"] for answer in fetched(job["texts"])]
answers["files"] = sorted(os.listdir(fetched.model.folder))
answers["logits"] = transformers_logits("you/fast", job["texts"]).tolist()
answers["second"] = go("pruned", "you/fast")
folder = f"{job['out']}/compact_narrow"
for name in ("acme/fast", "acme/model", "you/notes", "you/late", "you/broken", "you/cut"):
    answers[name] = told(upload, folder, name)
with open(f"{folder}/README.md", "w") as file:
    file.write("---\\na: [\\n---\\n")
answers["card"] = told(upload, folder, "you/fast")
token = os.environ.pop("HF_TOKEN")
answers["no token"] = told(check_access)
os.environ["HF_TOKEN"] = "hf_of_nobody"
answers["another token"] = told(check_access)
os.environ.update(HF_ENDPOINT=job["closed"], HF_TOKEN=token)
answers["closed"] = told(check_access)
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def hub_and_answers(run, tmp_path_factory):
    "A process that publishes what it may and what it may not; and the Hub as it is left."
    home = tmp_path_factory.mktemp("hf")
    job = dict(run=str(run), out=str(tmp_path_factory.mktemp("out")),
               texts=[*sentences(30).text], closed=hub_stand_in.closed_port())
    repositories = {"acme/model": {"README.md": b"theirs"},
                    "you/notes": {"README.md": b"mine", "notes.txt": b"mine"}}
    with hub_stand_in.hub(repositories, writable=True) as server:
        environs = environment(server.url, home, HF_TOKEN=hub_stand_in.TOKEN,
                               HF_HUB_DISABLE_IMPLICIT_TOKEN="0")
        result = subprocess.run([sys.executable, "-c", PROGRAM], input=json.dumps(job),
                                env=environs, cwd=ROOT, capture_output=True, text=True,
                                timeout=600)
        assert result.returncode == 0, result.stderr
    return server, json.loads(result.stdout.splitlines()[-1])


def test_what_was_published_opens_by_its_name(hub_and_answers, published):
    "With Classifier, which downloads no float weights, and with transformers."
    _, answers = hub_and_answers
    texts = [*sentences(30).text]
    folder = published["compact_narrow"]
    assert answers["files"] == sorted(FOR_CLASSIFIER - {"README.md"})
    assert answers["labels"] == [answer["label"] for answer in Classifier(folder)(texts)]
    assert {*answers["labels"]} == {*LABELS}
    assert np.allclose(answers["logits"], transformers_logits(folder, texts), atol=1e-5)


def test_one_commit_each(hub_and_answers):
    "The model, then the Space; files that a second publication does not have are removed."
    server, answers = hub_and_answers
    nothing, said = answers["first"]
    assert nothing is None, nothing
    assert [text.startswith("http") for text in said] == [False, False, True, True]
    names = [name for name, _ in server.commits]
    assert names == ["you/fast", "spaces/you/fast-demo", "you/fast"]
    assert {*server.commits[0][1]} == BOTH
    assert {*server.commits[1][1]} == {"README.md", "app.py", "requirements.txt", "space.json"}
    assert {*server.repositories["you/fast"]} == FOR_CLASSIFIER | {".gitattributes"}
    space = dict(server.created)["spaces/you/fast-demo"]
    assert space in (dict(sdk="gradio", visibility="private"), dict(sdk="gradio", private=True))


FAILURES = {
    "acme/fast": "rights to create a model under the namespace",
    "acme/model": "a name of your own",
    "you/notes": "holds something that FinCompress did not publish",
    "you/late": "changed at the same time",
    "you/broken": "the same command again is safe",
    "you/cut": "check the connection",
    "card": "Invalid metadata",
    "no token": "needs a token",
    "another token": "does not accept the token",
    "closed": "cannot be reached",
}


@pytest.mark.parametrize("case", FAILURES)
def test_what_fails_says_so_and_changes_nothing(case, hub_and_answers):
    server, answers = hub_and_answers
    assert answers[case].startswith("refused: ")
    assert FAILURES[case] in answers[case]
    if "/" in case:
        former = {"acme/model": {"README.md"}, "you/notes": {"README.md", "notes.txt"}}
        assert case in answers[case]
        left = {*server.repositories.get(case, ())} - {".gitattributes"}
        assert left == former.get(case, set())
