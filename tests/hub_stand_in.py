"""A stand-in for the Hugging Face Hub on 127.0.0.1: two data sets with invented sentences, a tiny FinBERT, a place to publish, and servers that fail."""
import base64, contextlib, hashlib, io, json, socket, threading, urllib.parse, zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

REVISION = "0123456789abcdef0123456789abcdef01234567"
AGREED = [("Åkerlund Oyj's profit rose to 7 mn euro", "positive"), ("Write to orders@example.com for the pump list", "neutral"),
          ("Fictional Café closed two shops at a loss", "negative"), ("Nordwind doubled its order book", "positive")]
DOUBTFUL = [("Brick & Söhne may sell its quay", "neutral"), ("Margins at Quarrystone thinned a little", "negative")]
HEADER = "sentence,snippets,target,sentiment_score,aspects,format,label\n"
FIQA = {"train.csv": ["Zebrafone jumps after a bold forecast,\"['jumps']\",Zebrafone,0.71,\"['Stock/Price']\",headline,2",
                      "Zebrafone jumps while Kettleworks sinks,\"['sinks']\",Kettleworks,-0.64,\"['Stock/Price']\",post,0",
                      "Zebrafone jumps while Kettleworks sinks,\"['jumps']\",Zebrafone,0.5,\"['Stock/Price']\",post,2"],
        "validation.csv": ["Kettleworks names a new auditor,['names'],Kettleworks,0.05,['Corporate'],headline,1"],
        "test.csv": ["Traders shun Kettleworks,['shun'],Kettleworks,-0.33,['Stock'],post,0"]}
LETTERS = "abcdefghijklmnopqrstuvwxyz"
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{c}" for c in LETTERS), "profit", "loss", "rose", "fell"]
FINBERT_LABELS = ("positive", "negative", "neutral")
SHAPE = dict(vocab_size=len(PIECES), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, max_position_embeddings=64)


def phrasebank_archive(agreed=AGREED, doubtful=DOUBTFUL) -> bytes:
    "The archive of takala/financial_phrasebank, as far as it is read: Latin-1, one `sentence@label` a line."
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, rows in (("AllAgree", agreed), ("50Agree", doubtful)):
            lines = "".join(f"{text}@{label}\r\n" for text, label in rows)
            archive.writestr(f"FinancialPhraseBank-v1.0/Sentences_{name}.txt", lines.encode("latin-1"))
        archive.writestr("FinancialPhraseBank-v1.0/README.txt", "An invented archive.")
        archive.writestr("__MACOSX/FinancialPhraseBank-v1.0/._README.txt", b"\0\5\26\7")
    return buffer.getvalue()


def fiqa_files() -> dict[str, bytes]:
    "The three tables of pauri32/fiqa-2018."
    return {name: (HEADER + "\n".join(rows) + "\n").encode() for name, rows in FIQA.items()}


def finbert():
    "A tiny random BERT in ProsusAI/finbert's shape; its outputs are positive, negative, neutral, in this order."
    import torch
    from transformers import BertConfig, BertForSequenceClassification
    torch.manual_seed(5)
    model = BertForSequenceClassification(BertConfig(**SHAPE, num_labels=len(FINBERT_LABELS))).eval()
    torch.nn.init.normal_(model.classifier.weight), torch.nn.init.normal_(model.classifier.bias)
    return model


def finbert_files() -> dict[str, bytes]:
    "What ProsusAI/finbert consists of: its label order, a `.bin`, a vocab.txt, neither safetensors nor tokenizer.json."
    import torch
    weights = io.BytesIO()
    torch.save(dict(finbert().state_dict()), weights)
    labels = dict(id2label=dict(enumerate(FINBERT_LABELS)), label2id={name: i for i, name in enumerate(FINBERT_LABELS)})
    config = dict(architectures=["BertForSequenceClassification"], model_type="bert", **SHAPE, **labels, hidden_act="gelu", layer_norm_eps=1e-12,
                  type_vocab_size=2, pad_token_id=0, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1, initializer_range=0.02)
    special = {f"{kind}_token": f"[{kind.upper()}]" for kind in ("unk", "sep", "pad", "cls", "mask")}
    tokenizer = dict(do_lower_case=True, model_max_length=512, **special)
    tables = {"config.json": config, "tokenizer_config.json": tokenizer, "special_tokens_map.json": special}
    files = {name: json.dumps(value).encode() for name, value in tables.items()}
    return {**files, "vocab.txt": ("\n".join(PIECES) + "\n").encode(), "pytorch_model.bin": weights.getvalue()}


