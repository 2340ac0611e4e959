/* The loss curve: training as a line, validation as a line with marks, values at the pointer. */

import { count, loss } from "./format.js";
import { decimals, linear, ticks } from "./scale.js";
import { el, svg } from "./dom.js";

const HEIGHT = 260;
const MARGIN = { top: 10, right: 14, bottom: 30, left: 46 };
const SERIES = [
  { key: "train", name: "training", value: (point) => point.train_loss },
  { key: "valid", name: "validation", value: (point) => point.full_valid_loss ?? point.valid_loss },
];

/** The curve in `root`, with its values in `legend`. */
export class LossCurve {
  #root;
  #legend;
  #series = [];
  #steps = [];
  #total = 0;
  #at = null;
  #x = null;
  #y = null;
  #cursor = svg("g", { class: "cursor" });
  #chart;

  constructor(root, legend) {
    this.#root = root;
    this.#legend = legend;
    this.#chart = svg("svg", { role: "slider", tabindex: 0, "aria-label": "Loss at a step", height: HEIGHT });
    this.#chart.addEventListener("pointermove", (event) => this.#point(event));
    this.#chart.addEventListener("pointerdown", (event) => this.#point(event));
    this.#chart.addEventListener("pointerleave", () => this.#choose(null));
    this.#chart.addEventListener("blur", () => this.#choose(null));
    this.#chart.addEventListener("keydown", (event) => this.#key(event));
    new ResizeObserver(() => this.#draw()).observe(root);
  }

  /** Show the data of metrics events, oldest first. */
  update(points, totalSteps, note) {
    this.#series = SERIES.map((kind) => ({ ...kind, points: latest(points, kind.value) }));
    const steps = this.#series.flatMap((series) => series.points.map((point) => point.step));
    this.#steps = [...new Set(steps)].sort((a, b) => a - b);
    this.#total = Math.max(totalSteps ?? 0, this.#steps.at(-1) ?? 0);
    if (!this.#steps.includes(this.#at)) this.#at = null;
    if (this.#steps.length) {
      if (this.#root.firstChild !== this.#chart) this.#root.replaceChildren(this.#chart);
      this.#draw();
    } else {
      this.#root.replaceChildren(el("p", { class: "muted" }, note));
      this.#legend.replaceChildren();
    }
  }

  #draw() {
    const width = Math.floor(this.#root.clientWidth);
    if (!this.#steps.length || !width) return;
    this.#chart.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    this.#chart.setAttribute("width", width);
    const values = this.#series.flatMap((series) => series.points.map((point) => point.value));
    const [low, high] = range(values);
    this.#x = linear(Math.min(0, this.#steps[0]), this.#total, MARGIN.left, width - MARGIN.right);
    this.#y = linear(low, high, HEIGHT - MARGIN.bottom, MARGIN.top);
    this.#chart.replaceChildren(
      ...this.#axes(low, high, width),
      ...this.#series.flatMap((series) => this.#line(series)),
      this.#cursor,
    );
    this.#choose(this.#at);
  }

  #axes(low, high, width) {
    const bottom = HEIGHT - MARGIN.bottom;
    const rows = ticks(low, high, 5);
    const digits = decimals(rows);
    const columns = ticks(0, this.#total, Math.max(2, width / 110)).filter(Number.isInteger);
    return [
      ...rows.flatMap((value) => [
        svg("line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: this.#y(value), y2: this.#y(value) }),
        svg("text", { x: MARGIN.left - 8, y: this.#y(value) + 4, "text-anchor": "end" }, value.toFixed(digits)),
      ]),
      ...columns.map((value) =>
        svg("text", { x: this.#x(value), y: bottom + 18, "text-anchor": "middle" }, count(value)),
      ),
      svg("line", { class: "base", x1: MARGIN.left, x2: width - MARGIN.right, y1: bottom, y2: bottom }),
      svg("text", { x: MARGIN.left - 8, y: bottom + 18, "text-anchor": "end" }, "step"),
    ];
  }

  #line({ key, points }) {
    const path = points.map((point, index) => `${index ? "L" : "M"}${this.#place(point).join(" ")}`).join("");
    const marks = key === "valid" || points.length === 1 ? points : [];
    return [
      svg("path", { class: `line ${key}`, d: path }),
      ...marks.map((point) => this.#mark(point, key, 3)),
    ];
  }

  #mark(point, key, radius) {
    const [cx, cy] = this.#place(point);
    return svg("circle", { class: `mark ${key}`, cx, cy, r: radius });
  }

  #place(point) {
    return [this.#x(point.step).toFixed(1), this.#y(point.value).toFixed(1)];
  }

  #point(event) {
    const x = event.clientX - this.#chart.getBoundingClientRect().left;
    this.#choose(nearest(this.#steps, (step) => Math.abs(this.#x(step) - x)));
  }

  #key(event) {
    const moves = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -10, PageUp: 10 };
    const last = this.#steps.length - 1;
    const here = this.#at === null ? last : this.#steps.indexOf(this.#at);
    const ends = { Home: 0, End: last, Escape: null };
    if (event.key in ends) this.#choose(this.#steps[ends[event.key]] ?? null);
    else if (event.key in moves) this.#choose(this.#steps[Math.min(last, Math.max(0, here + moves[event.key]))]);
    else return;
    event.preventDefault();
  }

  /** Show the values at a step, or the latest ones for null. */
  #choose(step) {
    this.#at = step;
    const at = step ?? this.#steps.at(-1);
    const chosen = this.#series
      .filter((series) => series.points.length)
      .map((series) => ({ ...series, point: series.points.findLast((point) => point.step <= at) ?? null }));
    this.#cursor.replaceChildren(...(step === null ? [] : this.#crosshair(step, chosen)));
    const texts = chosen.map(({ name, point }) => (point ? `${name} ${loss(point.value)}` : null)).filter(Boolean);
    this.#legend.replaceChildren(
      ...chosen.map(({ key, name, point }) =>
        el("span", { class: `key ${key}` }, `${name} `, el("b", {}, point ? loss(point.value) : "–")),
      ),
      el("span", { class: "muted" }, step === null ? `step ${count(at)}, the latest` : `step ${count(at)}`),
    );
    this.#chart.setAttribute("aria-valuemin", this.#steps[0]);
    this.#chart.setAttribute("aria-valuemax", this.#steps.at(-1));
    this.#chart.setAttribute("aria-valuenow", at);
    this.#chart.setAttribute("aria-valuetext", `Step ${at}: ${texts.join(", ")}`);
  }

  #crosshair(step, chosen) {
    const x = this.#x(step);
    return [
      svg("line", { x1: x, x2: x, y1: MARGIN.top, y2: HEIGHT - MARGIN.bottom }),
      ...chosen.filter(({ point }) => point).map(({ key, point }) => this.#mark(point, key, 4.5)),
    ];
  }
}

/** The points that stand: a resumed job repeats steps, and then the later attempt's count. */
function latest(points, valueOf) {
  const kept = [];
  for (const point of points) {
    const value = valueOf(point);
    if (!Number.isFinite(value)) continue;
    while (kept.length && kept.at(-1).step >= point.step) kept.pop();
    kept.push({ step: point.step, value });
  }
  return kept;
}

function range(values) {
  const low = Math.min(...values);
  const high = Math.max(...values);
  const room = (high - low) * 0.06 || Math.abs(high) * 0.05 || 1;
  return [Math.max(low - room, Math.min(low, 0)), high + room];
}

function nearest(items, distance) {
  return items.reduce((best, item) => (distance(item) < distance(best) ? item : best), items[0]);
}
