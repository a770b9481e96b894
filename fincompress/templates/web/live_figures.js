// @ts-check
// Score against cost, drawn in the page: a point says its numbers to a mouse, a finger and a key.
// The picture that it replaces stays for paper, and where there is no script.

/**
 * @typedef {{light: string, dark: string}} Shades a colour for each background
 * @typedef {{key: string, axis: string, short: string, unit: string, digits: number}} Cost
 * @typedef {object} Point
 * @property {string} name
 * @property {Shades} shades
 * @property {number | null} score null: random weights
 * @property {number | null} low of the 95% interval
 * @property {number | null} high
 * @property {Record<string, number>} costs by the cost's key
 * @property {Record<string, boolean>} front whether no other model is both cheaper and better
 * @property {Record<string, boolean>} filled
 * @typedef {object} Figure
 * @property {string} words what it shows
 * @property {string} score the vertical axis
 * @property {Cost[]} costs the axes to choose from
 * @property {Cost[]} columns the costs in the table
 * @property {{name: string, score: number} | null} floor
 * @property {string} note how to read it
 * @property {Point[]} points
 * @typedef {[number, number]} Pair
 * @typedef {{left: number, right: number, top: number, bottom: number}} Box
 * @typedef {Record<string, string | number | boolean | undefined>} Attributes
 * @typedef {object} Axis
 * @property {Pair} domain
 * @property {string} label
 * @property {boolean} [log]
 * @property {number[]} [ticks]
 * @property {(value: number) => string} [text] of a tick
 * @typedef {object} Frame a plot without its data
 * @property {SVGElement} root
 * @property {(value: number) => number} x
 * @property {(value: number) => number} y
 * @property {Box} box of the data
 */

// Elements

/** @param {Element} element @param {Attributes} attributes @param {(Node | string)[]} children */
function complete(element, attributes, children) {
    for (const [name, value] of Object.entries(attributes)) {
        if (value !== undefined && value !== false) element.setAttribute(name, String(value));
    }
    element.append(...children);
}

/**
 * An HTML element.
 * @template {keyof HTMLElementTagNameMap} Tag
 * @param {Tag} tag @param {Attributes} attributes @param {(Node | string)[]} children
 * @returns {HTMLElementTagNameMap[Tag]}
 */
export function html(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    complete(element, attributes, children);
    return element;
}

/**
 * An SVG element.
 * @param {string} tag @param {Attributes} attributes @param {(Node | string)[]} children
 * @returns {SVGElement}
 */
export function svg(tag, attributes = {}, ...children) {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    complete(element, attributes, children);
    return element;
}

/** The style that gives an element a colour on each background. @param {Shades} shades */
export const coloured = shades => `--light: ${shades.light}; --dark: ${shades.dark}`;

/** A number with a minus, not a hyphen. @param {number | string} number */
export const plainNumber = number => String(number).replace("-", "−");

let made = 0;
/** An id that no other element has. */
export const newId = () => `live-${++made}`;

/** The data that the page was written with; null: another page. @param {string} id */
export function pageData(id) {
    const element = document.getElementById(id);
    return element && JSON.parse(element.textContent ?? "");
}

/**
 * Draw now, and whenever the width of the element changes.
 * @param {HTMLElement} element @param {(width: number) => void} draw
 */
export function drawToFit(element, draw) {
    let drawn = 0;
    new ResizeObserver(() => {
        const width = Math.floor(element.clientWidth);
        if (width && width !== drawn) draw(drawn = width);
    }).observe(element);
}

// Axes

/** Values of 1, 2 and 5 times powers of ten, few enough for the room. @param {Pair} domain */
function logTicks([low, high], room = Infinity) {
    for (const steps of [[1, 2, 5], [1, 3], [1]]) {
        const ticks = [];
        for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++) {
            ticks.push(...steps.map(step => Number(`${step}e${power}`)));
        }
        const inside = ticks.filter(tick => tick >= low && tick <= high);
        if (inside.length <= room || steps.length === 1) return inside;
    }
    return [];
}

/** Round values, about as many as there is room for. @param {Pair} domain @param {number} room */
function plainTicks([low, high], room) {
    const least = (high - low) / room;
    const power = 10 ** Math.floor(Math.log10(least));
    const step = [1, 2, 5, 10].map(factor => factor * power).find(each => each >= least) ?? power;
    const ticks = [];
    for (let i = Math.ceil(low / step); i * step <= high + step / 1e6; i++) {
        ticks.push(Number((i * step).toPrecision(12)));
    }
    return ticks;
}

