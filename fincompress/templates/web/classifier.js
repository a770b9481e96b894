/**
 * A compact model in a page: a text in, its sentiment out, as `fincompress.Classifier` gives it.
 *
 *     import { openModel } from "./classifier.js";
 *     const classify = await openModel("model/");
 *     const { label, scores } = await classify.answer("Sales fell");
 *
 * Beside this file lies the folder `runtime`. Nothing is asked of another server.
 *
 * @typedef {{path: string, bytes: number, sha256: string}} StoredFile
 * @typedef {{label: string, scores: Record<string, number>, truncated: boolean}} Answer
 * @typedef {{word: string, effect: number}} WordEffect
 * @typedef {(loaded: number, total: number) => void} Progress
 * @typedef {Encoder | Floor} Model
 */

export const CHARACTERS = 20_000; // of a text that are read, as in `Classifier`
export const WORDS = 60; // of a text whose effect is computed

const CACHE = "fincompress"; // the browser's store of files
const RUNTIME = new URL("runtime/", import.meta.url);
// The smallest module with a SIMD instruction: i8x16.splat, then i8x16.popcnt.
const SIMD = [0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0,
    65, 0, 253, 15, 253, 98, 11];

/** Why no model can run in this browser, in a sentence; empty where one can. */
export function whyNot() {
    if (!globalThis.isSecureContext || !globalThis.crypto?.subtle)
        return "This page must come over https, or from this computer: "
            + "elsewhere a browser does not let it check the model's files.";
    if (!globalThis.WebAssembly || !WebAssembly.validate(new Uint8Array(SIMD)))
        return "This browser has no WebAssembly with SIMD, which the model needs: "
            + "a version of the last years has it.";
    return "";
}

// Files

