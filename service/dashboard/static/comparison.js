/* A comparison: what it compares, and the figures of each loss at each batch size as they come. */

import { NAMES, count, given, lessOrMore, loss, size, small, words } from "./format.js";
import { el } from "./dom.js";

const BASELINE = "full_logits";
const NONE = "–";
const COLUMNS = ["Batch size", "Loss", "Peak memory", `Against ${NAMES[BASELINE]}`, "Tokens/s", "Gradient error"];
const VALIDATION = "Validation loss";

/** The comparison in `root`. */
export class ComparisonView {
  #root;
  #cells = new Map();

  constructor(root) {
    this.#root = root;
  }

  clear() {
    this.#cells.clear();
  }

  /** Add the figures that events carry; one that begins anew replaces its earlier ones. */
  add(events) {
    for (const { data } of events) {
      if (data?.outcome) this.#cells.set(place(data.loss, data.batch_size), data);
    }
  }

  /** Show a comparison; `note` stands in the place of figures where there are none. */
  update({ comparison, validation_file: validation }, note) {
    const cells = [...this.#cells.values()];
    this.#root.replaceChildren(
      el("p", { class: "plan" }, plan(comparison)),
      cells.length ? this.#table(cells, validation !== null) : el("p", { class: "muted" }, note),
      ...cells.filter((cell) => cell.note).map(remark),
    );
  }

  #table(cells, validated) {
    const names = validated ? [...COLUMNS, VALIDATION] : COLUMNS;
    const head = el("tr", {}, ...names.map((name) => el("th", { scope: "col" }, name)));
    const rows = cells.map((cell) => row(cell, this.#cells.get(place(BASELINE, cell.batch_size)), validated));
    const table = el("table", {}, el("thead", {}, head), el("tbody", {}, ...rows));
    return el("div", { class: "scroll", role: "region", "aria-label": "Figures", tabindex: 0 }, table);
  }
}

const place = (name, batch) => `${name} ${batch}`;

function plan({ losses, batch_sizes: sizes, steps }) {
  const compared = losses === "auto" ? "All losses that the device has" : losses.map((name) => NAMES[name]).join(", ");
  const unit = sizes.length === 1 ? "batch size" : "batch sizes";
  return `${compared}, at ${unit} ${sizes.join(", ")}: ${count(steps)} steps each, from the same weights on the same data.`;
}

function row(cell, baseline, validated) {
  const { peak_bytes: peak, tokens_per_s: speed, gradient_error: gradients, valid_loss: valid } = cell;
  const known = cell !== baseline && peak && baseline?.peak_bytes;
  const texts = [
    count(cell.batch_size),
    NAMES[cell.loss],
    // What came to its end has a peak; else this says why not.
    given(peak, size) ?? words(cell.outcome),
    known ? lessOrMore(baseline.peak_bytes / peak).amount : null,
    given(speed, count),
    given(gradients, ({ hidden, head }) => small(Math.max(hidden, head ?? 0))),
    ...(validated ? [given(valid, loss)] : []),
  ];
  return el("tr", { class: cell.loss === "cce" ? "own" : null }, ...texts.map((text) => el("td", {}, text ?? NONE)));
}

function remark({ loss: name, batch_size: batch, note }) {
  return el("p", { class: "muted fine" }, `${NAMES[name]} at batch size ${count(batch)}: ${note}`);
}
