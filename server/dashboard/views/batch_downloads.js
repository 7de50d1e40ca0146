/** @file A batch's files: what was asked, what was answered, what failed. */

import { batchPath, filePath } from "../api.js";
import { downloadButton } from "../download.js";
import { el } from "../dom.js";
import { nameOf } from "../filenames.js";
import { hasEnded } from "../live.js";

/**
 * @typedef {import("../api.js").Batch} Batch
 * @typedef {{label: string, path: string, filename: string}} Offer
 */

/**
 * @param {AbortSignal} signal
 * @returns {import("../parts.js").BatchPart}
 */
export function makeDownloads(signal) {
  const list = el("ul", { class: "downloads" });
  let shown = "";
  return {
    node: el("section", {}, el("h2", {}, "Downloads"), list),
    update(batch) {
      const offers = offersOf(batch);
      const key = offers.map((offer) => offer.path).join(" ");
      if (key === shown) return;
      shown = key;
      list.replaceChildren(
        ...offers.map(({ label, path, filename }) =>
          el("li", {}, downloadButton(label, path, filename, signal)),
        ),
      );
    },
  };
}

/** @param {Batch} batch @returns {Offer[]} */
function offersOf(batch) {
  const { id } = batch;
  const { completed, failed } = batch.request_counts;
  const offers = [];
  const offer = (
    /** @type {string} */ label,
    /** @type {string} */ path,
    /** @type {string} */ filename,
  ) => offers.push({ label, path, filename });
  if (batch.output_file_id !== null) {
    offer("Output", `${filePath(batch.output_file_id)}/content`, `${id}_output.jsonl`);
  } else if (!hasEnded(batch) && completed > 0) {
    offer("Output so far", `${batchPath(id)}/output`, `${id}_output_so_far.jsonl`);
  }
  if (batch.error_file_id !== null) {
    offer("Errors", `${filePath(batch.error_file_id)}/content`, `${id}_errors.jsonl`);
  } else if (!hasEnded(batch) && failed > 0) {
    offer("Errors so far", `${batchPath(id)}/errors`, `${id}_errors_so_far.jsonl`);
  }
  const name = nameOf(batch.input_file_id) ?? `${batch.input_file_id}.jsonl`;
  offer("Input", `${filePath(batch.input_file_id)}/content`, name);
  return offers;
}
