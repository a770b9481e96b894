"""What is published: one folder for Classifier and for transformers, one commit, and nothing where the Hub fails; against a stand-in for the Hub."""
import json, shutil, string, subprocess, sys, types
from pathlib import Path

import numpy as np, pytest, torch, yaml
from transformers import BertTokenizerFast
from typer.testing import CliRunner

import hub_stand_in
from fincompress import Classifier
from fincompress.app import cli
from fincompress.app.deploy import publish as publishing
from fincompress.app.deploy.hub_folder import transformers_logits, write_published
from fincompress.app.deploy.publish import APP, write_space
from fincompress.lib.run.checkpoint import load_tokenizer, read_info
from fincompress.lib.onnx.checkpoint import save_onnx
from fincompress.lib.run.files import RunError, write_csv, write_json
from fincompress.lib.text.vocabulary import trim_tokenizer
from fincompress.pruning import remove_units
from fincompress.ptq import quantize, save_int8, with_pieces
from fincompress.student import load_encoder, save_encoder
from test_export import DECIDING, NOTE, WORDS, contents, front_matter, sentences, trained
from test_hub import ROOT, environment

FOR_CLASSIFIER = {"model.onnx", "tokenizer.json", "config.json", "checkpoint_info.json", "README.md"}
BOTH = FOR_CLASSIFIER | {"model.safetensors", "tokenizer_config.json"}
LABELS = ["negative", "neutral", "positive"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "A run with a student in float, in int8, deployed with fewer word pieces, and with layers of unequal shape."
    folder, table = tmp_path_factory.mktemp("home")/"run", sentences(320)
    train, val = table[:200], table[200:].reset_index(drop=True)
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *string.ascii_lowercase, *(f"##{c}" for c in string.ascii_lowercase), *DECIDING, *WORDS]
    tokenizer = BertTokenizerFast(vocab={piece: i for i, piece in enumerate(pieces)})
    for name, part in dict(train=train, val=val).items(): write_csv(folder/f"data/{name}.csv", part)
    write_json(folder/"data/data_card.json", dict(source="original_data", synthetic=False, splits=dict(train=200, val=120, test=77),
               licences=dict(phrasebank="CC BY-NC-SA 3.0, Malo et al. 2014"), leakage=[dict(split="test", other="train", share=0.0625)]))
    write_json(folder/"run.json", dict(seed=42))
    write_json(folder/"stages/01_teacher.json", dict(parameters=dict(backbone="ProsusAI/finbert"), summary=dict(notes=[NOTE])))
    student, record = trained(tokenizer, train, val, 1), dict(technique="made up", hyperparameters=dict(max_length=16))
    more = dict(metrics={}, inputs={}, tokenizer=tokenizer)
    save_encoder(student, folder/"checkpoints/student", **record, **more)
    save_int8(quantize(student), folder/"checkpoints/student_ptq", **record, **more)
    save_encoder(remove_units(trained(tokenizer, train[:40], val[:20], 2), {"heads": {1: [0]}}), folder/"checkpoints/pruned", **record, **more)
    kept = [*range(len(pieces) - 2)]
    few, spelt = with_pieces(student, kept), trim_tokenizer(tokenizer, kept)
    save_encoder(few, folder/"checkpoints/student_trimmed", **record, **(more | dict(tokenizer=spelt)))
    save_onnx(quantize(few), folder/"checkpoints/student_int8", spelt, val.text, val.label, 16, inputs={}, **record)
    return folder


@pytest.fixture(scope="module")
def published(run, tmp_path_factory):
    place = tmp_path_factory.mktemp("published")
    return {variant: write_published(run, variant, f"you/{variant}", place/variant) for variant in ("student", "student_ptq", "student_int8", "pruned")}


