/** @file Downloads by request, since a plain link cannot carry a key. */

import { open, reached } from "./api.js";
import { announce, el, setText } from "./dom.js";
import * as format from "./format.js";

/**
 * A button that downloads what lies at `path`.
 * @param {string} label
 * @param {string} path
 * @param {string} filename
 * @param {AbortSignal} signal ends downloads with their view
 */
export function downloadButton(label, path, filename, signal) {
  const state = el("span", { class: "download-state" });
  const button = el("button", { type: "button" }, label);
  button.addEventListener("click", async () => {
    button.setAttribute("aria-disabled", "true");
    try {
      const response = await open(path, signal);
      const blob = await collect(response, (numBytes) => setText(state, format.bytes(numBytes)));
      save(blob, filename);
      setText(state, `${format.bytes(blob.size)} saved`);
      announce(`${label}: ${format.bytes(blob.size)} saved`);
    } catch (error) {
      if (signal.aborted) return;
      setText(state, error.message);
      announce(error.message);
    } finally {
      button.removeAttribute("aria-disabled");
    }
  });
  return el("span", { class: "download" }, button, state);
}

/**
 * @param {Response} response
 * @param {(numBytes: number) => void} onProgress
 */
async function collect(response, onProgress) {
  const counted = new TransformStream({
    transform(chunk, controller) {
      numBytes += chunk.length;
      onProgress(numBytes);
      controller.enqueue(chunk);
    },
  });
  let numBytes = 0;
  // The browser keeps a large blob on disk, which an array of chunks would not be.
  return reached(new Response(response.body.pipeThrough(counted)).blob());
}

/** @param {Blob} blob @param {string} filename */
function save(blob, filename) {
  const url = URL.createObjectURL(blob);
  const link = el("a", { href: url, download: filename });
  document.body.append(link);
  link.click();
  link.remove();
  // Not at once: the browser may not have begun to read.
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}
