// @ts-check
// Sliders on three ideas of the study. Everything is computed here, from numbers of the run.

import {
    coloured, domainOf, drawFloor, drawToFit, frame, html, newId, pageData, path, plainNumber,
    scoreText, svg,
} from "./live_figures.js";

/**
 * @typedef {import("./live_figures.js").Shades} Shades
 * @typedef {import("./live_figures.js").Pair} Pair
 * @typedef {import("./live_figures.js").Frame} Frame
 * @typedef {{name: string, shades: Shades}} Named
 * @typedef {object} Temperature
 * @property {Named[]} classes
 * @property {{name: string, logits: number[]}[]} answers of the teacher
 * @property {Named} scaled the line with the factor T²
 * @property {Named} plain the line without it
 * @property {number | null} recipe the run's own temperature
 * @typedef {{name: string, shades: Shades, row: number[], levels: number}} Bits
 * @typedef {object} Pruned a score after one round
 * @property {string} name of the criterion
 * @property {Shades | null} shades null: it is in the table alone
 * @property {number} share of the heads removed
 * @property {number} left heads
 * @property {number} score
 * @property {number | null} low
 * @property {number | null} high
 * @property {number | null} before recovery
 * @property {number | null} delta against the control
 * @property {number | null} delta_low
 * @property {number | null} delta_high
 * @typedef {object} Pruning
 * @property {number} heads
 * @property {{name: string, score: number} | null} floor
 * @property {Pruned[][]} rounds
 */

/**
 * A slider with its name and value.
 * @param {string} label
 * @param {{min: number, max: number, step: number, value: number}} range
 * @param {(value: number) => string} text
 * @param {(value: number) => void} moved
 */
function slider(label, range, text, moved) {
    const id = newId();
    const input = html("input", { type: "range", id, ...range });
    const output = html("output", { for: id });
    const show = () => {
        output.textContent = text(Number(input.value));
        input.setAttribute("aria-valuetext", output.textContent);
    };
    input.addEventListener("input", () => {
        show();
        moved(Number(input.value));
    });
    show();
    const element = html("div", { class: "live-slider" },
        html("label", { for: id }, label), input, output);
    const set = (/** @type {number} */ value) => {
        input.value = String(value);
        show();
    };
    return { element, set };
}

/** A sentence that is read aloud when it changes. */
const spoken = () => html("p", { class: "live-said", "aria-live": "polite" });

/** A drawing with a description, in a box that takes the width there is. */
function drawing() {
    const element = html("div");
    let width = 0;
    let draw = (/** @type {number} */ _width) => {};
    drawToFit(element, found => draw(width = found));
    return {
        /** @param {string} words @param {(width: number) => SVGElement} made */
        show(words, made) {
            draw = room => {
                const picture = made(room);
                picture.setAttribute("role", "img");
                picture.setAttribute("aria-label", words);
                element.replaceChildren(picture);
            };
            if (width) draw(width);
        },
        element,
    };
}

// Temperature

/** @param {number[]} logits @param {number} temperature */
function softmax(logits, temperature) {
    const largest = Math.max(...logits);
    const powers = logits.map(logit => Math.exp((logit - largest) / temperature));
    const sum = powers.reduce((a, b) => a + b);
    return powers.map(power => power / sum);
}

/**
 * The norm of the soft loss's gradient at the logits of a student that knows nothing.
 * @param {number[]} teacher logits @param {number} temperature
 */
function gradientNorm(teacher, temperature) {
    const student = softmax(teacher.map(() => 0), temperature);
    const difference = softmax(teacher, temperature).map((share, i) => student[i] - share);
    return Math.hypot(...difference) / temperature;
}

const TEMPERATURES = Array.from({ length: 37 }, (_, i) => 1 + i / 4);

/** @param {Named[]} classes @param {number[]} sharp @param {number[]} soft @param {number} width */
function drawShares(classes, sharp, soft, width) {
    const row = 46;
    const room = width - 6;
    const size = { width, height: classes.length * row, class: "live-plot" };
    const root = svg("svg", { viewBox: `0 0 ${width} ${size.height}`, ...size });
    classes.forEach(({ name, shades }, i) => {
        const y = i * row + 18;
        const said = `${soft[i].toFixed(3)} (at T = 1: ${sharp[i].toFixed(3)})`;
        const bar = { x: 1, y, height: 18 };
        const style = coloured(shades);
        root.append(
            svg("text", { x: 1, y: y - 5 }, name),
            svg("text", { x: room, y: y - 5, "text-anchor": "end" }, said),
            svg("rect", { ...bar, width: room * soft[i], class: "live-mark", style }),
            svg("rect", { ...bar, width: room * sharp[i], class: "live-was" }));
    });
    return root;
}

