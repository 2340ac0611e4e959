/* What a job made: its model by name, and its result files as links. */

import { size } from "./format.js";
import { el, setText } from "./dom.js";

// Long enough for a browser to have taken over what it saves.
const KEPT_MS = 60_000;

/** The results in `root`, within a `card` that is there for a job that has some. */
export class ResultsView {
  #api;
  #card;
  #root;
  #shown = null;

  constructor(api, card, root) {
    this.#api = api;
    this.#card = card;
    this.#root = root;
  }

  /** Show a job's results. */
  async update({ id, fine_tuned_model: model, result_files: ids }) {
    const seen = JSON.stringify([id, model, ids]);
    if (seen === this.#shown) return;
    const files = await Promise.all(ids.map((file) => this.#find(file)));
    this.#shown = seen;
    this.#card.hidden = !model && !ids.length;
    this.#root.replaceChildren(
      ...(model ? named(model) : []),
      el("ul", { class: "files" }, ...files.map((file, index) => this.#row(file, ids[index]))),
    );
  }

  /** What is known of a file; null where it was deleted. */
  async #find(id) {
    try {
      return await this.#api.file(id);
    } catch (error) {
      if (error.status !== 404) throw error;
      return null;
    }
  }

  #row(file, id) {
    if (file === null) return el("li", { class: "muted" }, `${id} was deleted`);
    const link = el("a", { href: this.#api.contentPath(id), download: file.filename }, file.filename);
    const said = el("span", { class: "muted", role: "status" });
    link.addEventListener("click", (event) => {
      // A link carries no key.
      if (!this.#api.hasKey) return;
      event.preventDefault();
      this.#save(file, said);
    });
    return el("li", {}, link, el("span", { class: "muted" }, size(file.bytes)), said);
  }

  /** Fetch a file with the key, and have the browser save it. */
  async #save({ id, filename }, said) {
    setText(said, "fetching");
    try {
      const url = URL.createObjectURL(await this.#api.content(id));
      el("a", { href: url, download: filename }).click();
      setTimeout(() => URL.revokeObjectURL(url), KEPT_MS);
      setText(said, "");
    } catch (error) {
      setText(said, `not saved: ${error.message}`);
    }
  }
}

/** A model's name, to copy, and the command that downloads it. */
function named(model) {
  const copy = el("button", { type: "button", class: "quiet" }, "Copy name");
  copy.addEventListener("click", () => navigator.clipboard?.writeText(model));
  return [
    el("p", { class: "model" }, "Model ", el("code", {}, model), copy),
    el("pre", {}, el("code", {}, `headroom download ${model} FOLDER`)),
  ];
}