/** @param {Axis} axis @param {Pair} range in pixels */
function scale(axis, [start, end]) {
    /** @param {number} value */
    const of = value => axis.log ? Math.log10(value) : value;
    const [low, high] = axis.domain.map(of);
    /** @param {number} value */
    return value => start + (end - start) * (of(value) - low) / (high - low);
}

/** @param {Axis} axis @param {number} room */
const ticksOf = (axis, room) =>
    axis.ticks ?? (axis.log ? logTicks : plainTicks)(axis.domain, room);

/**
 * Axes with a grid, at the width given.
 * @param {number} width @param {number} height @param {Axis} across @param {Axis} up
 * @returns {Frame}
 */
export function frame(width, height, across, up) {
    const box = { left: 46, right: width - 10, top: 24, bottom: height - 40 };
    const viewBox = `0 0 ${width} ${height}`;
    const root = svg("svg", { viewBox, width, height, class: "live-plot" });
    const x = scale(across, [box.left, box.right]);
    const y = scale(up, [box.bottom, box.top]);
    const text = (/** @type {Axis} */ axis, /** @type {number} */ tick) =>
        axis.text ? axis.text(tick) : plainNumber(tick);
    const grid = svg("g", { class: "live-axes", "aria-hidden": "true" });
    for (const tick of ticksOf(across, (box.right - box.left) / 42)) {
        const [at, below] = [x(tick), box.bottom + 15];
        grid.append(
            svg("line", { x1: at, x2: at, y1: box.top, y2: box.bottom }),
            svg("text", { x: at, y: below, "text-anchor": "middle" }, text(across, tick)));
    }
    for (const tick of ticksOf(up, (box.bottom - box.top) / 40)) {
        grid.append(
            svg("line", { x1: box.left, x2: box.right, y1: y(tick), y2: y(tick) }),
            svg("text", { x: box.left - 6, y: y(tick) + 4, "text-anchor": "end" }, text(up, tick)));
    }
    const middle = (box.left + box.right) / 2;
    grid.append(
        svg("text", { x: middle, y: height - 6, "text-anchor": "middle" }, across.label),
        svg("text", { x: 2, y: 12 }, up.label));
    root.append(grid);
    return { root, x, y, box };
}

/** A broken line through points. @param {Pair[]} points @param {Attributes} attributes */
export const path = (points, attributes) =>
    svg("polyline", { points: points.map(point => point.join(",")).join(" "), ...attributes });

// Names beside points

const DISTANCES = [11, 15, 20, 27, 36, 48, 62, 80, 104];
const DEGREES = [0, 180, 20, -20, 160, -160, 45, -45, 135, -135, 90, -90];
const PLACES = DISTANCES.flatMap(distance => DEGREES.map(degrees => {
    const angle = degrees * Math.PI / 180;
    return /** @type {Pair} */ ([distance * Math.cos(angle), -distance * Math.sin(angle)]);
}));

/** The area that two boxes share. @param {Box} a @param {Box} b */
function overlap(a, b) {
    const width = Math.min(a.right, b.right) - Math.max(a.left, b.left);
    const height = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
    return Math.max(width, 0) * Math.max(height, 0);
}

/** Where a text is that has an offset from its point. @param {Pair} point @param {Pair} offset */
function textBox([x, y], [right, down], width = 0) {
    const start = Math.abs(right) < 1 ? -width / 2 : right < 0 ? -width : 0;
    const left = x + right + start;
    return { left, right: left + width, top: y + down - 7, bottom: y + down + 7 };
}

/** How far a box reaches out of another. @param {Box} box @param {Box} within */
const outside = (box, within) =>
    Math.max(within.left - box.left, 0) + Math.max(box.right - within.right, 0)
    + Math.max(within.top - box.top, 0) + Math.max(box.bottom - within.bottom, 0);

/**
 * Write names beside points, where they cover little.
 * @param {Frame} plot
 * @param {{at: Pair, name: string, shades: Shades}[]} points
 * @param {Box[]} taken
 */
