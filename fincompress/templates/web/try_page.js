/**
 * The box of the page *Try it*: a sentence or lines in, answers of the ticked models out.
 *
 * A page has one box, in one or several `[data-try]`. Parts that it lacks are not filled in.
 *
 * @typedef {import("./classifier.js").Model} Model
 * @typedef {import("./classifier.js").Answer} Answer
 * @typedef {{title: string, folder: string, kind: string}} Choice
 */
import { explain, openFloor, openModel, whyNot } from "./classifier.js";

const LINES = 5000; // that are answered at a time
const SHOWN = 100; // of them in the table; the file has all
const PAUSE = 200; // milliseconds after a key before the sentence is answered again
const PATIENCE = 40; // milliseconds of work before the page may draw
const PALE = 0.05; // an effect this small never gets the strongest colour

/** @param {number} milliseconds */
const wait = (milliseconds) => new Promise((resume) => { setTimeout(resume, milliseconds); });

/** @param {unknown} error */
const messageOf = (error) => (error instanceof Error ? error.message : String(error));

/**
 * A new element with text or elements in it.
 * @param {string} name of the tag, and of a class after a dot
 * @param {...(Node | string)} inside
 */
function make(name, ...inside) {
    const [tag, style] = name.split(".");
    const element = document.createElement(tag);
    if (style) element.className = style;
    element.append(...inside);
    return element;
}

// The models of a page, each opened once

/** @type {Map<string, Promise<Model>>} */
const opened = new Map();

/**
 * @param {Choice} choice
 * @param {import("./classifier.js").Progress} tell
 */
function modelOf({ folder, kind }, tell) {
    const known = opened.get(folder);
    if (known) return known;
    const opening = (async () => {
        const model = await (kind === "floor" ? openFloor : openModel)(folder, tell);
        await model.answer("the first call is slower than the others");
        return model;
    })();
    opened.set(folder, opening);
    opening.catch(() => opened.delete(folder));
    return opening;
}

// What is shown

/** @param {Answer} answer */
const spoken = ({ label, scores }) => `${label} ${scores[label].toFixed(2)}`;

/** @param {Answer} answer */
function bars({ scores }) {
    return make("div.try-bars", ...Object.entries(scores).flatMap(([label, share]) => {
        const bar = make("i");
        bar.style.width = `${100 * share}%`;
        bar.style.background = `var(--${label})`;
        const track = make("span.try-track", bar);
        track.setAttribute("aria-hidden", "true");
        return [make("span", label), track, make("span.try-number", share.toFixed(3))];
    }));
}

/**
 * @param {Choice} choice
 * @param {Answer} answer
 * @param {number} milliseconds
 */
function answerRow(choice, answer, milliseconds) {
    const name = make("th", choice.title);
    name.setAttribute("scope", "row");
    const label = make("td.try-label", answer.label);
    if (answer.truncated) label.append(make("small", "read in part: too long for it"));
    return make("tr", name, label, make("td", bars(answer)),
        make("td.try-number", `${milliseconds.toFixed(1)} ms`));
}

/** @param {string[]} titles */
function headRow(titles) {
    return make("thead", make("tr", ...titles.map((title) => {
        const cell = make("th", title);
        cell.setAttribute("scope", "col");
        return cell;
    })));
}

/**
 * A word's colour: the label's own where the word speaks for it.
 * @param {string} label
 * @param {number} effect
 * @param {number} largest
 */
function tint(label, effect, largest) {
    const share = Math.round(60 * Math.abs(effect) / Math.max(largest, PALE));
    const colour = effect > 0 ? label : "against";
    return `color-mix(in srgb, var(--${colour}) ${share}%, transparent)`;
}

/** @param {Awaited<ReturnType<typeof explain>>} found */
function wordList({ label, words }) {
    const largest = Math.max(...words.map(({ effect }) => Math.abs(effect)));
    return make("p.try-words", ...words.map(({ word, effect }) => {
        const points = Math.abs(effect) < 0.0005 ? "0" : (100 * effect).toFixed(1);
        const number = (effect >= 0.0005 ? `+${points}` : points).replace("-", "−");
        const shown = make("span", word, " ", make("small", number));
        shown.style.background = tint(label, effect, largest);
        return shown;
    }));
}

/** @param {string} text */
const quoted = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);

