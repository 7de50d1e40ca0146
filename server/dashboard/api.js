/** @file The server's API: requests, errors, and the types of what comes back. */

import { currentKey, replaceKey } from "./key.js";

// The API lies beside the dashboard, also below a proxy's prefix.
const ROOT = new URL("../", import.meta.url);

/** The address that clients are given. */
export const BASE_URL = new URL("v1", ROOT).href;

/**
 * @typedef {{total: number, completed: number, failed: number}} RequestCounts
 * @typedef {{code: string, line: number | null, message: string, param: string | null}} LineError
 * @typedef {{
 *   id: string, endpoint: string, model: string | null, status: string,
 *   errors: {data: LineError[]} | null,
 *   input_file_id: string, output_file_id: string | null, error_file_id: string | null,
 *   created_at: number, in_progress_at: number | null, expires_at: number,
 *   finalizing_at: number | null, completed_at: number | null, failed_at: number | null,
 *   expired_at: number | null, cancelling_at: number | null, cancelled_at: number | null,
 *   request_counts: RequestCounts,
 *   usage: {input_tokens: number, input_tokens_details: {cached_tokens: number}, output_tokens: number},
 *   metadata: Record<string, string> | null,
 *   trunkline: {priority: number, paused_at: number | null, retry_of: string | null},
 * }} Batch
 * @typedef {{start: number, seconds: number, completed: number, failed: number,
 *   prompt_tokens: number, cached_tokens: number, output_tokens: number}} Bucket
 * @typedef {{code: string | null, status_code: number | null, message: string, count: number,
 *   lines: number[]}} ErrorGroup
 * @typedef {{elapsed_seconds: number | null, eta_seconds: number | null,
 *   requests_per_second: number | null, output_tokens_per_second: number | null,
 *   buckets: Bucket[], errors: ErrorGroup[]}} Progress
 * @typedef {{requests: number, prefix_tokens: number, prefix_start: number,
 *   first_in_order: number}} Group
 * @typedef {{sequences: number, prompt_tokens: number, unique_prompt_tokens: number,
 *   saved_share: number, shared_prefixes: number, groups: Group[], predicted_seconds: number,
 *   prefix_sharing: string, order: string}} Plan
 * @typedef {{actual_seconds: number | null, actual_saved_share: number | null,
 *   plan: Plan | null}} BatchPlan
 * @typedef {{id: string, model: string, device: string, dtype: string, started_at: number,
 *   heartbeat_at: number, max_model_tokens: number, figures: Record<string, number>}} Engine
 * @typedef {{id: string, filename: string, bytes: number, expires_at: number | null}} FileObject
 */

/**
 * @template Item
 * @typedef {{data: Item[], has_more: boolean, last_id: string | null}} List
 */

/** What the server answered, if it was not what was asked for. */
export class ApiError extends Error {
  /**
   * @param {number} status
   * @param {string} message
   * @param {number | null} retryAfterSeconds
   */
  constructor(status, message, retryAfterSeconds = null) {
    super(message);
    this.status = status;
    this.retryAfterSeconds = retryAfterSeconds;
  }
}

/** The server could not be reached, or fell silent in the middle. */
export class ConnectionError extends Error {
  constructor() {
    super("The server cannot be reached.");
  }
}

/**
 * @template T
 * @param {string} path
 * @param {AbortSignal} [signal]
 * @param {(response: Response) => Promise<T>} [read]
 * @returns {Promise<T>}
 */
export async function get(path, signal, read = (response) => response.json()) {
  return reached(read(await open(path, signal)));
}

/**
 * @param {string} path
 * @param {AbortSignal} [signal]
 * @returns {Promise<Response>} with its body still to be read
 */
export async function open(path, signal) {
  return authorized((headers) =>
    fetch(new URL(path, ROOT), { headers, signal, cache: "no-store" }),
  );
}