function writeNames(plot, points, taken) {
    for (const { at, name, shades } of points) {
        const label = svg("text", { class: "live-name", "aria-hidden": "true" }, name);
        plot.root.append(label);
        const width = /** @type {SVGTextElement} */ (label).getComputedTextLength();
        const cost = (/** @type {Pair} */ offset) => {
            const box = textBox(at, offset, width);
            const covered = taken.reduce((sum, other) => sum + overlap(box, other), 0);
            return 1e4 * outside(box, plot.box) + 2 * covered + Math.hypot(...offset);
        };
        const best = PLACES.reduce((a, b) => cost(b) < cost(a) ? b : a);
        const box = textBox(at, best, width);
        taken.push(box);
        complete(label, { x: box.left, y: box.top + 11 }, []);
        if (Math.hypot(...best) > 16) {
            const near = best.map(part => part * 0.82);
            plot.root.insertBefore(svg("line", {
                x1: at[0], y1: at[1], x2: at[0] + near[0], y2: at[1] + near[1],
                class: "live-leader", style: coloured(shades) }), label);
        }
    }
}

// A figure

/** @param {Point} point @param {Cost} cost */
const costText = (point, cost) => `${point.costs[cost.key].toFixed(cost.digits)} ${cost.unit}`;

/** A score with its interval. @param {Pick<Point, "score" | "low" | "high">} scored */
export function scoreText({ score, low, high }) {
    if (score === null) return "no score";
    if (low === null || high === null) return score.toFixed(3);
    return `${score.toFixed(3)} (${low.toFixed(3)} to ${high.toFixed(3)})`;
}

/** What a point says. @param {Figure} figure @param {Point} point */
const pointText = (figure, point) => [
    point.score === null ? "random weights, a speed and no score" : `macro-F1 ${scoreText(point)}`,
    ...figure.columns.map(cost => costText(point, cost)),
].join(" · ");

/**
 * The range of some values with room on both sides.
 * @param {number[]} values @param {number} room as a share of the range
 */
export function domainOf(values, room, log = false) {
    const [low, high] = [Math.min(...values), Math.max(...values)];
    if (low === high) return /** @type {Pair} */ (log ? [low / 2, low * 2] : [low - 1, low + 1]);
    if (log) return /** @type {Pair} */ ([low / (high / low) ** room, high * (high / low) ** room]);
    return /** @type {Pair} */ ([low - room * (high - low), high + room * (high - low)]);
}

/** The steps between the points of the front. @param {Pair[]} points from left to right */
function steps(points) {
    return points.flatMap((point, i) =>
        i ? [/** @type {Pair} */ ([point[0], points[i - 1][1]]), point] : [point]);
}

/**
 * A floor, as a dashed line with its name.
 * @param {Frame} plot @param {{name: string, score: number}} floor
 */
export function drawFloor({ root, box, y }, floor) {
    const height = y(floor.score);
    root.append(
        svg("line", { x1: box.left, x2: box.right, y1: height, y2: height, class: "live-floor" }),
        svg("text", { x: box.right, y: height - 5, class: "live-quiet", "text-anchor": "end" },
            `${floor.name} ${floor.score.toFixed(3)}`));
    return { left: box.right - 130, right: box.right, top: height - 16, bottom: height + 2 };
}

/** The mark of a point; one without a score is a line from the axis. */
class Mark {
    /** @param {Figure} figure @param {Point} point @param {Cost} cost @param {Frame} plot */
    constructor(figure, point, cost, plot) {
        this.point = point;
        const x = plot.x(point.costs[cost.key]);
        const y = point.score === null ? plot.box.bottom : plot.y(point.score);
        this.at = /** @type {Pair} */ ([x, y]);
        const { low, high } = point;
        this.span = low === null || high === null ? [y, y] : [plot.y(high), plot.y(low)];
        const label = `${point.name}: ${pointText(figure, point)}`;
        this.element = svg("g", {
            role: "option", tabindex: -1, "aria-selected": "false", "aria-label": label,
            class: "live-point", style: coloured(point.shades) });
        if (point.score === null) {
            this.element.append(
                svg("line", { x1: x, x2: x, y1: plot.box.top, y2: y, class: "live-unscored" }),
                svg("rect", { x: x - 4, y: y - 4, width: 8, height: 8 }));
        } else {
            const [y1, y2] = this.span;
            const hollow = point.filled[cost.key] ? "" : "live-hollow";
            this.element.append(
                svg("line", { x1: x, x2: x, y1, y2, class: "live-interval" }),
                svg("circle", { cx: x, cy: y, r: 5, class: hollow }));
        }
    }