@pytest.mark.parametrize("variant", ["student", "student_ptq", "student_int8"])
def test_both_forms_are_one_model(variant, run, published):
    "Classifier and transformers, on the same tokeniser: the same classes, and what the record says of them."
    folder, texts = published[variant], [*sentences(320).text[200:]]
    assert {path.name for path in folder.iterdir()} == BOTH and {*read_info(folder)["files"]} == {"model.onnx", "tokenizer.json", "config.json"}
    onnx, logits = [answer["label"] for answer in Classifier(folder)(texts)], transformers_logits(folder, texts)
    same = np.mean([label == LABELS[i] for label, i in zip(onnx, logits.argmax(1))])
    assert same == read_info(folder)["metrics"]["float_label_agreement"] >= 0.98 and {*onnx} == {*LABELS}
    assert f"{same:.1%} of the sentences" in (folder/"README.md").read_text()
    assert len(json.loads((folder/"tokenizer.json").read_text())["model"]["vocab"]) == json.loads((folder/"config.json").read_text())["vocab_size"]
    if variant == "student": assert np.abs(np.array([[*a["scores"].values()] for a in Classifier(folder)(texts)]) - torch.tensor(logits).softmax(1).numpy()).max() < 1e-4


def test_a_pipeline_cuts_where_the_classifier_does(published):
    from transformers import pipeline
    text = "rose " + "sales "*40 + "fell fell fell"
    answer = pipeline("text-classification", model=str(published["student"]))(text, truncation=True)[0]
    mine = Classifier(published["student"])(text)
    assert mine["truncated"] and answer["label"] == mine["label"] and answer["score"] == pytest.approx(mine["scores"][mine["label"]], abs=1e-4)


def test_what_transformers_cannot_hold_is_published_as_onnx(run, published, tmp_path):
    "Layers of unequal shape; and a deployed model beside which other weights stand, so that no float form of it exists."
    assert {path.name for path in published["pruned"].iterdir()} == FOR_CLASSIFIER and front_matter(published["pruned"])["library_name"] == "onnxruntime"
    shutil.copytree(run, tmp_path/"run")
    again = load_encoder(run/"checkpoints/student_trimmed")
    torch.nn.init.zeros_(again.classifier.bias)
    save_encoder(again, tmp_path/"run/checkpoints/student_trimmed", technique="again", metrics={}, hyperparameters={}, inputs={"data/train.csv": "another"}, tokenizer=load_tokenizer(run/"checkpoints/student_trimmed"))
    folder = write_published(tmp_path/"run", "student_int8", "you/again")
    assert folder == tmp_path/"run/exports/student_int8-hub" and {path.name for path in folder.iterdir()} == FOR_CLASSIFIER
    assert "transformers" not in (folder/"README.md").read_text().replace("`transformers", "").split("## How it was made")[0]


def test_the_card(published):
    card, block = (published["student_int8"]/"README.md").read_text(), front_matter(published["student_int8"])
    assert (block["license"], block["library_name"], block["base_model"]) == ("cc-by-nc-sa-3.0", "transformers", "ProsusAI/finbert") and "onnx" in block["tags"]
    assert block["model-index"][0]["name"] == "student_int8" and {m["type"] for r in block["model-index"][0]["results"] for m in r["metrics"]} == {"f1", "accuracy"}
    for told in (NOTE, "6.2% of test in train", "# student_int8\n", 'Classifier("you/student_int8")', 'pipeline("text-classification", model="you/student_int8"', "`model.safetensors`, for transformers"): assert told in card, told
    assert hub_stand_in.validated(card) == []


@pytest.mark.parametrize("name", ["fast", "you/", "you/a b", "you/../up", "you/x--y", "https://huggingface.co/you/fast", "you/" + "x"*100])
def test_names_that_are_none(name, run, tmp_path):
    for words in ([name], ["you/fast", "--space", name]):
        result = CliRunner().invoke(cli.app, ["publish", str(run), "student", "--dry-run", "--out", str(tmp_path/"out"), "--to", *words])
        assert isinstance(result.exception, RunError) and "no name for the Hub" in str(result.exception) and not [*tmp_path.iterdir()]