/** @param {Temperature} data @param {number[]} teacher @param {number} now @param {number} width */
function drawGradients(data, teacher, now, width) {
    const plain = TEMPERATURES.map(t => gradientNorm(teacher, t));
    const scaled = TEMPERATURES.map((t, i) => t * t * plain[i]);
    const plot = frame(width, 260,
        { domain: [0.95, 10.5], label: "temperature T", log: true, ticks: [1, 2, 3, 5, 10] },
        { domain: domainOf([...plain, ...scaled], 0.12, true), label: "norm of the gradient",
          log: true, text: tick => tick.toPrecision(1) });
    const here = plot.x(now);
    plot.root.append(svg("line", {
        x1: here, x2: here, y1: plot.box.top, y2: plot.box.bottom, class: "live-here" }));
    const lines = /** @type {[Named, number[], number, number][]} */ ([
        [data.scaled, scaled, now * now, -9], [data.plain, plain, 1, 20]]);
    for (const [{ name, shades }, norms, factor, down] of lines) {
        const points = norms.map((norm, i) =>
            /** @type {Pair} */ ([plot.x(TEMPERATURES[i]), plot.y(norm)]));
        const [x, y] = points[points.length - 1];
        const style = coloured(shades);
        plot.root.append(
            svg("g", { class: "live-mark", style },
                path(points, { class: "live-line" }),
                svg("circle", { cx: here, cy: plot.y(factor * gradientNorm(teacher, now)), r: 5 })),
            svg("text", { x, y: y + down, "text-anchor": "end", class: "live-name" }, name));
    }
    return plot.root;
}

/** @param {Temperature} data @param {number[]} teacher @param {number} now */
function temperatureText(data, teacher, now) {
    const norm = gradientNorm(teacher, now);
    const shares = softmax(teacher, now);
    const best = shares.indexOf(Math.max(...shares));
    const sharp = softmax(teacher, 1)[best];
    const first = `At T = ${now} the teacher says ${data.classes[best].name} `
        + `with ${shares[best].toFixed(3)}, at T = 1 with ${sharp.toFixed(3)}. `;
    if (norm < 1e-6) return first + "The student says the same, so there is no gradient.";
    const gradient = `The gradient is ${norm.toFixed(4)}`;
    if (now === 1) return `${first}${gradient}.`;
    const times = (gradientNorm(teacher, 1) / norm).toFixed(1);
    return `${first}${gradient}, ${times} times smaller than at T = 1. `
        + `Times T² it is ${(now * now * norm).toFixed(4)}.`;
}

/** @param {Temperature} data @returns {HTMLElement[]} */
function temperatureParts(data) {
    let logits = [...data.answers[0].logits];
    let now = data.recipe ?? 1;
    const shares = drawing();
    const gradients = drawing();
    const said = spoken();
    const draw = () => {
        const [sharp, soft] = [1, now].map(t => softmax(logits, t));
        said.textContent = temperatureText(data, logits, now);
        shares.show("The teacher's probabilities. " + said.textContent,
            width => drawShares(data.classes, sharp, soft, width));
        gradients.show("The gradient by temperature, with and without T². " + said.textContent,
            width => gradientNorm(logits, 1) < 1e-6
                ? svg("svg", { width, height: 0 }) : drawGradients(data, logits, now, width));
    };
    const range = { min: -5, max: 5, step: 0.1 };
    const sliders = data.classes.map(({ name }, i) =>
        slider(`Logit, ${name}`, { ...range, value: logits[i] },
            value => plainNumber(value.toFixed(1)),
            value => {
                logits[i] = value;
                draw();
            }));
    const choice = html("select", {}, ...data.answers.map(({ name }, i) =>
        html("option", { value: i }, name)));
    choice.addEventListener("change", () => {
        logits = [...data.answers[Number(choice.value)].logits];
        sliders.forEach((each, i) => each.set(logits[i]));
        draw();
    });
    const heat = slider("Temperature T", { min: 1, max: 10, step: 0.5, value: now }, String,
        value => {
            now = value;
            draw();
        });
    draw();
    return [
        html("p", { class: "live-row" }, html("label", {}, "The teacher's answer: ", choice)),
        ...sliders.map(each => each.element), heat.element, said,
        html("div", { class: "live-parts" }, shares.element, gradients.element)];
}