def everything() -> dict[str, dict[str, bytes]]: # repository (data sets begin with "datasets/") → file → content
    "The repositories of a Hub in good order."
    archive = {"data/FinancialPhraseBank-v1.0.zip": phrasebank_archive()}
    return {"datasets/takala/financial_phrasebank": archive, "datasets/pauri32/fiqa-2018": fiqa_files(), "ProsusAI/finbert": finbert_files()}


TOKEN = "hf_of_you" # belongs to "you", who may write below that name alone
LARGE = (".onnx", ".safetensors")


def validated(card: str) -> list[str]:
    "What the Hub would object to in a README's first block."
    import yaml
    try: block = yaml.safe_load(card.split("---\n")[1])
    except (IndexError, yaml.YAMLError) as error: return [str(error)]
    return [] if isinstance(block, dict) and block.get("sdk", "gradio") == "gradio" else ["no block, or an unknown sdk"]


class Writing:
    "The Hub's routes for publishing: who am I, a new repository, how to upload what, large files, and a commit that takes effect as a whole."
    def refuse(self, status, message, **more): self.answer(json.dumps({"error": message, **more}).encode(), status, "application/json", x_error_message=message)

    def known(self): return self.headers.get("authorization") == f"Bearer {TOKEN}"

    def body(self):
        "The request's content, sent in one piece or in chunks."
        if self.headers.get("transfer-encoding", "").lower() != "chunked": return self.rfile.read(int(self.headers.get("content-length", 0)))
        content = b""
        while size := int(self.rfile.readline(), 16): content, _ = content + self.rfile.read(size), self.rfile.readline()
        self.rfile.readline()
        return content

    def write(self, path, body) -> bool: # whether the request was one of these
        "Answer a request that publishes."
        server, words = self.server, path.split("/")
        if path == "api/whoami-v2": self.json(dict(type="user", name="you", fullname="You", auth={})) if self.known() else self.refuse(401, "Invalid username or password.")
        elif path == "api/repos/create": self.create(**json.loads(body))
        elif path == "api/validate-yaml":
            problems = [dict(message=problem) for problem in validated(json.loads(body)["content"])]
            self.answer(json.dumps(dict(errors=problems, warnings=[])).encode(), 400 if problems else 200, "application/json")
        elif words[0] == "uploads": # of a large file; a name with "cut" loses its connection on the way
            if "cut" in words[2]: self.close_connection = True; self.connection.shutdown(socket.SHUT_RDWR)
            else: server.large[words[-1]] = body; self.answer(b"")
        elif path.endswith(".git/info/lfs/objects/batch"):
            name = path.removesuffix(".git/info/lfs/objects/batch")
            each = [dict(oid=o["oid"], size=o["size"], actions=dict(upload=dict(href=f"{server.url}/uploads/{name}/{o['oid']}"))) for o in json.loads(body)["objects"]]
            self.json(dict(transfer="basic", objects=each))
        elif len(words) > 4 and words[0] == "api" and words[4] in ("preupload", "commit"):
            name = "/".join(words[2:4] if words[1] == "models" else words[1:4])
            if not self.known() or words[2] != "you": self.refuse(403, f"Forbidden: you don't have the rights to write in {name}")
            elif words[4] == "preupload": self.json(dict(files=[dict(path=f["path"], uploadMode="lfs" if f["path"].endswith(LARGE) else "regular", shouldIgnore=False) for f in json.loads(body)["files"]]))
            else: self.commit(name, [json.loads(line) for line in body.splitlines()])
        else: return False
        return True

    def create(self, name, organization=None, type="model", **more):
        place = ("" if type == "model" else f"{type}s/") + f"{organization or 'you'}/{name}"
        if place in self.server.repositories: return self.refuse(409, f"You already created this {type} repo", url=f"{self.server.url}/{place}")
        if not self.known() or organization not in (None, "you"): return self.refuse(403, f'You don\'t have the rights to create a {type} under the namespace "{organization}"')
        self.server.repositories[place] = {".gitattributes": b"*.onnx filter=lfs\n"}
        self.server.created.append((place, more))
        self.json(dict(url=f"{self.server.url}/{place}", name=f"{organization}/{name}", id="0"))

    def commit(self, name, lines):
        "All of a commit's lines or none of them. In a name with \"late\" somebody else is quicker, in one with \"broken\" the Hub fails."
        files, revision = dict(self.server.repositories[name]), self.server.revisions.get(name, REVISION)
        if "broken" in name: return self.refuse(500, "Internal error")
        if "late" in name or lines[0]["value"].get("parentCommit", revision) != revision: return self.refuse(412, "A commit has happened since. Please refresh and try again.")
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file": files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile": files[value["path"]] = self.server.large[value["oid"]]
            else: del files[value["path"]]
        revision = hashlib.sha1(repr(sorted(files)).encode() + revision.encode()).hexdigest()
        self.server.repositories[name], self.server.revisions[name] = files, revision
        self.server.commits.append((name, sorted(line["value"]["path"] for line in lines[1:])))
        self.json(dict(commitUrl=f"{self.server.url}/{name}/commit/{revision}", commitOid=revision, hookOutput=""))