    /** What a name should not cover. @returns {Box[]} */
    get boxes() {
        const [x, y] = this.at;
        const [top, bottom] = this.span;
        return [{ left: x - 7, right: x + 7, top: y - 7, bottom: y + 7 },
            { left: x - 2, right: x + 2, top, bottom }];
    }
}

const HINT = "Point at a model, touch it, or use the arrow keys.";
const NARROW = 560; // below this width, in pixels, names are below the plot
const NEAR = 26; // pixels between a pointer and a point that it means

/** A figure in the page. */
class LiveFigure {
    /** @param {Figure} figure */
    constructor(figure) {
        this.figure = figure;
        this.cost = figure.costs[0];
        /** @type {Mark[]} */
        this.marks = [];
        this.area = html("div", { class: "live-area" });
        this.names = html("ul", { class: "live-names" });
        this.said = html("p", { class: "live-said" }, HINT);
        const id = newId();
        this.element = html("figure", { class: "live", "aria-labelledby": id },
            html("figcaption", { id }, html("strong", {}, `${figure.words}.`), " ", figure.note),
            ...this.choice(), this.said, this.area, this.names, this.table());
        drawToFit(this.area, width => this.draw(width));
    }

    /** Buttons to choose the cost, where there are several. */
    choice() {
        const { costs } = this.figure;
        if (costs.length < 2) return [];
        const name = newId();
        const choices = costs.map(cost => {
            const input = html("input", { type: "radio", name, checked: cost === this.cost });
            input.addEventListener("change", () => {
                this.cost = cost;
                this.draw(this.area.clientWidth);
            });
            return html("label", {}, input, ` ${cost.short}`);
        });
        return [html("fieldset", { class: "live-choice" }, html("legend", {}, "Cost"), ...choices)];
    }

    /** The same numbers as a table. */
    table() {
        const { figure } = this;
        const units = figure.columns.map(({ short, unit }) => `${short} (${unit})`);
        const heads = ["Model", `${figure.score} (95% interval)`, ...units];
        const rows = figure.points.map(point => html("tr", {},
            html("th", { scope: "row" }, point.name), html("td", {}, scoreText(point)),
            ...figure.columns.map(({ key, digits }) =>
                html("td", {}, point.costs[key].toFixed(digits)))));
        const region = { tabindex: 0, role: "region", "aria-label": figure.words };
        return html("details", {}, html("summary", {}, "The numbers as a table"),
            html("div", { class: "live-scroll", ...region },
                html("table", {},
                    html("thead", {}, html("tr", {},
                        ...heads.map(head => html("th", { scope: "col" }, head)))),
                    html("tbody", {}, ...rows))));
    }

    /** @param {number} width */
    draw(width) {
        const { figure, cost } = this;
        const { points, floor } = figure;
        const scores = points.flatMap(point => [point.low, point.high, point.score])
            .concat(floor ? floor.score : [])
            .filter(score => score !== null);
        const costs = points.map(point => point.costs[cost.key]);
        const plot = frame(width, width < NARROW ? 320 : 400,
            { domain: domainOf(costs, 0.08, true), label: cost.axis, log: true },
            { domain: domainOf(scores, 0.06), label: figure.score, text: tick => tick.toFixed(2) });
        this.area.replaceChildren(plot.root);
        const taken = floor ? [drawFloor(plot, floor)] : [];
        this.drawMarks(plot, taken, width);
        plot.root.addEventListener("pointermove", event => this.say(this.near(event)));
        plot.root.addEventListener("pointerleave", () => this.say(this.focused()));
        plot.root.addEventListener("click", event => this.near(event)?.element.focus());
    }

    /** @param {Frame} plot @param {Box[]} taken @param {number} width */
    drawMarks(plot, taken, width) {
        const { figure, cost } = this;
        const sorted = [...figure.points].sort((a, b) => a.costs[cost.key] - b.costs[cost.key]);
        this.marks = sorted.map(point => new Mark(figure, point, cost, plot));
        const front = this.marks.filter(mark => mark.point.front[cost.key]);
        const list = svg("g", { role: "listbox", "aria-label": `${figure.words}. ${HINT}` },
            ...this.marks.map(mark => mark.element));
        plot.root.append(path(steps(front.map(mark => mark.at)), { class: "live-front" }), list);
        for (const mark of this.marks) {
            mark.element.addEventListener("focus", () => this.chosen(mark));
            mark.element.addEventListener("blur", () => this.say(undefined));
            mark.element.addEventListener("keydown", event => this.moved(event, mark));
        }
        this.marks[0]?.element.setAttribute("tabindex", "0");
        const wide = width >= NARROW;
        const named = this.marks.map(({ at, point }) => ({ at, ...point }));
        if (wide) writeNames(plot, named, [...taken, ...this.marks.flatMap(mark => mark.boxes)]);
        this.names.replaceChildren(...(wide ? [] : this.marks.map(mark => this.nameButton(mark))));
        this.say(undefined);
    }