def test_a_dry_run_needs_no_hub_and_no_token(run, tmp_path, monkeypatch):
    for name, value in dict(HF_ENDPOINT=hub_stand_in.closed_port(), HF_HOME=str(tmp_path/"hf"), HF_TOKEN="").items(): monkeypatch.setenv(name, value)
    words = ["publish", str(run), "student_int8", "--to", "you/fast", "--space", "you/fast", "--dry-run", "--out", str(tmp_path/"out")]
    result = CliRunner().invoke(cli.app, words)
    assert result.exit_code == 0 and result.stdout.split() == [str(tmp_path/"out"), str(tmp_path/"out-space")], result.exception
    assert {path.name for path in (tmp_path/"out").iterdir()} == BOTH and json.loads((tmp_path/"out-space/space.json").read_text()) == {"model": "you/fast"}
    before = contents(tmp_path/"out-space")
    assert CliRunner().invoke(cli.app, words).exit_code == 0 and contents(tmp_path/"out-space") == before # an earlier one is replaced
    (tmp_path/"out"/"notes.txt").write_text("mine")
    result = CliRunner().invoke(cli.app, words)
    assert isinstance(result.exception, RunError) and "--out" in str(result.exception) and (tmp_path/"out/notes.txt").read_text() == "mine"
    missing = CliRunner().invoke(cli.app, ["publish", str(run), "students", *words[3:]])
    assert isinstance(missing.exception, RunError) and "choose one of" in str(missing.exception)


def test_ctrl_c(run, monkeypatch):
    def interrupted(*_): raise KeyboardInterrupt
    monkeypatch.setattr(publishing, "publish", interrupted)
    result = CliRunner().invoke(cli.app, ["publish", str(run), "student", "--to", "you/fast"])
    assert result.exit_code == 130 and "was not published" in result.output


def test_the_space(published, tmp_path, monkeypatch):
    "Its program, with a gradio that only notes what it is given: answers, and messages for what is no sentence."
    folder = write_space("you/fast", "you/fast-demo", tmp_path/"space")
    block = yaml.safe_load((folder/"README.md").read_text().split("---\n")[1])
    assert (block["sdk"], block["app_file"], block["models"], block["title"]) == ("gradio", "app.py", ["you/fast"], "fast-demo") and hub_stand_in.validated((folder/"README.md").read_text()) == []
    assert (folder/"requirements.txt").read_text().startswith("fincompress @ git+https://") and (folder/"app.py").read_text() == APP
    write_json(folder/"space.json", dict(model=str(published["student_int8"])))
    told, made = [], {}
    stub = types.ModuleType("gradio")
    stub.Error, stub.Warning, stub.Textbox, stub.Label = type("Error", (Exception,), {}), told.append, dict, dict
    stub.Interface = lambda fn, inputs, outputs, **more: made.update(fn=fn, **more)
    monkeypatch.setitem(sys.modules, "gradio", stub)
    exec(compile(APP, str(folder/"app.py"), "exec"), {"__name__": "space", "__file__": str(folder/"app.py")})
    answer = made["fn"]("Sales rose")
    assert max(answer, key=answer.get) == "positive" and [*answer] == LABELS and told == []
    made["fn"]("sales "*100)
    assert "only its beginning" in told[0]
    for wrong, words in {"": "no text", " \n": "no text", None: "no text", "x"*3000: "3,000 characters"}.items():
        with pytest.raises(stub.Error, match=words): made["fn"](wrong)


