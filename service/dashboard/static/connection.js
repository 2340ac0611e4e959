/* How the page stands with the server: the line in the header, the banner, and the key dialog. */

import { byId, setText } from "./dom.js";

/** Say that all is well. */
export function showLive() {
  showState("live", "Live");
  byId("banner").hidden = true;
}

/** Say what went wrong, and that it is tried again. */
export function showTrouble(error) {
  const storage = error.status === 503;
  showState("down", storage ? "Storage down" : "Not connected");
  showBanner(`${error.message} This page tries again by itself, and shows what it knew last.`);
}

/** Say that the server wants another key. */
export function showLocked(message) {
  showState("locked", "Key needed");
  showBanner(message);
}

function showBanner(text) {
  setText(byId("banner"), text);
  byId("banner").hidden = false;
}

function showState(state, text) {
  byId("connection").dataset.state = state;
  setText(byId("connection"), text);
}

/** The dialog for the API key; `changed` is called when another one is to be used. */
export class KeyDialog {
  #dialog = byId("key-dialog");
  #input = byId("key-input");

  constructor(api, changed) {
    const use = (key) => {
      api.useKey(key);
      this.#close();
      changed();
    };
    byId("key-button").addEventListener("click", () => this.open(api.hasKey));
    byId("key-cancel").addEventListener("click", () => this.#close());
    byId("key-forget").addEventListener("click", () => use(null));
    byId("key-form").addEventListener("submit", (event) => {
      event.preventDefault();
      use(this.#input.value.trim() || null);
    });
  }

  /** Ask for a key. */
  open(hasKey, message = "The key stays in this tab, until it is closed.") {
    setText(byId("key-message"), message);
    byId("key-forget").hidden = !hasKey;
    if (!this.#dialog.open) this.#dialog.showModal();
    this.#input.focus();
  }

  #close() {
    this.#input.value = "";
    this.#dialog.close();
  }
}