    /** A model's name below the plot; pressed, it shows the model. @param {Mark} mark */
    nameButton(mark) {
        const dot = html("span", { class: "live-dot", style: coloured(mark.point.shades) });
        const label = mark.element.getAttribute("aria-label") ?? "";
        const button = html("button", { type: "button", "aria-label": label }, dot,
            mark.point.name);
        button.addEventListener("click", () => this.say(mark));
        return html("li", {}, button);
    }

    /** The mark that has the focus. */
    focused() {
        return this.marks.find(mark => mark.element === document.activeElement);
    }

    /** The focus has come to a mark, and comes back to it with the tab key. @param {Mark} mark */
    chosen(mark) {
        for (const { element } of this.marks) {
            element.setAttribute("tabindex", element === mark.element ? "0" : "-1");
        }
        this.say(mark);
    }

    /** Show the numbers of a mark; of none: how to ask. @param {Mark | undefined} chosen */
    say(chosen) {
        for (const mark of this.marks) {
            mark.element.setAttribute("aria-selected", String(mark === chosen));
        }
        this.area.classList.toggle("live-chosen", Boolean(chosen));
        if (!chosen) return this.said.replaceChildren(HINT);
        const { point } = chosen;
        this.said.replaceChildren(
            html("strong", {}, point.name), html("br"), pointText(this.figure, point));
    }

    /** The mark next to a pointer, else the one that has the focus. @param {MouseEvent} event */
    near(event) {
        const { left, top } = this.area.getBoundingClientRect();
        const distance = (/** @type {Mark} */ mark) => {
            const [x, y] = mark.at;
            const height = event.clientY - top;
            const down = mark.point.score === null ? Math.max(height - y, 0) : height - y;
            return Math.hypot(event.clientX - left - x, down);
        };
        const [near] = [...this.marks].sort((a, b) => distance(a) - distance(b));
        return near && distance(near) <= NEAR ? near : this.focused();
    }

    /** Arrow keys move along the cost. @param {KeyboardEvent} event @param {Mark} mark */
    moved(event, mark) {
        const last = this.marks.length - 1;
        const here = this.marks.indexOf(mark);
        const places = /** @type {Record<string, number>} */ ({
            ArrowRight: here + 1, ArrowUp: here + 1, ArrowLeft: here - 1, ArrowDown: here - 1,
            Home: 0, End: last });
        if (!(event.key in places)) return;
        event.preventDefault();
        this.marks[Math.min(Math.max(places[event.key], 0), last)].element.focus();
    }
}

// The pictures of a page

/** The file's name in a picture's words or address: one cell's pictures share their words. */
class Pictures {
    constructor() {
        this.all = [...document.images];
    }

    /** The picture of a figure. @param {string} name such as compact_score_by_latency */
    find(name) {
        const words = name.replaceAll("_", " ");
        return this.all.find(image => image.src.endsWith(`/${name}.png`)
            || this.wordsOf(image) === words);
    }

    /** A picture's own part of the words of its cell. @param {HTMLImageElement} image */
    wordsOf(image) {
        const same = this.all.filter(other => other.alt === image.alt);
        return image.alt.split(": ").slice(-same.length)[same.indexOf(image)];
    }
}

/**
 * Put a live figure in the place of each picture that there is.
 * @param {Record<string, Figure>} figures by the names of their pictures
 */
export function enliven(figures) {
    const pictures = new Pictures();
    for (const [name, figure] of Object.entries(figures)) {
        const image = pictures.find(name);
        if (!image) continue;
        const paragraph = image.closest("p");
        const alone = paragraph && !paragraph.textContent?.trim();
        const place = alone ? paragraph : image.closest("a") ?? image;
        place.before(new LiveFigure(figure).element);
        place.classList.add("live-picture");
    }
}

const figures = pageData("live-figures");
if (figures) enliven(figures);
