/* A job's memory as it was predicted and as it was, and the micro-batch that was chosen by it. */

import { bars } from "./bars.js";
import { el } from "./dom.js";
import { count, percent, size, times, words } from "./format.js";

const REASONS = {
  request: "as asked for",
  rule: "the whole batch",
  out_of_memory: "halved when memory ran out",
  probe: "the most of the batch that fit",
};
const TESTS = { measured: "tried", modelled: "predicted", out_of_memory: "tried" };

/** The prediction in `root`. */
export class PredictionView {
  #root;
  #shown = null;

  constructor(root) {
    this.#root = root;
  }

  /** Show a job's prediction and micro-batch; `note` stands in their place where there is none. */
  update(job, note) {
    const seen = JSON.stringify([job.id, job.estimate, job.micro_batch, note]);
    if (seen === this.#shown) return;
    this.#shown = seen;
    const { estimate, micro_batch: micro } = job;
    const parts = [
      micro ? el("ul", { class: "savings" }, chosen(micro), overFullLogits(micro)) : null,
      ...(estimate ? [error(estimate), peak(estimate), el("p", { class: "muted fine" }, components(estimate))] : []),
    ].filter(Boolean);
    this.#root.replaceChildren(...(parts.length ? parts : [el("p", { class: "muted" }, note)]));
  }
}

function chosen({ size: sequences, chosen_by: rule }) {
  const unit = sequences === 1 ? "sequence" : "sequences";
  return el("li", {}, el("strong", {}, count(sequences)), ` ${unit} at once: ${REASONS[rule]}`);
}

/** How many times the micro-batch of full logits; null where nothing is known of that. */
function overFullLogits({ full_logits: most, multiple, provenance }) {
  if (most === null) return null;
  const test = `(${TESTS[provenance]})`;
  if (most === 0) return el("li", {}, `with full logits not one fits ${test}`);
  const strong = el("strong", { class: multiple < 1 ? "worse" : null }, times(multiple));
  return el("li", {}, strong, ` as many as with full logits, ${count(most)} ${test}`);
}

/** How far off the prediction was; null until that is known. */
function error({ error: off }) {
  if (off === null) return null;
  const shown = percent(Math.abs(off));
  if (shown === percent(0)) return el("p", { class: "savings" }, el("span", {}, "It took as much as ", el("strong", {}, "predicted")));
  const wrong = off < 0 ? "too little" : "too much";
  return el("p", { class: "savings" }, el("span", {}, el("strong", {}, shown), ` ${wrong} memory was predicted`));
}

function peak({ predicted_bytes: predicted, measured_bytes: measured, method }) {
  const entries = [
    { name: "predicted", bytes: predicted, text: size(predicted), origin: "modelled", note: "before the first step" },
  ];
  if (measured !== null) {
    entries.push({ name: "measured", own: true, bytes: measured, text: size(measured), origin: "measured", note: method });
  }
  return bars("Peak of a training step", entries, "linear");
}

function components({ components: parts, predicted_at: at, micro_batch_size: sequences, seq_length: length }) {
  // What attention keeps is a part of the activations.
  const shown = Object.entries(parts).filter(([name, bytes]) => bytes > 0 && name !== "attention");
  return (
    `A micro-batch of ${count(sequences)} of ${count(length)} tokens takes the most, at its ${at}; not all at once: ` +
    `${shown.map(([name, bytes]) => `${words(name)} ${size(bytes)}`).join(", ")}.`
  );
}