/** @param {BufferSource} bytes */
async function sha256(bytes) {
    const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
    return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** The browser's store, or nothing where it has none, as in some private windows. */
async function openCache() {
    try {
        return await caches.open(CACHE);
    } catch {
        return null;
    }
}

/**
 * What a server answers; an error says what did not come.
 * @param {URL} url
 */
async function get(url) {
    const response = await fetch(url, { cache: "no-cache" }).catch(() => null);
    if (!response?.ok)
        throw new Error(`${url.pathname} did not come: `
            + (response ? `the server says ${response.status}.` : "is there a connection?"));
    return response;
}

/**
 * A file's bytes from the network, with progress.
 * @param {URL} url
 * @param {Progress} tell
 * @param {number} total bytes, which the server may not say
 */
async function download(url, tell, total) {
    const { body } = await get(url);
    if (!body) throw new Error(`${url.pathname} is empty.`);
    const parts = [];
    let loaded = 0;
    const reader = body.getReader();
    for (let step = await reader.read(); !step.done; step = await reader.read()) {
        parts.push(step.value);
        loaded += step.value.length;
        tell(loaded, total);
    }
    return new Uint8Array(await new Blob(parts).arrayBuffer());
}

/**
 * A file's bytes, from the browser's store if they are there, and always checked.
 * @param {URL} folder
 * @param {StoredFile} file
 * @param {Progress} tell
 */
async function checkedFile(folder, file, tell) {
    const url = new URL(file.path, folder);
    const cache = await openCache();
    const kept = await cache?.match(url);
    if (kept) {
        const bytes = new Uint8Array(await kept.arrayBuffer());
        if ((await sha256(bytes)) === file.sha256) {
            tell(file.bytes, file.bytes);
            return bytes;
        }
    }
    const bytes = await download(url, tell, file.bytes);
    if ((await sha256(bytes)) !== file.sha256)
        throw new Error(`${url.pathname} is damaged: its SHA-256 is not the recorded one. `
            + "Load the page again.");
    try {
        await cache?.put(url, new Response(bytes));
    } catch {
        // a full store: the file is loaded again next time
    }
    return bytes;
}

/** @param {URL} url */
async function readJson(url) {
    return (await get(url)).json();
}

/**
 * Several files at once, with their common progress.
 * @param {{folder: URL, file: StoredFile}[]} wanted
 * @param {Progress} tell
 */
function checkedFiles(wanted, tell) {
    const loaded = wanted.map(() => 0);
    const total = wanted.reduce((sum, { file }) => sum + file.bytes, 0);
    return Promise.all(wanted.map(({ folder, file }, i) => checkedFile(folder, file, (bytes) => {
        loaded[i] = bytes;
        tell(loaded.reduce((sum, each) => sum + each, 0), total);
    })));
}

// Texts

const SPACE = "[\\p{White_Space}\\x1c-\\x1f]"; // as Python's strip() has it
const OUTER_SPACE = new RegExp(`^${SPACE}+|${SPACE}+$`, "gu");
const INNER_SPACE = new RegExp(`${SPACE}+`, "u");

/**
 * The part of a text that is read, and whether it was cut.
 * @param {string} text
 * @returns {[string, boolean]}
 */
export function readablePart(text) {
    const stripped = String(text).replace(OUTER_SPACE, "");
    const start = Array.from(stripped.slice(0, 2 * CHARACTERS + 2));
    const whole = start.length <= CHARACTERS;
    const part = whole ? stripped : start.slice(0, CHARACTERS).join("");
    return [part.replace(/\p{Surrogate}/gu, "?"), !whole];
}

/** @param {ArrayLike<number>} logits */
function softmax(logits) {
    const highest = Math.max(...Array.from(logits));
    const exponents = Array.from(logits, (logit) => Math.exp(logit - highest));
    const sum = exponents.reduce((total, each) => total + each, 0);
    return exponents.map((each) => each / sum);
}

/**
 * An answer from probabilities.
 * @param {string[]} labels
 * @param {number[]} chances
 * @param {boolean} truncated
 * @returns {Answer}
 */
function answerOf(labels, chances, truncated) {
    const scores = Object.fromEntries(labels.map((label, i) => [label, chances[i]]));
    return { label: labels[chances.indexOf(Math.max(...chances))], scores, truncated };
}

/**
 * How far the label's probability falls without each word, each left out once.
 * @param {Model} model
 * @param {string} text
 * @param {() => Promise<void>} [pause] awaited before each word; what it throws ends the work
 * @returns {Promise<{label: string, words: WordEffect[], more: boolean}>}
 */
export async function explain(model, text, pause = async () => {}) {
    const all = readablePart(text)[0].split(INNER_SPACE).filter(Boolean);
    const [whole] = await model.chances([all.join(" ")]);
    const best = whole.indexOf(Math.max(...whole));
    const words = [];
    for (const [i, word] of all.slice(0, WORDS).entries()) {
        await pause();
        const [chances] = await model.chances([all.filter((_, j) => i !== j).join(" ")]);
        words.push({ word, effect: whole[best] - chances[best] });
    }
    return { label: model.labels[best], words, more: all.length > WORDS };
}

// The encoder

/** @typedef {typeof import("onnxruntime-web")} Runtime */
/** @typedef {typeof import("@huggingface/tokenizers")} Tokenizers */

/** @type {Promise<{ort: Runtime, tokenizers: Tokenizers}> | undefined} */
let libraries;

/**
 * ONNX Runtime on one thread, and the tokeniser; loaded once a page.
 * @param {Uint8Array<ArrayBuffer> | undefined} wasm not needed where they are loaded
 */
function openLibraries(wasm) {
    libraries ??= (async () => {
        if (!wasm) throw new Error("ONNX Runtime did not load: load the page again.");
        const [ort, tokenizers] = await Promise.all(
            ["ort.js", "tokenizers.js"].map((name) => import(new URL(name, RUNTIME).href)));
        ort.env.wasm.numThreads = 1;
        ort.env.wasm.wasmBinary = wasm.buffer;
        ort.env.logLevel = "error";
        return { ort, tokenizers };
    })();
    libraries.catch(() => { libraries = undefined; });
    return libraries;
}

/** A compact model: word pieces, a graph, three probabilities. */
class Encoder {
    /**
     * @param {any} record of model.json
     * @param {any} tokenizer of the library
     * @param {any} session of ONNX Runtime
     * @param {Runtime} ort
     */
    constructor(record, tokenizer, session, ort) {
        this.name = /** @type {string} */ (record.name);
        this.labels = /** @type {string[]} */ (record.labels);
        this.maxLength = /** @type {number} */ (record.max_length);
        this.tokenizer = tokenizer;
        this.session = session;
        this.ort = ort;
        this.last = /** @type {Promise<any>} */ (Promise.resolve()); // a session takes turns
        const mark = "a";
        const inside = tokenizer.encode(mark, { add_special_tokens: false }).ids;
        const all = tokenizer.encode(mark).ids;
        const place = all.indexOf(inside[0]);
        this.before = all.slice(0, place);
        this.after = all.slice(place + inside.length);
    }

    /**
     * Word pieces of a readable text, and whether the text was cut.
     * @param {string} text
     * @returns {{ids: number[], truncated: boolean}}
     */
    encode(text) {
        const { ids } = this.tokenizer.encode(text, { add_special_tokens: false });
        const most = this.maxLength - this.before.length - this.after.length;
        return { ids: [...this.before, ...ids.slice(0, most), ...this.after],
            truncated: ids.length > most };
    }

    /**
     * Probabilities of a batch of word pieces.
     * @param {number[][]} rows
     * @returns {Promise<number[][]>}
     */
    compute(rows) {
        const turn = this.last.then(() => this.run(rows));
        this.last = turn.catch(() => {});
        return turn;
    }

    /** @param {number[][]} rows */
    async run(rows) {
        const length = Math.max(1, ...rows.map((row) => row.length));
        const ids = new BigInt64Array(rows.length * length);
        const mask = new BigInt64Array(rows.length * length);
        rows.forEach((row, i) => row.forEach((id, j) => {
            ids[i * length + j] = BigInt(id);
            mask[i * length + j] = 1n;
        }));
        const shape = [rows.length, length];
        const given = { input_ids: new this.ort.Tensor("int64", ids, shape),
            attention_mask: new this.ort.Tensor("int64", mask, shape) };
        const { logits } = await this.session.run(given, ["logits"]);
        const classes = this.labels.length;
        return rows.map((_, i) => softmax(logits.data.subarray(i * classes, (i + 1) * classes)));
    }

    /**
     * The answer for one text, computed alone, as in `Classifier`.
     * @param {string} text
     */
    async answer(text) {
        const [part, long] = readablePart(text);
        if (!part) throw new Error("the text is empty");
        const { ids, truncated } = this.encode(part);
        const [chances] = await this.compute([ids]);
        return answerOf(this.labels, chances, truncated || long);
    }

    /**
     * Probabilities of several texts, computed together.
     * @param {string[]} texts
     */
    chances(texts) {
        return this.compute(texts.map((text) => this.encode(text).ids));
    }

    /** Give the memory back. */
    async close() {
        await this.last;
        await this.session.release();
    }
}

/**
 * Open a model from the folder that `fincompress export … --to web` wrote.
 * @param {string | URL} folder relative to the page
 * @param {Progress} [tell]
 * @returns {Promise<Encoder>}
 */
export async function openModel(folder, tell = () => {}) {
    const problem = whyNot();
    if (problem) throw new Error(problem);
    const place = new URL(folder, globalThis.document?.baseURI ?? import.meta.url);
    const [record, runtime] = await Promise.all([
        readJson(new URL("model.json", place)), readJson(new URL("runtime.json", RUNTIME))]);
    const wanted = [{ folder: place, file: record.graph },
        { folder: place, file: record.tokenizer }];
    if (!libraries) wanted.push({ folder: RUNTIME, file: runtime.wasm });
    const [graph, tokenizerFile, wasm] = await checkedFiles(wanted, tell);
    const { ort, tokenizers } = await openLibraries(wasm);
    const vocabulary = JSON.parse(new TextDecoder().decode(tokenizerFile));
    const tokenizer = new tokenizers.Tokenizer(vocabulary, {});
    const session = await ort.InferenceSession.create(graph, { executionProviders: ["wasm"] });
    return new Encoder(record, tokenizer, session, ort);
}

// The floor

const LINK = /https?:\/\/[^\p{White_Space}\x1c-\x1f]+/gu;
const TOKEN = /[\p{L}\p{N}_]+|[^\p{White_Space}\x1c-\x1f\p{L}\p{N}_]/gu;

/**
 * Word n-grams, as scikit-learn's analyser "word" makes them.
 * @param {string} text in lower case
 * @param {number} longest
 */
function wordNgrams(text, longest) {
    const words = text.match(TOKEN) ?? [];
    const found = [...words];
    for (let size = 2; size <= longest; size++)
        for (let i = 0; i + size <= words.length; i++)
            found.push(words.slice(i, i + size).join(" "));
    return found;
}

/**
 * Character n-grams within words, as scikit-learn's analyser "char_wb" makes them.
 * @param {string} text in lower case
 * @param {number} longest
 */
function characterNgrams(text, longest) {
    const found = [];
    for (const word of text.split(INNER_SPACE).filter(Boolean)) {
        const letters = Array.from(` ${word} `);
        for (let size = 2; size <= longest; size++) {
            found.push(letters.slice(0, size).join(""));
            if (letters.length <= size) break;
            for (let i = 1; i + size <= letters.length; i++)
                found.push(letters.slice(i, i + size).join(""));
        }
    }
    return found;
}

/** A linear model on TF-IDF: what a compact model has to beat. */
class Floor {
    /**
     * @param {any} record of model.json
     * @param {string} lines an n-gram each, with its idf and a weight a label
     */
    constructor(record, lines) {
        this.name = /** @type {string} */ (record.name);
        this.labels = /** @type {string[]} */ (record.labels);
        this.bias = /** @type {number[]} */ (record.bias);
        this.longest = [record.word_ngrams, record.char_ngrams];
        const rows = lines.trimEnd().split("\n").map((line) => {
            const [ngram, ...numbers] = line.split("\t");
            return /** @type {[string, number[]]} */ ([ngram, numbers.map(Number)]);
        });
        this.tables = [new Map(rows.slice(0, record.words)), new Map(rows.slice(record.words))];
    }

    /** @param {string} text */
    logits(text) {
        const plain = text.replace(LINK, "").toLowerCase();
        const kinds = [wordNgrams(plain, this.longest[0]), characterNgrams(plain, this.longest[1])];
        const logits = [...this.bias];
        kinds.forEach((ngrams, kind) => {
            const counts = new Map();
            for (const ngram of ngrams)
                if (this.tables[kind].has(ngram)) counts.set(ngram, (counts.get(ngram) ?? 0) + 1);
            const values = Array.from(counts, ([ngram, count]) => {
                const [idf, ...weights] = /** @type {number[]} */ (this.tables[kind].get(ngram));
                return { value: (1 + Math.log(count)) * idf, weights };
            });
            const norm = Math.hypot(...values.map(({ value }) => value)) || 1;
            for (const { value, weights } of values)
                weights.forEach((weight, label) => { logits[label] += weight * value / norm; });
        });
        return logits;
    }

    /** @param {string[]} texts */
    async chances(texts) {
        return texts.map((text) => softmax(this.logits(text)));
    }

    /** @param {string} text */
    async answer(text) {
        const [part, long] = readablePart(text);
        if (!part) throw new Error("the text is empty");
        const [chances] = await this.chances([part]);
        return answerOf(this.labels, chances, long);
    }

    async close() {}
}

/**
 * Open the linear model from its folder.
 * @param {string | URL} folder relative to the page
 * @param {Progress} [tell]
 * @returns {Promise<Floor>}
 */
export async function openFloor(folder, tell = () => {}) {
    const problem = whyNot();
    if (problem) throw new Error(problem);
    const place = new URL(folder, globalThis.document?.baseURI ?? import.meta.url);
    const record = await readJson(new URL("model.json", place));
    const [bytes] = await checkedFiles([{ folder: place, file: record.floor }], tell);
    return new Floor(record, new TextDecoder().decode(bytes));
}