/**
 * @template T
 * @param {string} path
 * @param {object} [body]
 * @param {Record<string, string>} [extraHeaders]
 * @returns {Promise<T>}
 */
export async function post(path, body, extraHeaders = {}) {
  const response = await authorized((headers) =>
    fetch(new URL(path, ROOT), {
      method: "POST",
      headers: {
        ...headers,
        ...extraHeaders,
        ...(body ? { "content-type": "application/json" } : {}),
      },
      body: body && JSON.stringify(body),
    }),
  );
  return reached(response.json());
}

/**
 * Upload a file as the input of a batch.
 * @param {File} file
 * @param {(numSent: number, numBytes: number) => void} onProgress bytes
 * @param {AbortSignal} signal
 * @returns {Promise<FileObject>}
 */
export async function upload(file, onProgress, signal) {
  const response = await authorized((headers) => {
    const form = new FormData();
    form.append("purpose", "batch");
    form.append("file", file, file.name);
    return send(form, headers, onProgress, signal);
  });
  return reached(response.json());
}

/**
 * A POST of a form. Only XMLHttpRequest tells how much of a body has been sent.
 * @param {FormData} form
 * @param {Record<string, string>} headers
 * @param {(numSent: number, numBytes: number) => void} onProgress
 * @param {AbortSignal} signal
 * @returns {Promise<Response>}
 */
function send(form, headers, onProgress, signal) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    const abort = () => request.abort();
    const settle = (/** @type {() => void} */ how) => () => {
      signal.removeEventListener("abort", abort);
      how();
    };
    request.open("POST", new URL("v1/files", ROOT));
    for (const [name, value] of Object.entries(headers)) request.setRequestHeader(name, value);
    request.upload.addEventListener("progress", (event) => onProgress(event.loaded, event.total));
    request.addEventListener(
      "load",
      settle(() => resolve(new Response(request.responseText, { status: request.status }))),
    );
    request.addEventListener(
      "error",
      settle(() => reject(new ConnectionError())),
    );
    request.addEventListener(
      "abort",
      settle(() => reject(new DOMException("The upload was stopped.", "AbortError"))),
    );
    signal.addEventListener("abort", abort);
    request.send(form);
  });
}

/**
 * @param {(headers: Record<string, string>) => Promise<Response>} request
 * @returns {Promise<Response>} one that went well
 */
async function authorized(request) {
  for (;;) {
    const key = currentKey();
    const response = await reached(request(key === null ? {} : { authorization: `Bearer ${key}` }));
    if (response.ok) return response;
    const error = await errorOf(response);
    if (response.status !== 401 || !(await replaceKey(key, error.message))) throw error;
  }
}

/**
 * What comes of a transfer. `fetch` reports a lost connection as a TypeError, as if it were a mistake
 * in the program.
 * @template T
 * @param {Promise<T>} transfer
 * @returns {Promise<T>}
 */
export function reached(transfer) {
  return transfer.catch((error) => {
    throw error instanceof TypeError ? new ConnectionError() : error;
  });
}

/** @param {Response} response */
async function errorOf(response) {
  const text = await reached(response.text());
  const retryAfter = Number(response.headers.get("retry-after"));
  let message = `The server answered ${response.status}.`;
  try {
    message = JSON.parse(text).error.message;
  } catch {
    // Not the server's own words: a proxy's, perhaps. The status says more than its page.
  }
  return new ApiError(response.status, message, retryAfter || null);
}

/** A key that makes a request act once however often it is sent. */
export function idempotencyKey() {
  return [...crypto.getRandomValues(new Uint8Array(16))]
    .map((b) => b.toString(16).padStart(2, "0"))
    .join("");
}

/** @param {string} id */
export function batchPath(id) {
  return `v1/batches/${encodeURIComponent(id)}`;
}

/** @param {string} id */
export function filePath(id) {
  return `v1/files/${encodeURIComponent(id)}`;
}
