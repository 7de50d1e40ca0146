/** @file Upload a file and start a batch of it. */

import { idempotencyKey, post, upload } from "../api.js";
import { announce, el, setText } from "../dom.js";
import * as format from "../format.js";
import { batchLink } from "../parts.js";

const ENDPOINTS = [
  "/v1/chat/completions",
  "/v1/completions",
  "/v1/responses",
  "/v1/embeddings",
  "/v1/score",
  "/v1/rerank",
];
// Enough for the first line of most files; a longer one is not looked into.
const PEEK_BYTES = 256 * 1024;

/** @type {import("../router.js").View} */
export async function showNewBatch(root, signal) {
  const input = el("input", {
    id: "new-file",
    type: "file",
    accept: ".jsonl,application/jsonl,application/x-ndjson",
    "aria-describedby": "new-file-note",
  });
  const note = el(
    "p",
    { class: "note", id: "new-file-note" },
    "Or drop one here. One request a line.",
  );
  const zone = el(
    "div",
    { class: "drop-zone" },
    el("label", { for: "new-file" }, "Input file (.jsonl)"),
    input,
    note,
  );
  const endpoint = el(
    "select",
    { id: "new-endpoint" },
    ...ENDPOINTS.map((path) => el("option", { value: path }, path)),
  );
  const priority = el("input", {
    ...{
      id: "new-priority",
      type: "number",
      min: -100,
      max: 100,
      step: 1,
      value: 0,
      required: true,
    },
    "aria-describedby": "new-priority-note",
  });
  const bar = el("progress", { "aria-label": "Upload", max: 1, value: 0 });
  const sent = el("p", { class: "note" });
  const stop = el("button", { type: "button" }, "Stop");
  const uploading = el("div", { class: "uploading", hidden: true }, bar, sent, stop);
  const error = el("p", { class: "error", role: "alert" });
  const submit = el("button", { type: "submit", class: "primary" }, "Upload and start");
  const form = el(
    "form",
    { class: "new-batch", novalidate: true },
    zone,
    el("div", { class: "field" }, el("label", { for: "new-endpoint" }, "Endpoint"), endpoint),
    el(
      "div",
      { class: "field" },
      el("label", { for: "new-priority" }, "Priority"),
      priority,
      el("p", { class: "note", id: "new-priority-note" }, "From -100 to 100; higher runs first."),
    ),
    uploading,
    error,
    el("div", { class: "actions" }, submit),
  );
  root.append(el("h1", { tabindex: "-1" }, "New batch"), form);

  /** @type {File | null} */
  let file = null;
  // What has been uploaded is not uploaded again when only the batch could not be made.
  /** @type {{file: File, id: string} | null} */
  let uploaded = null;
  // The same form again is the same batch: a reply may have been lost.
  let attempt = { body: "", key: "" };

  async function start() {
    const body = {
      input_file_id: uploaded.id,
      endpoint: endpoint.value,
      completion_window: "24h",
      priority: priority.valueAsNumber,
    };
    const text = JSON.stringify(body);
    if (attempt.body !== text) attempt = { body: text, key: idempotencyKey() };
    return post("v1/batches", body, { "idempotency-key": attempt.key });
  }

  /** @param {File} chosen */
  async function choose(chosen) {
    file = chosen;
    setText(error, "");
    const line = await firstLine(chosen);
    if (ENDPOINTS.includes(line.url)) endpoint.value = line.url;
    const model = line.model === null ? "" : `, model ${line.model}`;
    setText(note, `${chosen.name}, ${format.bytes(chosen.size)}${model}`);
  }
  input.addEventListener("change", () => {
    if (input.files[0] !== undefined) choose(input.files[0]);
  });
  acceptDrops(zone, choose, signal);

  /** @param {string} text @param {HTMLElement} culprit */
  function refuse(text, culprit) {
    setText(error, text);
    culprit.focus();
  }

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    setText(error, "");
    if (file === null) return refuse("Choose a .jsonl file first.", input);
    if (file.size === 0)
      return refuse(`${file.name} is empty: a batch needs at least one line.`, input);
    if (!priority.checkValidity()) {
      return refuse("The priority must be a whole number from -100 to 100.", priority);
    }
    submit.setAttribute("disabled", "");
    const stopping = new AbortController();
    const abort = () => stopping.abort();
    signal.addEventListener("abort", abort);
    stop.addEventListener("click", abort);
    try {
      if (uploaded?.file !== file) {
        uploading.hidden = false;
        uploaded = { file, id: (await upload(file, makeMeter(bar, sent), stopping.signal)).id };
      }
      const batch = await start();
      announce(`Batch of ${file.name} started`);
      if (!signal.aborted) location.hash = batchLink(batch.id);
    } catch (problem) {
      setText(error, problem.message);
    } finally {
      signal.removeEventListener("abort", abort);
      stop.removeEventListener("click", abort);
      uploading.hidden = true;
      submit.removeAttribute("disabled");
      if (error.textContent !== "") submit.focus();
    }
  });
}

/**
 * What the first line asks for, as far as it can be told.
 * @param {File} file
 * @returns {Promise<{url: string | null, model: string | null}>}
 */
async function firstLine(file) {
  const text = await file.slice(0, PEEK_BYTES).text();
  try {
    const line = JSON.parse(text.split("\n", 1)[0]);
    return { url: line.url ?? null, model: line.body?.model ?? null };
  } catch {
    return { url: null, model: null };
  }
}

/**
 * @param {HTMLElement} zone
 * @param {(file: File) => void} onFile
 * @param {AbortSignal} signal
 */
function acceptDrops(zone, onFile, signal) {
  // The browser would leave the page for a file that misses the zone.
  for (const type of ["dragover", "drop"]) {
    document.addEventListener(type, (event) => event.preventDefault(), { signal });
  }
  for (const type of ["dragenter", "dragover"]) {
    zone.addEventListener(type, (event) => {
      event.preventDefault();
      zone.classList.add("is-over");
    });
  }
  zone.addEventListener("dragleave", () => zone.classList.remove("is-over"));
  zone.addEventListener("drop", (event) => {
    event.preventDefault();
    zone.classList.remove("is-over");
    const [file] = event.dataTransfer.files;
    if (file !== undefined) onFile(file);
  });
}

/**
 * Shows how much has been sent, and how fast.
 * @param {HTMLProgressElement} bar
 * @param {HTMLElement} text
 */
function makeMeter(bar, text) {
  const started = performance.now();
  return (/** @type {number} */ numSent, /** @type {number} */ numBytes) => {
    bar.max = numBytes;
    bar.value = numSent;
    const perSecond = (1000 * numSent) / Math.max(performance.now() - started, 1);
    const pace = `${format.bytes(numSent)} of ${format.bytes(numBytes)}, ${format.bytes(Math.round(perSecond))}/s`;
    setText(
      text,
      numSent < numBytes ? pace : `${format.bytes(numBytes)} sent; the server is saving them`,
    );
  };
}
