/* The public API: conditional requests, and errors that say what happened. */

const KEY = "headroom-api-key";
const TIMEOUT_MS = 10_000;
const REMEMBERED = 32;
const FIRST_EVENTS = 1000;
const NEXT_EVENTS = 100;

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

  metrics(id, resolution) {
    return this.#get(`${jobPath(id)}/metrics?resolution=${resolution}`);
  }

  /** The events after the one with id `last`, oldest first; the newest page where it is null. */
  async eventsSince(id, last) {
    const path = `${jobPath(id)}/events`;
    // A copy, since the body is kept for answers of 304.
    if (last === null) return [...(await this.#get(`${path}?limit=${FIRST_EVENTS}`)).body.data].reverse();
    const found = [];
    for (;;) {
      const { body } = await this.#get(`${path}?limit=${NEXT_EVENTS}&order=asc&after=${found.at(-1)?.id ?? last}`);
      found.push(...body.data);
      if (!body.has_more) return found;
    }
  }

  /** The body of an answer, whether it is another than last time, and when to come back. */
  async #get(path) {
    const known = this.#answers.get(path);
    const response = await this.#fetch(path, known?.etag);
    const retryAfterS = Number(response.headers.get("Retry-After")) || null;
    if (response.status === 304) return { body: known.body, changed: false, retryAfterS };
    if (!response.ok) throw new ApiError(response.status, await reason(response), retryAfterS);
    const body = await response.json();
    this.#remember(path, response.headers.get("ETag"), body);
    return { body, changed: true, retryAfterS };
  }

  async #fetch(path, etag) {
    const headers = {};
    if (this.#key) headers.Authorization = `Bearer ${this.#key}`;
    if (etag) headers["If-None-Match"] = etag;
    const signal = AbortSignal.timeout(TIMEOUT_MS);
    try {
      return await fetch(path, { headers, signal, cache: "no-store", credentials: "omit" });
    } catch {
      throw new ApiError(0, "The API does not answer.");
    }
  }

  #remember(path, etag, body) {
    this.#answers.delete(path);
    if (etag) this.#answers.set(path, { etag, body });
    if (this.#answers.size > REMEMBERED) this.#answers.delete(this.#answers.keys().next().value);
  }
}

const jobPath = (id) => `v1/fine_tuning/jobs/${encodeURIComponent(id)}`;

/** The message of an error envelope. */
async function reason(response) {
  const body = await response.json().catch(() => null);
  return body?.error?.message ?? `The API answered ${response.status}.`;
}
