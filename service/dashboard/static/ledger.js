/* The memory ledger as bars: each loss on the job's own shapes, each figure with its origin. */

import { NAMES, count, lessOrMore, size, small, times } from "./format.js";
import { bars } from "./bars.js";
import { el } from "./dom.js";

const JOB_LOSS = "cce";
// Beyond this ratio the shortest bar would be a hair on a linear scale.
const LINEAR_UP_TO = 100;
const MEASURES = [["loss_layer", "Loss layer alone"], ["step", "Forward and backward pass"]];

/** The ledger in `root`, with its scale chosen in the fieldset `chooser`. */
export class LedgerView {
  #root;
  #chooser;
  #job = null;
  #shown = null;
  #scale = null;

  constructor(root, chooser) {
    this.#root = root;
    this.#chooser = chooser;
    chooser.addEventListener("change", (event) => {
      this.#scale = event.target.value;
      this.#draw();
    });
  }

  /** Show a job's ledger; `note` stands in its place where there is none. */
  update(job, note) {
    const seen = JSON.stringify([job.id, job.memory ?? note, job.receipt, job.phases]);
    if (seen === this.#shown) return;
    this.#shown = seen;
    this.#job = job;
    this.#scale = null;
    if (job.memory) this.#draw();
    else this.#root.replaceChildren(el("p", { class: "muted" }, note));
    this.#chooser.hidden = !job.memory;
  }

  #draw() {
    const { memory, receipt, phases } = this.#job;
    const scale = this.#scale ?? fittingScale(memory.losses);
    for (const input of this.#chooser.querySelectorAll("input")) input.checked = input.value === scale;
    this.#root.replaceChildren(
      savings(memory),
      ...MEASURES.map(([key, title]) => group(memory.losses, key, title, scale)).filter(Boolean),
      el("p", { class: "muted fine" }, conditions(memory), receipt ? ` ${parity(receipt)}${filtering(receipt)}` : null),
      phases ? el("p", { class: "muted fine" }, stepTime(phases)) : "",
    );
  }
}

function fittingScale(losses) {
  const sizes = losses.map((entry) => entry.loss_layer.bytes).filter((bytes) => bytes > 0);
  return Math.max(...sizes) / Math.min(...sizes) > LINEAR_UP_TO ? "log" : "linear";
}

/** What the job's loss takes, each time against a named baseline. */
function savings({ savings: entries, losses }) {
  if (!entries.length) return el("p", { class: "muted" }, "No baseline was measured.");
  const layer = Object.fromEntries(losses.map((entry) => [entry.loss, entry.loss_layer.bytes]));
  const items = entries.map(({ baseline, ...saving }) => {
    const { amount, than, more } = lessOrMore(saving.loss_layer_ratio);
    return el(
      "li",
      {},
      el("strong", { class: more ? "worse" : null }, amount),
      ` ${than} ${NAMES[baseline]} in the loss layer (${size(layer[JOB_LOSS])} instead of ${size(layer[baseline])})`,
      saving.step_ratio ? `; a forward and backward pass ${lessOrMore(saving.step_ratio).amount}` : null,
      saving.micro_batch_ratio ? `; a micro-batch ${times(saving.micro_batch_ratio)} as large fits (modelled)` : null,
    );
  });
  return el("ul", { class: "savings" }, ...items);
}

function group(losses, key, title, scale) {
  const entries = losses.filter((entry) => entry[key]);
  return entries.length ? bars(title, entries.map((entry) => bar(entry, entry[key])), scale) : null;
}

function bar(entry, figure) {
  return {
    name: NAMES[entry.loss],
    own: entry.loss === JOB_LOSS,
    bytes: figure.bytes,
    text: figure.provenance === "out_of_memory" ? "out of memory" : size(figure.bytes),
    origin: figure.provenance,
    note: note(figure),
  };
}

function note(figure) {
  const notes = {
    measured: "measured",
    modelled: `modelled${figure.formula ? `: ${figure.formula}` : ""}`,
    out_of_memory: `it asked for ${size(figure.bytes)}`,
  };
  return notes[figure.provenance];
}

function conditions(ledger) {
  return (
    `Peak bytes above weights and gradients, counted by ${ledger.method} on ${ledger.device}: ` +
    `${count(ledger.tokens)} rows, vocabulary ${count(ledger.vocab_size)}, width ${count(ledger.hidden_size)}, ` +
    `${ledger.dtype}, micro-batch ${ledger.micro_batch_size} of ${count(ledger.seq_length)} tokens.`
  );
}

function parity(receipt) {
  const errors = [receipt.hidden_grad_error, receipt.head_grad_error ?? 0];
  return (
    `Against fp32 on the first batch: loss ${small(receipt.loss_error)} off, ` +
    `gradients ${small(Math.max(...errors))} off, of ${small(receipt.tolerance)} allowed.`
  );
}

/** The largest error that the filter estimated of itself; nothing where it made no estimate. */
function filtering({ filtered }) {
  const errors = filtered.map((point) => point.error_max).filter((error) => error !== null);
  return errors.length
    ? ` The filter estimates its error in the gradient of the hidden states: up to ${small(Math.max(...errors))}.`
    : "";
}

/** The time of a step, and the share of each phase in it. */
function stepTime({ steps, ...seconds }) {
  const total = Object.values(seconds).reduce((sum, spent) => sum + spent, 0);
  const shares = Object.entries(seconds).map(([name, spent]) => `${name} ${((spent / total) * 100).toFixed(0)} %`);
  return `A step takes ${small(total)} s, the mean of ${steps}: ${shares.join(", ")}.`;
}
