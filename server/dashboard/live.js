/** @file Values that keep up with the server: repeated requests, and the stream of a batch's events. */

import { ApiError, ConnectionError, batchPath, get, open, reached } from "./api.js";
import { setText } from "./dom.js";

/** @typedef {import("./api.js").Batch} Batch */

const ENDED = new Set(["completed", "failed", "expired", "cancelled"]);
const MAX_PAUSE_SECONDS = 30;
const POLL_SECONDS = 2;
// A proxy that collects a stream before it passes it on lets nothing through for long.
const FIRST_EVENT_SECONDS = 5;
// The server says something every 15 seconds.
const SILENCE_SECONDS = 45;

/** @param {Batch} batch */
export function hasEnded(batch) {
  return ENDED.has(batch.status);
}

/**
 * Run `task` at once and again and again, until it returns false or `signal` says so. A hidden page
 * rests. What may pass by itself, such as a lost connection, is shown and tried again.
 * @param {number} seconds from the end of one run to the next
 * @param {AbortSignal} signal
 * @param {() => Promise<boolean | void>} task
 */
export async function every(seconds, signal, task) {
  let numFailures = 0;
  for (;;) {
    let pause = seconds;
    try {
      if ((await task()) === false) return;
      numFailures = 0;
      showConnection("");
    } catch (error) {
      if (!mayPass(error)) throw error;
      pause = error.retryAfterSeconds ?? Math.min(seconds * 2 ** numFailures, MAX_PAUSE_SECONDS);
      numFailures += 1;
      showConnection(error instanceof ApiError ? error.message : "Offline; trying again");
    }
    await sleep(pause, signal);
    await visible(signal);
  }
}

/**
 * Follow a batch until it has ended.
 * @param {string} id
 * @param {AbortSignal} signal
 * @param {(batch: Batch) => void} onBatch
 */
export async function followBatch(id, signal, onBatch) {
  let canStream = true;
  await every(POLL_SECONDS, signal, async () => {
    if (canStream) {
      const isDelivered = await stream(id, signal, onBatch);
      canStream = isDelivered;
    }
    // After a stream too: it also ends when the server stops.
    const batch = /** @type {Batch} */ (await get(batchPath(id), signal));
    onBatch(batch);
    return !hasEnded(batch);
  });
}

/**
 * Pass a batch's events on, until they end or stay away.
 * @param {string} id
 * @param {AbortSignal} signal
 * @param {(batch: Batch) => void} onBatch
 * @returns {Promise<boolean>} whether any came
 */
async function stream(id, signal, onBatch) {
  const watchdog = new AbortController();
  const stop = () => watchdog.abort();
  signal.addEventListener("abort", stop);
  let timer = setTimeout(stop, FIRST_EVENT_SECONDS * 1000);
  let isDelivered = false;
  try {
    const response = await open(`${batchPath(id)}/events`, watchdog.signal);
    for await (const text of blocks(response.body)) {
      clearTimeout(timer);
      timer = setTimeout(stop, SILENCE_SECONDS * 1000);
      const data = dataOf(text);
      if (data === "") continue;
      isDelivered = true;
      showConnection("");
      onBatch(JSON.parse(data));
    }
  } catch (error) {
    // The request that follows a broken stream tells why it broke.
    if (signal.aborted || !(watchdog.signal.aborted || mayPass(error))) throw error;
  } finally {
    clearTimeout(timer);
    signal.removeEventListener("abort", stop);
  }
  return isDelivered;
}

/**
 * The blocks of an event stream, which blank lines separate.
 * @param {ReadableStream<any>} body
 */
async function* blocks(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reached(reader.read());
    if (done) return;
    const parts = (rest + value).split(/\r?\n\r?\n/);
    rest = parts.pop();
    yield* parts;
  }
}

/** The data of an event; none in a comment. @param {string} block */
function dataOf(block) {
  return block
    .split(/\r?\n/)
    .filter((line) => line.startsWith("data:"))
    .map((line) => line.slice("data:".length).trimStart())
    .join("\n");
}

/** Whether the same request may go well later. @param {unknown} error */
function mayPass(error) {
  if (error instanceof ApiError) return error.status === 429 || error.status >= 500;
  return error instanceof ConnectionError;
}

/** @param {string} problem empty: none */
function showConnection(problem) {
  setText(document.getElementById("connection"), problem);
}

/** @param {number} seconds @param {AbortSignal} signal @returns {Promise<void>} */
function sleep(seconds, signal) {
  return new Promise((resolve, reject) => {
    if (signal.aborted) return reject(signal.reason);
    const abort = () => {
      clearTimeout(timer);
      reject(signal.reason);
    };
    const timer = setTimeout(() => {
      signal.removeEventListener("abort", abort);
      resolve();
    }, seconds * 1000);
    signal.addEventListener("abort", abort, { once: true });
  });
}

/** Until the page can be seen. @param {AbortSignal} signal @returns {Promise<void>} */
function visible(signal) {
  return new Promise((resolve, reject) => {
    if (!document.hidden) return resolve();
    const abort = () => {
      document.removeEventListener("visibilitychange", seen);
      reject(signal.reason);
    };
    const seen = () => {
      signal.removeEventListener("abort", abort);
      resolve();
    };
    document.addEventListener("visibilitychange", seen, { once: true });
    signal.addEventListener("abort", abort, { once: true });
  });
}
