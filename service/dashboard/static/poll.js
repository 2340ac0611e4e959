/* Repeat a task: at its own pace, slower when it fails, not at all while nobody looks. */

const MAX_WAIT_S = 15;

/** Runs `task`, which returns the seconds until its next run. */
export class Poller {
  #task;
  #failed;
  #timer = null;
  #failures = 0;
  #running = false;
  #again = false;

  /** `failed(error)` is told what went wrong; another try follows by itself. */
  constructor(task, failed) {
    this.#task = task;
    this.#failed = failed;
    document.addEventListener("visibilitychange", () => this.now());
  }

  /** Run at once; if a run is under way, once more after it. */
  async now() {
    clearTimeout(this.#timer);
    if (document.hidden) return;
    if (this.#running) {
      this.#again = true;
      return;
    }
    this.#running = true;
    const waitS = await this.#run();
    this.#running = false;
    this.#schedule(this.#again ? 0 : waitS);
    this.#again = false;
  }

  async #run() {
    try {
      const waitS = await this.#task();
      this.#failures = 0;
      return waitS;
    } catch (error) {
      this.#failures += 1;
      this.#failed(error);
      const doubledS = 2 ** (this.#failures - 1);
      return Math.min(MAX_WAIT_S, Math.max(error.retryAfterS ?? 0, doubledS));
    }
  }

  #schedule(waitS) {
    clearTimeout(this.#timer);
    if (waitS !== null && !document.hidden) this.#timer = setTimeout(() => this.now(), waitS * 1000);
  }
}