class Hub(Writing, BaseHTTPRequestHandler):
    "The Hub's routes that its libraries ask for: files, a repository's facts, its tree, facts of some paths, and those for publishing."
    protocol_version = "HTTP/1.1"

    def log_message(self, *_): pass

    def answer(self, content, status=200, kind="application/octet-stream", **headers):
        self.send_response(status)
        headers = {"content-length": len(content), "content-type": kind, **headers}
        for name, value in headers.items(): self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD": self.wfile.write(content)

    def json(self, value): self.answer(json.dumps(value).encode(), kind="application/json")

    def missing(self, code): self.answer(b'{"error": "not found"}', 404, "application/json", x_error_code=code)

    def facts(self, files, name): return dict(type="file", path=name, size=len(files[name]), oid=hashlib.sha1(files[name]).hexdigest())

    def route(self):
        body = self.body()
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path).strip("/")
        self.server.asked.append((self.command, path))
        if self.server.mood == "busy": return self.answer(b"busy", 503)
        if self.server.mood == "foreign": return self.wfile.write(b"220 mail.example.com ready\r\n")
        if not path: return self.answer(b"a stand-in")
        if self.server.mood == "silent": return self.server.stopped.wait(900)
        if self.server.writable and self.write(path, body): return
        def starts(name): return f"{path}/".startswith((f"{name}/", f"api/{name}/", f"api/models/{name}/"))
        repository = next(filter(starts, self.server.repositories), None)
        if repository is None: return self.missing("RepoNotFound")
        files, rest = self.server.repositories[repository], path.partition(repository)[2].strip("/")
        what, _, where = rest.partition("/")
        folder = where.partition("/")[2]
        if what == "resolve":
            if folder not in files: return self.missing("EntryNotFound")
            return self.answer(files[folder], etag=f'"{hashlib.sha1(files[folder]).hexdigest()}"', x_repo_commit=self.server.revisions.get(repository, REVISION), accept_ranges="bytes")
        if what == "tree":
            found = [self.facts(files, name) for name in files if name.startswith(f"{folder}/" if folder else "")]
            return self.json(found) if found else self.missing("EntryNotFound")
        if what == "paths-info":
            wanted = json.loads(body)["paths"] if body.startswith(b"{") else urllib.parse.parse_qs(body.decode())["paths"]
            return self.json([self.facts(files, name) for name in files if name in wanted])
        if what in ("", "revision"):
            name = repository.removeprefix("datasets/").removeprefix("spaces/")
            times = dict.fromkeys(("createdAt", "lastModified"), "2024-01-01T00:00:00.000Z")
            return self.json(dict(_id="0", id=name, modelId=name, sha=self.server.revisions.get(repository, REVISION), private=False, gated=False, disabled=False, tags=[], downloads=0,
                                  likes=0, **times, siblings=[{"rfilename": file} for file in files]))
        self.missing("EntryNotFound")

    do_GET = do_HEAD = do_POST = do_PUT = route


@contextlib.contextmanager
def hub(repositories=None, mood="good", writable=False):
    "A Hub with these repositories, to which `TOKEN` may publish if it is writable; or one that is busy (503), foreign (speaks no HTTP), or silent (greets, sends no file)."
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.repositories, server.mood, server.asked, server.stopped, server.daemon_threads = repositories or {}, mood, [], threading.Event(), True
    server.writable, server.large, server.revisions, server.created, server.commits = writable, {}, {}, [], []
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs=dict(poll_interval=0.05))
    thread.start()
    try: yield server
    finally: server.stopped.set(), server.shutdown(), thread.join(), server.server_close()


@contextlib.contextmanager
def hanging_port():
    "The address of a port that accepts connections and never says a word."
    with socket.create_server(("127.0.0.1", 0)) as server: yield f"http://127.0.0.1:{server.getsockname()[1]}"


def closed_port() -> str:
    "The address of a port that nobody listens on."
    with hanging_port() as url: return url