/**
 * The answers as CSV, with the columns of `fincompress classify --csv`.
 * @param {string[]} labels
 * @param {{text: string, answer: Answer}[]} rows
 */
function csv(labels, rows) {
    const lines = rows.map(({ text, answer }) => [quoted(text), answer.label,
        ...labels.map((label) => answer.scores[label].toFixed(4)), answer.truncated ? "yes" : ""]);
    return [["text", "label", ...labels, "truncated"], ...lines]
        .map((line) => `${line.join(",")}\n`).join("");
}

/**
 * @param {string} name of the file
 * @param {string} content
 */
function save(name, content) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([content], { type: "text/csv" }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

// A box

class Box {
    constructor() {
        this.turn = 0; // answers of an earlier turn are not shown
        this.linesTurn = 0; // the same for lines
        this.rows = /** @type {{text: string, answer: Answer}[]} */ ([]);
        this.form = /** @type {HTMLFormElement} */ (this.part("form"));
        this.sentence = /** @type {HTMLTextAreaElement} */ (this.part("sentence"));
        this.listen();
        const problem = whyNot();
        this.say(problem);
        for (const root of this.all("[data-try]")) root.hidden = false;
        for (const button of /** @type {HTMLButtonElement[]} */ (this.all("[data-try] button")))
            button.disabled = Boolean(problem);
    }

    /** @param {string} selector */
    all(selector) {
        return /** @type {HTMLElement[]} */ (Array.from(document.querySelectorAll(selector)));
    }

    /**
     * @param {string} name
     * @returns {HTMLElement | null}
     */
    part(name) {
        return document.querySelector(`[data-part=${name}]`);
    }

    listen() {
        this.form.addEventListener("submit", (event) => {
            event.preventDefault();
            this.answer();
        });
        this.sentence.addEventListener("keydown", (event) => {
            if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
            event.preventDefault();
            this.form.requestSubmit();
        });
        this.sentence.addEventListener("input", () => this.answerSoon());
        this.form.addEventListener("change", (event) => {
            if (event.target !== this.sentence) this.answerSoon();
        });
        for (const button of this.all("button[data-text]"))
            button.addEventListener("click", () => {
                this.sentence.value = button.dataset.text ?? "";
                this.sentence.scrollIntoView({ block: "center" });
                this.answer();
            });
        this.part("answer-lines")?.addEventListener("click", () => this.answerLines());
        this.part("save")?.addEventListener("click", () => {
            const [{ answer }] = this.rows;
            save("answers.csv", csv(Object.keys(answer.scores), this.rows));
        });
    }

    /** @returns {Choice[]} */
    choices() {
        const given = this.all("[data-try] :is(input[name=model]:checked, input[type=hidden])");
        return /** @type {HTMLInputElement[]} */ (given).map(({ value, dataset }) =>
            ({ folder: value, title: dataset.title ?? "", kind: dataset.kind ?? "" }));
    }

    /**
     * @param {string} text a problem, or nothing
     * @param {string} where it is shown
     */
    say(text, where = "problem") {
        const place = this.part(where);
        if (place) place.textContent = text;
    }

    /**
     * @param {number} done
     * @param {number} total 0: there is nothing to wait for
     * @param {string} what
     * @param {string} where it is shown
     */
    progress(done, total, what = "", where = "progress") {
        const place = this.part(where);
        if (!place) return;
        place.hidden = total === 0;
        const [bar, words] = place.children;
        /** @type {HTMLProgressElement} */ (bar).value = total ? done / total : 0;
        words.textContent = what;
    }

    /**
     * @param {Choice} choice
     * @param {string} where the progress is shown
     */
    async open(choice, where = "progress") {
        const size = (/** @type {number} */ bytes) => (bytes / 1e6).toFixed(1);
        try {
            return await modelOf(choice, (loaded, total) => this.progress(loaded, total,
                `${choice.title}: ${size(loaded)} of ${size(total)} MB`, where));
        } finally {
            this.progress(0, 0, "", where);
        }
    }

    /** Answer after a pause in typing, if the first answer was asked for. */
    async answerSoon() {
        if (!opened.size) return;
        const turn = ++this.turn;
        await wait(PAUSE);
        if (turn === this.turn && this.sentence.value.trim()) this.answer();
    }

    async answer() {
        const turn = ++this.turn;
        const text = this.sentence.value;
        try {
            if (!text.trim()) throw new Error("Type a sentence first.");
            await this.show(text, turn);
        } catch (error) {
            if (turn === this.turn) this.say(messageOf(error));
        }
    }

    /**
     * @param {string} text
     * @param {number} turn
     */
    async show(text, turn) {
        const choices = this.choices();
        if (!choices.length) throw new Error("Tick at least one model.");
        const rows = [];
        const heard = [];
        for (const choice of choices) {
            const model = await this.open(choice);
            const begun = performance.now();
            const answer = await model.answer(text);
            rows.push(answerRow(choice, answer, performance.now() - begun));
            heard.push(`${choice.title}: ${spoken(answer)}`);
        }
        if (turn !== this.turn) return;
        this.say("");
        const head = headRow(["Model", "Answer", "Probabilities", "Time"]);
        this.part("answers")?.replaceChildren(make("table", head, make("tbody", ...rows)));
        const status = this.part("heard");
        if (status) status.textContent = heard.join("; ");
        await this.showWords(choices[0], text, turn);
    }

    /**
     * @param {Choice} choice
     * @param {string} text
     * @param {number} turn
     */
    async showWords(choice, text, turn) {
        const place = this.part("words");
        if (!place) return;
        const pause = async () => {
            await wait(0);
            if (turn !== this.turn) throw new Error("an older turn");
        };
        const found = await explain(await this.open(choice), text, pause);
        const about = `${choice.title} says ${found.label}. Below each word: by how many points of `
            + "a hundred the probability of this falls without it."
            + (found.more ? ` These are the first ${found.words.length} words.` : "");
        place.replaceChildren(make("p", about), wordList(found));
    }

    async answerLines() {
        const turn = ++this.linesTurn;
        const place = /** @type {HTMLTextAreaElement} */ (this.part("lines"));
        const texts = place.value.split(/\r\n|\r|\n/).map((line) => line.trim()).filter(Boolean);
        try {
            if (!texts.length) throw new Error("There is no line with text.");
            if (texts.length > LINES)
                throw new Error(`These are ${texts.length} lines, and ${LINES} are answered at `
                    + "a time: split them.");
            const [choice] = this.choices();
            if (!choice) throw new Error("Tick at least one model.");
            await this.computeLines(choice, texts, turn);
        } catch (error) {
            if (turn === this.linesTurn) this.say(messageOf(error), "lines-problem");
        } finally {
            if (turn === this.linesTurn) this.progress(0, 0, "", "lines-progress");
        }
    }

    /**
     * @param {Choice} choice
     * @param {string[]} texts
     * @param {number} turn
     */
    async computeLines(choice, texts, turn) {
        const model = await this.open(choice, "lines-progress");
        const rows = [];
        let drawn = performance.now();
        for (const text of texts) {
            rows.push({ text, answer: await model.answer(text) });
            if (performance.now() - drawn < PATIENCE) continue;
            this.progress(rows.length, texts.length, `${rows.length} of ${texts.length} lines`,
                "lines-progress");
            await wait(0);
            drawn = performance.now();
            if (turn !== this.linesTurn) return;
        }
        this.say("", "lines-problem");
        this.rows = rows;
        this.showLines(choice, model.labels);
    }

    /**
     * @param {Choice} choice
     * @param {string[]} labels
     */
    showLines(choice, labels) {
        const counts = labels.map((label) =>
            `${this.rows.filter(({ answer }) => answer.label === label).length} ${label}`);
        const more = this.rows.length > SHOWN
            ? ` The first ${SHOWN} are shown; the file has all.` : "";
        const about = make("p", `${choice.title}, ${this.rows.length} lines: `
            + `${counts.join(", ")}.${more}`);
        const rows = this.rows.slice(0, SHOWN).map(({ text, answer }) => make("tr",
            make("td", text), make("td.try-label", answer.label),
            ...labels.map((label) => make("td.try-number", answer.scores[label].toFixed(3)))));
        const head = headRow(["Text", "Answer", ...labels]);
        this.part("lines-about")?.replaceChildren(about);
        this.part("lines-table")?.replaceChildren(
            make("table.try-many", head, make("tbody", ...rows)));
        const button = this.part("save");
        if (button) button.hidden = false;
    }
}

new Box();
