/* A job's history: newest first, each event added once. */

import { clock, date } from "./format.js";
import { arrange, el } from "./dom.js";

const MAX_METRICS = 2000;
const MAX_FAULTS = 20;
const LEVELS = { warn: "Warning", error: "Error" };

/** The history in `root`; metrics are shown on request. */
export class EventLog {
  #root;
  #events = [];
  #metrics = false;

  constructor(root) {
    this.#root = root;
  }

  /** The id of the newest event, or null. */
  get last() {
    return this.#events.at(-1)?.id ?? null;
  }

  clear() {
    this.#events = [];
    this.#root.replaceChildren();
  }

  /** Add events, oldest first. */
  add(events) {
    const added = events.map((event) => ({ id: event.id, type: event.type, element: line(event) }));
    this.#events = withoutOldMetrics([...this.#events, ...added]);
    if (events.length) this.#show();
  }

  showMetrics(wanted) {
    this.#metrics = wanted;
    this.#show();
  }

  #show() {
    const shown = this.#events.filter((event) => this.#metrics || event.type !== "metrics");
    arrange(this.#root, shown.map((event) => event.element).reverse());
  }
}

/** All messages, and the newest of the metrics: a long job has thousands of these. */
function withoutOldMetrics(events) {
  let surplus = events.filter((event) => event.type === "metrics").length - MAX_METRICS;
  return events.filter((event) => event.type !== "metrics" || surplus-- <= 0);
}

function line(event) {
  const when = el("time", { title: date(event.created_at) }, clock(event.created_at));
  const level = LEVELS[event.level] ? el("strong", {}, `${LEVELS[event.level]}: `) : null;
  const text = el("p", {}, level, event.message, faults(event.data?.faults));
  return el("li", { "data-level": event.level }, when, text);
}

/** What is wrong with a data file, line by line. */
function faults(found) {
  if (!found?.length) return null;
  const rows = found.slice(0, MAX_FAULTS).map((fault) => el("li", {}, told(fault)));
  const more = found.length - MAX_FAULTS;
  if (more > 0) rows.push(el("li", {}, `and ${more} more`));
  return el("ul", { class: "faults" }, ...rows);
}

function told({ line, path, message }) {
  return path ? `line ${line}, ${path}: ${message}` : `line ${line}: ${message}`;
}