// Bits

const BITS = [2, 3, 4, 5, 6, 7, 8];

/** A row as integers of some bits, times the scale. @param {number[]} row @param {number} bits */
function rounded(row, bits) {
    const levels = 2 ** (bits - 1) - 1;
    const step = Math.max(...row.map(Math.abs)) / levels;
    return row.map(weight => step * Math.round(weight / step));
}

/** @param {number[]} values */
const rootMeanSquare = values =>
    Math.sqrt(values.reduce((sum, value) => sum + value * value, 0) / values.length);

/** @param {number[]} row @param {number} bits */
function roundingError(row, bits) {
    const after = rounded(row, bits);
    return rootMeanSquare(row.map((weight, i) => weight - after[i]));
}

/** @param {Bits} data @param {number} bits @param {number} width */
function drawRow({ row, shades }, bits, width) {
    const sorted = [...row].sort((a, b) => a - b);
    const after = rounded(sorted, bits);
    const plot = frame(width, 300,
        { domain: [0, row.length], label: "the weights, smallest first" },
        { domain: domainOf(row, 0.05), label: "weight" });
    /** @param {number[]} values */
    const points = values => values.map((value, i) =>
        /** @type {Pair} */ ([plot.x(i + 0.5), plot.y(value)]));
    plot.root.append(
        svg("g", { class: "live-mark", style: coloured(shades) },
            path(points(after), { class: "live-line" })),
        path(points(sorted), { class: "live-thin" }));
    return plot.root;
}

/** @param {Bits} data @param {number} now @param {number} width */
function drawErrors({ row, shades }, now, width) {
    const errors = BITS.map(bits => roundingError(row, bits) / rootMeanSquare(row));
    const plot = frame(width, 300,
        { domain: [1.6, 8.4], label: "bits", ticks: BITS },
        { domain: domainOf(errors, 0.08, true), label: "error, as a share of the weights",
          log: true, text: tick => `${Number((100 * tick).toPrecision(3))}%` });
    const marks = BITS.map((bits, i) => svg("circle", {
        cx: plot.x(bits), cy: plot.y(errors[i]), r: bits === now ? 7 : 4,
        class: bits === now ? "" : "live-pale" }));
    plot.root.append(svg("g", { class: "live-mark", style: coloured(shades) }, ...marks));
    return plot.root;
}

/** @param {Bits} data @param {number} bits */
function bitsText({ row, levels }, bits) {
    const error = roundingError(row, bits);
    const share = 100 * error / rootMeanSquare(row);
    const zeros = 100 * rounded(row, bits).filter(weight => weight === 0).length / row.length;
    const most = 2 ** (bits - 1) - 1;
    return `${bits} bits: integers from −${most} to ${most}. Root mean square error `
        + `${error.toPrecision(3)}, ${share.toPrecision(3)}% of the weights' own size; `
        + `${zeros.toFixed(0)}% of the weights become zero.`
        + (most === levels ? " This is what the project's int8 matrices use." : "");
}

/** @param {Bits} data @returns {HTMLElement[]} */
function bitsParts(data) {
    const row = drawing();
    const errors = drawing();
    const said = spoken();
    const draw = (/** @type {number} */ bits) => {
        said.textContent = bitsText(data, bits);
        row.show("The row before and after rounding. " + said.textContent,
            width => drawRow(data, bits, width));
        errors.show("The error by bits. " + said.textContent,
            width => drawErrors(data, bits, width));
    };
    const first = 4;
    const choice = slider("Bits of a weight", { min: 2, max: 8, step: 1, value: first },
        bits => `${bits} bits`, draw);
    draw(first);
    return [choice.element, said,
        html("div", { class: "live-parts" }, row.element, errors.element)];
}

// Heads

/** @param {number | null} value */
const signed = value =>
    value === null ? "–" : (value < 0 ? "−" : "+") + Math.abs(value).toFixed(3);

