"""A stand-in for the Hugging Face Hub on 127.0.0.1.

It has data sets with invented sentences, a tiny FinBERT, a place to publish, and servers that fail.
"""
import base64
import contextlib
import hashlib
import io
import json
import socket
import threading
import urllib.parse
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

REVISION = "0123456789abcdef0123456789abcdef01234567"
AGREED = [
    ("Åkerlund Oyj's profit rose to 7 mn euro", "positive"),
    ("Write to orders@example.com for the pump list", "neutral"),
    ("Fictional Café closed two shops at a loss", "negative"),
    ("Nordwind doubled its order book", "positive"),
]
DOUBTFUL = [
    ("Brick & Söhne may sell its quay", "neutral"),
    ("Margins at Quarrystone thinned a little", "negative"),
]
HEADER = "sentence,snippets,target,sentiment_score,aspects,format,label\n"
FIQA = {
    "train.csv": [
        "Zebrafone jumps after a bold forecast,\"['jumps']\",Zebrafone,0.71,"
        "\"['Stock/Price']\",headline,2",
        "Zebrafone jumps while Kettleworks sinks,\"['sinks']\",Kettleworks,-0.64,"
        "\"['Stock/Price']\",post,0",
        "Zebrafone jumps while Kettleworks sinks,\"['jumps']\",Zebrafone,0.5,"
        "\"['Stock/Price']\",post,2",
    ],
    "validation.csv": [
        "Kettleworks names a new auditor,['names'],Kettleworks,0.05,['Corporate'],headline,1",
    ],
    "test.csv": ["Traders shun Kettleworks,['shun'],Kettleworks,-0.33,['Stock'],post,0"],
}
OWN_README = """---
dataset_info:
  features:
  - {name: text, dtype: string}
  - name: label
    dtype: {class_label: {names: {"0": positive, "1": negative, "2": neutral}}}
---
Invented sentences, with the order of FinBERT's labels.
"""
LETTERS = "abcdefghijklmnopqrstuvwxyz"
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PIECES = [*SPECIAL, *LETTERS, *(f"##{c}" for c in LETTERS), "profit", "loss", "rose", "fell"]
FINBERT_LABELS = ("positive", "negative", "neutral")
SHAPE = dict(vocab_size=len(PIECES), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
             intermediate_size=32, max_position_embeddings=64)


def phrasebank_archive(agreed=AGREED, doubtful=DOUBTFUL) -> bytes:
    "The archive of takala/financial_phrasebank: Latin-1, one `sentence@label` a line."
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, rows in (("AllAgree", agreed), ("50Agree", doubtful)):
            lines = "".join(f"{text}@{label}\r\n" for text, label in rows)
            member = f"FinancialPhraseBank-v1.0/Sentences_{name}.txt"
            archive.writestr(member, lines.encode("latin-1"))
        archive.writestr("FinancialPhraseBank-v1.0/README.txt", "An invented archive.")
        archive.writestr("__MACOSX/FinancialPhraseBank-v1.0/._README.txt", b"\0\5\26\7")
    return buffer.getvalue()


def fiqa_files() -> dict[str, bytes]:
    "The three tables of pauri32/fiqa-2018."
    return {name: (HEADER + "\n".join(rows) + "\n").encode() for name, rows in FIQA.items()}


def own_files() -> dict[str, bytes]:
    "A data set of a user, with two splits and class names in its README."
    train = b"text,label\nSales rose,0\nNA,2\n"
    test = b"text,label\nSales fell,1\n"
    return {"README.md": OWN_README.encode(), "train.csv": train, "test.csv": test}


def finbert():
    "A tiny random BERT in ProsusAI/finbert's shape: positive, negative, neutral."
    import torch
    from transformers import BertConfig, BertForSequenceClassification
    torch.manual_seed(5)
    config = BertConfig(**SHAPE, num_labels=len(FINBERT_LABELS))
    model = BertForSequenceClassification(config).eval()
    torch.nn.init.normal_(model.classifier.weight)
    torch.nn.init.normal_(model.classifier.bias)
    return model


def finbert_files() -> dict[str, bytes]:
    "The files of ProsusAI/finbert: a `.bin` and a vocab.txt, no safetensors, no tokenizer.json."
    import torch
    weights = io.BytesIO()
    torch.save(dict(finbert().state_dict()), weights)
    config = dict(
        architectures=["BertForSequenceClassification"], model_type="bert", **SHAPE,
        id2label=dict(enumerate(FINBERT_LABELS)),
        label2id={name: i for i, name in enumerate(FINBERT_LABELS)},
        hidden_act="gelu", layer_norm_eps=1e-12, type_vocab_size=2, pad_token_id=0,
        hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1, initializer_range=0.02)
    kinds = ("unk", "sep", "pad", "cls", "mask")
    special = {f"{kind}_token": f"[{kind.upper()}]" for kind in kinds}
    tokenizer = dict(do_lower_case=True, model_max_length=512, **special)
    tables = {"config.json": config, "tokenizer_config.json": tokenizer,
              "special_tokens_map.json": special}
    files = {name: json.dumps(value).encode() for name, value in tables.items()}
    vocabulary = ("\n".join(PIECES) + "\n").encode()
    return {**files, "vocab.txt": vocabulary, "pytorch_model.bin": weights.getvalue()}


