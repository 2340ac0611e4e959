/* The page: polls the list and the chosen job, and hands what comes to the views. */

import { Api } from "./api.js";
import { ComparisonView } from "./comparison.js";
import { EventLog } from "./events.js";
import { JobList } from "./jobs.js";
import { KeyDialog, showLive, showLocked, showTrouble } from "./connection.js";
import { LedgerView } from "./ledger.js";
import { LossCurve } from "./curve.js";
import { Poller } from "./poll.js";
import { PredictionView } from "./prediction.js";
import { ResultsView } from "./results.js";
import { byId } from "./dom.js";
import { hasEnded, showJob } from "./job.js";

const BUSY_S = 1;
const IDLE_S = 5;
const PAGE = 20;
const MAX_JOBS = 100;
const CURVE_POINTS = 400;

const api = new Api();
const list = new JobList(byId("job-list"));
const log = new EventLog(byId("events"));
const curve = new LossCurve(byId("curve"), byId("curve-legend"));
const ledger = new LedgerView(byId("ledger"), byId("ledger-scale"));
const comparison = new ComparisonView(byId("comparison"));
const results = new ResultsView(api, byId("results-card"), byId("results"));
const prediction = new PredictionView(byId("prediction"));
let limit = PAGE;
let shown = null;

/** One round of polling; the seconds until the next one. */
async function poll() {
  const jobs = await api.jobs(limit);
  const linked = location.hash.slice(1);
  const id = linked || jobs.body.data[0]?.id || null;
  list.update(jobs.body.data, id);
  byId("more-jobs").hidden = !jobs.body.has_more || limit >= MAX_JOBS;
  const waitS = await pollJob(id);
  showView(linked, jobs.body.data.length);
  showLive();
  return jobs.body.data.every(hasEnded) ? Math.max(waitS, IDLE_S) : waitS;
}

/** Refresh the chosen job; its events and metrics too, where it has changed. */
async function pollJob(id) {
  if (id === null) return IDLE_S;
  if (shown?.id !== id) forget();
  let answer;
  try {
    answer = await api.job(id);
  } catch (error) {
    if (error.status !== 404) throw error;
    return IDLE_S;
  }
  if (shown !== answer.body) await refresh(id, answer.body);
  showJob(answer.body);
  return hasEnded(answer.body) ? IDLE_S : Math.max(BUSY_S, answer.retryAfterS ?? 0);
}

async function refresh(id, job) {
  const [events, metrics] = await Promise.all([
    api.eventsSince(id, shown?.id === id ? log.last : null),
    api.metrics(id, CURVE_POINTS),
    results.update(job),
  ]);
  shown = job;
  log.add(events);
  if (job.comparison) {
    comparison.add(events);
    comparison.update(job, hasEnded(job) ? "Nothing was measured." : "The first figures come when a loss has done its steps.");
    return;
  }
  curve.update(metrics.body.data, job.progress?.total_steps, hasEnded(job) ? "No step was taken." : "It begins with the first step.");
  prediction.update(job, hasEnded(job) ? "This job has none." : "Predicted before training begins.");
  ledger.update(job, hasEnded(job) ? "This job has none." : "Measured before training begins.");
}

function forget() {
  shown = null;
  log.clear();
  comparison.clear();
}

/** Show what there is to see; on narrow screens the list gives way to a linked job. */
function showView(linked, jobs) {
  document.body.dataset.view = linked ? "job" : "list";
  byId("job").hidden = shown === null;
  byId("missing").hidden = !(linked && shown === null);
  byId("empty").hidden = jobs > 0 || Boolean(linked);
  document.title = shown ? `${shown.status} · Headroom` : "Headroom";
}

function failed(error) {
  if (error.status !== 401) {
    showTrouble(error);
    return;
  }
  forget();
  list.update([], null);
  byId("job").hidden = true;
  showLocked(error.message);
  if (!api.hasKey) dialog.open(false, "This server asks for an API key. It stays in this tab, until it is closed.");
}

const poller = new Poller(poll, failed);
const dialog = new KeyDialog(api, () => {
  forget();
  poller.now();
});
window.addEventListener("hashchange", () => poller.now());
byId("more-jobs").addEventListener("click", () => {
  limit = Math.min(MAX_JOBS, limit + PAGE);
  poller.now();
});
byId("show-metrics").addEventListener("change", (event) => log.showMetrics(event.target.checked));
byId("copy-id").addEventListener("click", () => navigator.clipboard?.writeText(byId("job-id").textContent));
poller.now();