PROGRAM = """
import json, os, sys
from fincompress import Classifier
from fincompress.app.deploy.hub_folder import transformers_logits
from fincompress.app.deploy.publish import check_access, publish, upload
from fincompress.lib.run.files import RunError
job = json.load(sys.stdin)
def told(action, *arguments, **more):
    try: return action(*arguments, **more)
    except RunError as error: return f"refused: {error}"
def go(variant, name, **more):
    said = []
    return told(publish, job["run"], variant, name, folder=f"{job['out']}/{variant}", tell=said.append, **more), said

answers = dict(first=go("student_int8", "you/fast", space="you/fast-demo", private=True))
fetched = Classifier("you/fast")
answers.update(labels=[answer["label"] for answer in fetched(job["texts"])], files=sorted(os.listdir(fetched.model.folder)))
answers["logits"] = transformers_logits("you/fast", job["texts"]).tolist()
answers["second"] = go("pruned", "you/fast")
folder = f"{job['out']}/student_int8"
for name in ("acme/fast", "acme/model", "you/notes", "you/late", "you/broken", "you/cut"): answers[name] = told(upload, folder, name)
with open(f"{folder}/README.md", "w") as file: file.write("---\\na: [\\n---\\n")
answers["card"] = told(upload, folder, "you/fast")
token = os.environ.pop("HF_TOKEN")
answers["no token"] = told(check_access)
os.environ["HF_TOKEN"] = "hf_of_nobody"
answers["foreign token"] = told(check_access)
os.environ.update(HF_ENDPOINT=job["closed"], HF_TOKEN=token)
answers["closed"] = told(check_access)
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def hub_and_answers(run, tmp_path_factory):
    "A process that publishes what it may and what it may not, and fetches back; and the Hub as it is left."
    repositories, home = {"acme/model": {"README.md": b"theirs"}, "you/notes": {"README.md": b"mine", "notes.txt": b"mine"}}, tmp_path_factory.mktemp("hf")
    job = dict(run=str(run), out=str(tmp_path_factory.mktemp("out")), texts=[*sentences(30).text], closed=hub_stand_in.closed_port())
    with hub_stand_in.hub(repositories, writable=True) as server:
        environs = environment(server.url, home, HF_TOKEN=hub_stand_in.TOKEN, HF_HUB_DISABLE_IMPLICIT_TOKEN="0")
        result = subprocess.run([sys.executable, "-c", PROGRAM], input=json.dumps(job), env=environs, cwd=ROOT, capture_output=True, text=True, timeout=600)
        assert result.returncode == 0, result.stderr
    return server, json.loads(result.stdout.splitlines()[-1])


def test_what_was_published_opens_by_its_name(hub_and_answers, published):
    "With Classifier, which fetches what it needs and no float weights, and with transformers."
    _, answers = hub_and_answers
    texts = [*sentences(30).text]
    assert answers["files"] == sorted(FOR_CLASSIFIER - {"README.md"})
    assert answers["labels"] == [answer["label"] for answer in Classifier(published["student_int8"])(texts)] and {*answers["labels"]} == {*LABELS}
    assert np.allclose(answers["logits"], transformers_logits(published["student_int8"], texts), atol=1e-5)


def test_one_commit_each(hub_and_answers):
    "All files of the model, then those of the Space; what a second publication has not is removed with it."
    server, answers = hub_and_answers
    (none, said), names = answers["first"], [name for name, _ in server.commits]
    assert none is None and [text.startswith("http") for text in said] == [False, False, True, True], said
    assert names == ["you/fast", "spaces/you/fast-demo", "you/fast"]
    assert {*server.commits[0][1]} == BOTH and {*server.commits[1][1]} == {"README.md", "app.py", "requirements.txt", "space.json"}
    assert {*server.repositories["you/fast"]} == FOR_CLASSIFIER | {".gitattributes"}
    assert ("spaces/you/fast-demo", dict(sdk="gradio", visibility="private")) in server.created or ("spaces/you/fast-demo", dict(sdk="gradio", private=True)) in server.created


@pytest.mark.parametrize("case, words", [
    ("acme/fast", "rights to create a model under the namespace"), ("acme/model", "a name of your own"), ("you/notes", "holds something that FinCompress did not publish"),
    ("you/late", "somebody else changed it"), ("you/broken", "the same command again is safe"), ("you/cut", "check the connection"), ("card", "Invalid metadata"),
    ("no token", "needs a token"), ("foreign token", "does not accept the token"), ("closed", "cannot be reached")])
def test_what_fails_says_so_and_changes_nothing(case, words, hub_and_answers):
    server, answers = hub_and_answers
    assert answers[case].startswith("refused: ") and words in answers[case], answers[case]
    former = {"acme/model": {"README.md"}, "you/notes": {"README.md", "notes.txt"}}.get(case, set())
    if "/" in case: assert case in answers[case] and {*server.repositories.get(case, ())} - {".gitattributes"} == former