def everything() -> dict[str, dict[str, bytes]]:
    "The repositories of a Hub in good order: name (data sets begin with datasets/) → files."
    archive = {"data/FinancialPhraseBank-v1.0.zip": phrasebank_archive()}
    return {
        "datasets/takala/financial_phrasebank": archive,
        "datasets/pauri32/fiqa-2018": fiqa_files(),
        "datasets/you/headlines": own_files(),
        "ProsusAI/finbert": finbert_files(),
    }


TOKEN = "hf_of_you" # belongs to "you", who may write below that name alone
LARGE = (".onnx", ".safetensors")


def validated(card: str) -> list[str]:
    "What the Hub would object to in a README's first block."
    import yaml
    try:
        block = yaml.safe_load(card.split("---\n")[1])
    except (IndexError, yaml.YAMLError) as error:
        return [str(error)]
    if isinstance(block, dict) and block.get("sdk", "gradio") == "gradio":
        return []
    return ["no block, or an unknown sdk"]


class Answering(BaseHTTPRequestHandler):
    "Requests and answers of any kind."
    protocol_version = "HTTP/1.1"

    def log_message(self, *_): pass

    def answer(self, content, status=200, kind="application/octet-stream", **headers):
        self.send_response(status)
        headers = {"content-length": len(content), "content-type": kind, **headers}
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def json(self, value, status=200, **headers):
        self.answer(json.dumps(value).encode(), status, "application/json", **headers)

    def missing(self, code):
        self.json({"error": "not found"}, 404, x_error_code=code)

    def refuse(self, status, message, **more):
        self.json({"error": message, **more}, status, x_error_message=message)

    def body(self):
        "The request's content, sent in one piece or in chunks."
        if self.headers.get("transfer-encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("content-length", 0)))
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content


class Writing(Answering):
    "The Hub's routes for publishing: a new repository, uploads, and a commit as a whole."
    def known(self):
        return self.headers.get("authorization") == f"Bearer {TOKEN}"

    def write(self, path, body) -> bool:
        "Answer a request that publishes; False if this is none."
        words = path.split("/")
        if path == "api/whoami-v2":
            self.who_am_i()
        elif path == "api/repos/create":
            self.create(**json.loads(body))
        elif path == "api/validate-yaml":
            self.validate(json.loads(body)["content"])
        elif words[0] == "uploads":
            self.upload(words, body)
        elif path.endswith(".git/info/lfs/objects/batch"):
            self.offer_uploads(path, json.loads(body)["objects"])
        elif len(words) > 4 and words[0] == "api" and words[4] in ("preupload", "commit"):
            self.change(words, body)
        else:
            return False
        return True

    def who_am_i(self):
        if self.known():
            self.json(dict(type="user", name="you", fullname="You", auth={}))
        else:
            self.refuse(401, "Invalid username or password.")

    def validate(self, card):
        problems = [dict(message=problem) for problem in validated(card)]
        self.json(dict(errors=problems, warnings=[]), 400 if problems else 200)

    def upload(self, words, body):
        "A large file; a name with \"cut\" loses its connection on the way."
        if "cut" in words[2]:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
        else:
            self.server.large[words[-1]] = body
            self.answer(b"")

    def offer_uploads(self, path, objects):
        name = path.removesuffix(".git/info/lfs/objects/batch")
        offers = []
        for wanted in objects:
            upload = dict(href=f"{self.server.url}/uploads/{name}/{wanted['oid']}")
            offers.append(dict(oid=wanted["oid"], size=wanted["size"],
                               actions=dict(upload=upload)))
        self.json(dict(transfer="basic", objects=offers))

    def change(self, words, body):
        "What a commit will need to upload, or the commit itself."
        name = "/".join(words[2:4] if words[1] == "models" else words[1:4])
        if not self.known() or words[2] != "you":
            self.refuse(403, f"Forbidden: you don't have the rights to write in {name}")
        elif words[4] == "commit":
            self.commit(name, [json.loads(line) for line in body.splitlines()])
        else:
            self.json(dict(files=[self.upload_mode(file) for file in json.loads(body)["files"]]))

    def upload_mode(self, file):
        mode = "lfs" if file["path"].endswith(LARGE) else "regular"
        return dict(path=file["path"], uploadMode=mode, shouldIgnore=False)

    def create(self, name, organization=None, type="model", **more):
        place = ("" if type == "model" else f"{type}s/") + f"{organization or 'you'}/{name}"
        if place in self.server.repositories:
            url = f"{self.server.url}/{place}"
            return self.refuse(409, f"You already created this {type} repo", url=url)
        if not self.known() or organization not in (None, "you"):
            return self.refuse(403, f"You don't have the rights to create a {type} "
                                    f'under the namespace "{organization}"')
        self.server.repositories[place] = {".gitattributes": b"*.onnx filter=lfs\n"}
        self.server.created.append((place, more))
        self.json(dict(url=f"{self.server.url}/{place}", name=f"{organization}/{name}", id="0"))

    def commit(self, name, lines):
        "All of a commit's lines or none; a name with \"late\" comes too late, \"broken\" fails."
        files = dict(self.server.repositories[name])
        revision = self.server.revisions.get(name, REVISION)
        if "broken" in name:
            return self.refuse(500, "Internal error")
        if "late" in name or lines[0]["value"].get("parentCommit", revision) != revision:
            return self.refuse(412, "A commit has happened since. Please refresh and try again.")
        for line in lines[1:]:
            self.apply(line["key"], line["value"], files)
        revision = hashlib.sha1(repr(sorted(files)).encode() + revision.encode()).hexdigest()
        self.server.repositories[name] = files
        self.server.revisions[name] = revision
        self.server.commits.append((name, sorted(line["value"]["path"] for line in lines[1:])))
        url = f"{self.server.url}/{name}/commit/{revision}"
        self.json(dict(commitUrl=url, commitOid=revision, hookOutput=""))

    def apply(self, key, value, files):
        "Carry out one line of a commit."
        if key == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif key == "lfsFile":
            files[value["path"]] = self.server.large[value["oid"]]
        else:
            del files[value["path"]]


class Hub(Writing):
    "The Hub's routes for reading: files, facts of a repository, its tree, facts of some paths."
    def facts(self, files, name):
        oid = hashlib.sha1(files[name]).hexdigest()
        return dict(type="file", path=name, size=len(files[name]), oid=oid)

    def route(self):
        body = self.body()
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path).strip("/")
        self.server.asked.append((self.command, path))
        if self.server.mood == "busy":
            return self.answer(b"busy", 503)
        if self.server.mood == "foreign":
            return self.wfile.write(b"220 mail.example.com ready\r\n")
        if not path:
            return self.answer(b"a stand-in")
        if self.server.mood == "silent":
            return self.server.stopped.wait(900)
        if not (self.server.writable and self.write(path, body)):
            self.read(path, body)

    def read(self, path, body):
        "Answer a request that reads from a repository."
        def starts(name):
            return f"{path}/".startswith((f"{name}/", f"api/{name}/", f"api/models/{name}/"))

        repository = next(filter(starts, self.server.repositories), None)
        if repository is None:
            return self.missing("RepoNotFound")
        files = self.server.repositories[repository]
        what, _, where = path.partition(repository)[2].strip("/").partition("/")
        place = where.partition("/")[2]
        if what == "resolve":
            self.file(repository, files, place)
        elif what == "tree":
            inside = [name for name in files if name.startswith(f"{place}/" if place else "")]
            found = [self.facts(files, name) for name in inside]
            self.json(found) if found else self.missing("EntryNotFound")
        elif what == "paths-info":
            wanted = self.wanted_paths(body)
            self.json([self.facts(files, name) for name in files if name in wanted])
        elif what in ("", "revision"):
            self.repository_facts(repository, files)
        else:
            self.missing("EntryNotFound")

    def file(self, repository, files, place):
        if place not in files:
            return self.missing("EntryNotFound")
        tag = hashlib.sha1(files[place]).hexdigest()
        revision = self.server.revisions.get(repository, REVISION)
        self.answer(files[place], etag=f'"{tag}"', x_repo_commit=revision, accept_ranges="bytes")

    def wanted_paths(self, body):
        if body.startswith(b"{"):
            return json.loads(body)["paths"]
        return urllib.parse.parse_qs(body.decode())["paths"]

    def repository_facts(self, repository, files):
        name = repository.removeprefix("datasets/").removeprefix("spaces/")
        times = dict.fromkeys(("createdAt", "lastModified"), "2024-01-01T00:00:00.000Z")
        revision = self.server.revisions.get(repository, REVISION)
        self.json(dict(_id="0", id=name, modelId=name, sha=revision, private=False, gated=False,
                       disabled=False, tags=[], downloads=0, likes=0, **times,
                       siblings=[{"rfilename": file} for file in files]))

    do_GET = do_HEAD = do_POST = do_PUT = route


@contextlib.contextmanager
def hub(repositories=None, mood="good", writable=False):
    """A Hub with these repositories.

    `TOKEN` may publish to it if it is writable. In other moods it is busy (503), foreign (speaks
    no HTTP), or silent (greets, and sends no file).
    """
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.daemon_threads = True
    server.repositories = repositories or {}
    server.mood = mood
    server.writable = writable
    server.stopped = threading.Event()
    server.asked = []
    server.created = []
    server.commits = []
    server.large = {}
    server.revisions = {}
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs=dict(poll_interval=0.05))
    thread.start()
    try:
        yield server
    finally:
        server.stopped.set()
        server.shutdown()
        thread.join()
        server.server_close()


@contextlib.contextmanager
def hanging_port():
    "The address of a port that accepts connections and never sends a word."
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def closed_port() -> str:
    "The address of a port on which no program listens."
    with hanging_port() as url:
        return url
