/* The head of one job: where it stands, its facts, its error and its options. */

import { ago, count, date, duration, given, loss, percent, size, small, words } from "./format.js";
import { arrange, byId, el, setText } from "./dom.js";
import { share, showStatus, title } from "./jobs.js";

const ENDED = new Set(["succeeded", "failed", "cancelled"]);

/** Whether a job has ended. */
export const hasEnded = (job) => ENDED.has(job.status);

/** Show a job. */
export function showJob(job) {
  byId("job").dataset.kind = job.comparison ? "comparison" : "training";
  setText(byId("job-title"), job.comparison ? `Comparison on ${title(job)}` : title(job));
  setText(byId("job-id"), job.id);
  showStatus(byId("job-status"), job);
  showProgress(job);
  showError(job.error);
  showFacts(byId("facts"), facts(job));
  showFacts(byId("options"), options(job));
}

function showProgress(job) {
  byId("progress-box").hidden = hasEnded(job) && !job.progress;
  const bar = byId("progress");
  bar.dataset.status = job.status;
  if (job.status === "running" && !job.progress?.total_steps) bar.removeAttribute("value");
  else bar.value = job.status === "succeeded" ? 1 : share(job);
  setText(byId("progress-text"), progressText(job));
}

function progressText(job) {
  if (job.status === "queued" && job.queue_position) {
    return `Position ${job.queue_position} in the queue`;
  }
  const { phase, step, total_steps: total, eta_s: eta } = job.progress ?? {};
  const running = job.status === "running";
  const parts = [running && phase ? words(phase) : null];
  if (total) parts.push(`step ${count(step)} of ${count(total)}`, `${Math.floor(share(job) * 100)} %`);
  if (running && eta !== null && eta !== undefined) parts.push(`${duration(eta)} left`);
  return parts.filter(Boolean).join(" · ") || words(job.status);
}

function showError(error) {
  const box = byId("job-error");
  box.hidden = !error;
  if (!error) return;
  const where = error.param ? ` (${error.param})` : "";
  if (box.textContent !== error.code + where + error.message) {
    box.replaceChildren(el("code", {}, error.code + where), el("p", {}, error.message));
  }
}

/** Pairs of a name and a text; a null text leaves the pair out. */
function facts(job) {
  return [
    // A comparison's are those of its losses, in its table.
    ...(job.comparison ? [] : trainingFacts(job)),
    ["Device", given(job.progress?.device, String)],
    ["Worker", given(job.worker, String)],
    ["Attempt", job.attempt ? String(job.attempt) : null],
    ["Created", ago(job.created_at), date(job.created_at)],
    ["Took", given(job.finished_at, (end) => duration(end - (job.started_at ?? job.created_at)))],
  ];
}

function trainingFacts(job) {
  const now = job.progress ?? {};
  const running = job.status === "running";
  return [
    ["Training loss", given(now.train_loss, loss)],
    ["Validation loss", given(now.valid_loss, loss)],
    ["Token accuracy", given(now.train_mean_token_accuracy, percent)],
    ["Speed", given(now.tokens_per_s, (value) => `${count(value)} tokens/s`)],
    ["Memory now", running ? given(now.device_memory_bytes, size) : null],
    ["Memory peak", given(now.device_memory_peak_bytes, size)],
    ["Learning rate", given(now.learning_rate, small)],
    ["Epoch", given(now.epoch, (value) => value.toFixed(2))],
    ["Tokens", given(job.trained_tokens ?? (now.tokens || null), count)],
  ];
}

function options(job) {
  const chosen = job.resolved ?? {};
  const asked = { model: job.model, training_file: job.training_file, validation_file: job.validation_file };
  const all = { ...asked, seed: job.seed, ...chosen, ...job.metadata };
  return Object.entries(all).map(([name, value]) => [words(name), value === null ? null : String(value)]);
}

/** Fill a description list; pairs that are there already are changed in place. */
function showFacts(list, pairs) {
  const shown = new Map([...list.children].map((pair) => [pair.dataset.name, pair]));
  const kept = pairs.filter(([, text]) => text !== null && text !== undefined);
  const elements = kept.map(([name, text, hint]) => {
    const pair = shown.get(name) ?? el("div", { "data-name": name }, el("dt", {}, name), el("dd"));
    setText(pair.lastElementChild, text);
    if (hint) pair.title = hint;
    return pair;
  });
  arrange(list, elements);
}
