/* The list of jobs: a link a job, changed in place so that focus and scrolling stay. */

import { ago, date, words } from "./format.js";
import { arrange, el, setText } from "./dom.js";

/** The list in `root`; `update` shows these jobs. */
export class JobList {
  #root;
  #rows = new Map();

  constructor(root) {
    this.#root = root;
  }

  update(jobs, selected) {
    const rows = new Map(jobs.map((job) => [job.id, this.#rows.get(job.id) ?? new Row(job)]));
    for (const job of jobs) rows.get(job.id).update(job, job.id === selected);
    this.#rows = rows;
    arrange(this.#root, [...rows.values()].map((row) => row.element));
  }
}

class Row {
  #name = el("span", { class: "row-name" });
  #status = el("span", { class: "status" });
  #kind = el("span", { class: "tag" });
  #when = el("time", { class: "muted" });
  #bar = el("progress", { max: 1, "aria-hidden": "true" });
  #link;

  constructor(job) {
    const lines = [
      el("span", { class: "row-line" }, this.#name, this.#status),
      el("span", { class: "row-line" }, el("code", { class: "muted" }, shortId(job.id)), this.#kind, this.#when),
    ];
    this.#link = el("a", { href: `#${job.id}` }, ...lines, this.#bar);
    this.element = el("li", {}, this.#link);
  }

  update(job, selected) {
    setText(this.#name, title(job));
    showStatus(this.#status, job);
    setText(this.#kind, job.comparison ? "comparison" : "");
    setText(this.#when, ago(job.created_at));
    this.#when.title = date(job.created_at);
    this.#bar.hidden = job.status !== "running";
    this.#bar.value = share(job);
    if (selected) this.#link.setAttribute("aria-current", "true");
    else this.#link.removeAttribute("aria-current");
  }
}

/** Show a job's status, or that it is being cancelled. */
export function showStatus(element, job) {
  const cancelling = job.cancel_requested && ["validating_files", "running"].includes(job.status);
  setText(element, cancelling ? "cancelling" : words(job.status));
  element.dataset.status = job.status;
}

/** What a job is called: its base model, and the suffix that its caller chose. */
export function title(job) {
  const base = job.model.startsWith("ft:") ? job.model.split(":")[1] : job.model;
  const suffix = job.suffix ?? job.fine_tuned_model?.split(":")[3];
  return suffix ? `${base} · ${suffix}` : base;
}

/** The part of a job's steps that is done. */
export function share(job) {
  const { step, total_steps: total } = job.progress ?? {};
  return total ? Math.min(1, step / total) : 0;
}

const shortId = (id) => (id.length > 20 ? `…${id.slice(-10)}` : id);