/** @param {Pruned} row */
const deltaText = row => row.delta_low === null || row.delta_high === null ? signed(row.delta)
    : `${signed(row.delta)} (${signed(row.delta_low)} to ${signed(row.delta_high)})`;

/** @param {Pruning} data @param {number} now @param {number} width */
function drawPruning({ rounds, floor }, now, width) {
    const drawn = rounds.flat().filter(row => row.shades);
    const scores = drawn.flatMap(row => [row.low, row.high, row.score])
        .concat(floor ? floor.score : [])
        .filter(score => score !== null);
    const plot = frame(width, 320,
        { domain: [-0.04, 1], label: "share of the heads removed",
          text: tick => `${Math.round(100 * tick)}%` },
        { domain: domainOf(scores, 0.06), label: "macro-F1 on validation",
          text: tick => tick.toFixed(2) });
    if (floor) drawFloor(plot, floor);
    const apart = Math.min(9, (plot.x(0.1) - plot.x(0)) / 4); // marks of one round, in pixels
    rounds.forEach((rows, round) => {
        const seen = rows.filter(row => row.shades);
        seen.forEach((row, place) => {
            const x = plot.x(row.share) + apart * (place - (seen.length - 1) / 2);
            const mark = svg("g", {
                class: round === now ? "live-mark" : "live-mark live-pale",
                style: row.shades ? coloured(row.shades) : "" });
            if (row.low !== null && row.high !== null) {
                const [y1, y2] = [row.low, row.high].map(plot.y);
                mark.append(svg("line", { x1: x, x2: x, y1, y2 }));
            }
            mark.append(svg("circle", { cx: x, cy: plot.y(row.score), r: round === now ? 6 : 4 }));
            plot.root.append(mark);
        });
    });
    return plot.root;
}

/** @param {Pruned[]} rows */
function pruningTable(rows) {
    const heads = ["Removed by", "Macro-F1 (95% interval)", "Before recovery",
        "Against the control (95% interval)"];
    const body = rows.map(row => {
        const style = row.shades && coloured(row.shades);
        const dot = style ? [html("span", { class: "live-dot", style })] : [];
        return html("tr", {}, html("th", { scope: "row" }, ...dot, row.name),
            html("td", {}, scoreText(row)),
            html("td", {}, row.before === null ? "–" : row.before.toFixed(3)),
            html("td", {}, deltaText(row)));
    });
    return html("table", {},
        html("thead", {}, html("tr", {}, ...heads.map(head => html("th", { scope: "col" }, head)))),
        html("tbody", {}, ...body));
}

/** @param {Pruning} data @param {number} round */
function pruningText({ heads, rounds }, round) {
    const [{ share, left }] = rounds[round];
    const said = `${Math.round(100 * share)}% of the ${heads} heads removed, ${left} left.`;
    const here = rounds[round].map(row => row.name);
    const missing = rounds[0].map(row => row.name).filter(name => !here.includes(name));
    return missing.length ? `${said} Not measured here: ${missing.join(", ")}.` : said;
}

/** @param {Pruning} data @returns {HTMLElement[]} */
function pruningParts(data) {
    const picture = drawing();
    const said = spoken();
    const table = html("div", {
        class: "live-scroll", tabindex: 0, role: "region", "aria-label": "Scores at this share" });
    const draw = (/** @type {number} */ round) => {
        said.textContent = pruningText(data, round);
        table.replaceChildren(pruningTable(data.rounds[round]));
        picture.show("Macro-F1 by the share of heads removed; the numbers are in the table.",
            width => drawPruning(data, round, width));
    };
    const last = data.rounds.length - 1;
    const value = Math.ceil(last / 2);
    const choice = slider("Heads removed", { min: 0, max: last, step: 1, value },
        round => `${Math.round(100 * data.rounds[round][0].share)}%`, draw);
    draw(value);
    return [choice.element, said, picture.element, table];
}

// The page

const PARTS = /** @type {Record<string, (data: any) => HTMLElement[]>} */ ({
    temperature: temperatureParts, bits: bitsParts, pruning: pruningParts });
const data = pageData("feel-data") ?? {};
for (const [name, parts] of Object.entries(PARTS)) {
    const place = document.getElementById(`feel-${name}`);
    if (place && data[name]) place.replaceChildren(...parts(data[name]));
}
