/* The public API: conditional requests, and errors that say what happened. */

const KEY = "headroom-api-key";
const TIMEOUT_MS = 10_000;
const CONTENT_TIMEOUT_MS = 600_000;
const REMEMBERED = 32;
const EVENTS = 1000; // as many as the API gives at once

/** The server refused, or did not answer: `status` is 0 then. */
export class ApiError extends Error {
  constructor(status, message, retryAfterS = null) {
    super(message);
    this.status = status;
    this.retryAfterS = retryAfterS;
  }
}

/** Requests to the server that served this page. */
export class Api {
  #key = sessionStorage.getItem(KEY);
  #answers = new Map();

  /** Whether a key is in use. */
  get hasKey() {
    return Boolean(this.#key);
  }

  /** Use another key, or none; what the one before could see is forgotten. */
  useKey(key) {
    this.#key = key;
    this.#answers.clear();
    if (key) sessionStorage.setItem(KEY, key);
    else sessionStorage.removeItem(KEY);
  }

  jobs(limit) {
    return this.#get(`v1/fine_tuning/jobs?limit=${limit}`);
  }

  job(id) {
    return this.#get(jobPath(id));
  }

  /** What is known of a file. */
  async file(id) {
    return (await this.#get(filePath(id))).body;
  }

  /** Where a file's bytes are. */
  contentPath(id) {
    return `${filePath(id)}/content`;
  }

  /** A file's bytes. */
  async content(id) {
    const response = await this.#fetch(this.contentPath(id), { timeoutMs: CONTENT_TIMEOUT_MS });
    if (!response.ok) throw new ApiError(response.status, await reason(response));
    return answered(response.blob());
  }

  metrics(id, resolution) {
    return this.#get(`${jobPath(id)}/metrics?resolution=${resolution}`);
  }

  /** The events after the one with id `last`, oldest first; all of them where it is null. */
  async eventsSince(id, last) {
    const path = `${jobPath(id)}/events?limit=${EVENTS}&order=asc`;
    const found = [];
    for (;;) {
      const after = found.at(-1)?.id ?? last;
      const { body } = await this.#get(after === null ? path : `${path}&after=${after}`);
      found.push(...body.data);
      if (!body.has_more) return found;
    }
  }

  /** The body of an answer, the same object until there is news, and when to come back. */
  async #get(path) {
    const known = this.#answers.get(path);
    const response = await this.#fetch(path, { etag: known?.etag });
    const retryAfterS = Number(response.headers.get("Retry-After")) || null;
    if (response.status === 304) return { body: known.body, retryAfterS };
    if (!response.ok) throw new ApiError(response.status, await reason(response), retryAfterS);
    const body = await response.json();
    this.#remember(path, response.headers.get("ETag"), body);
    return { body, retryAfterS };
  }

  #fetch(path, { etag, timeoutMs = TIMEOUT_MS }) {
    const headers = {};
    if (this.#key) headers.Authorization = `Bearer ${this.#key}`;
    if (etag) headers["If-None-Match"] = etag;
    const signal = AbortSignal.timeout(timeoutMs);
    return answered(fetch(path, { headers, signal, cache: "no-store", credentials: "omit" }));
  }

  #remember(path, etag, body) {
    this.#answers.delete(path);
    if (etag) this.#answers.set(path, { etag, body });
    if (this.#answers.size > REMEMBERED) this.#answers.delete(this.#answers.keys().next().value);
  }
}

const jobPath = (id) => `v1/fine_tuning/jobs/${encodeURIComponent(id)}`;
const filePath = (id) => `v1/files/${encodeURIComponent(id)}`;

/** What comes over the network. */
async function answered(coming) {
  try {
    return await coming;
  } catch {
    throw new ApiError(0, "The API does not answer.");
  }
}

/** The message of an error envelope. */
async function reason(response) {
  const body = await response.json().catch(() => null);
  return body?.error?.message ?? `The API answered ${response.status}.`;
}
