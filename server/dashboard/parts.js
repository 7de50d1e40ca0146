/** @file Small parts that several views show. */

import { el, setText } from "./dom.js";
import * as format from "./format.js";
import { hasEnded } from "./live.js";

/** @typedef {import("./api.js").Batch} Batch */

/** @typedef {{node: HTMLElement, update: (batch: Batch) => void}} BatchPart */

/** A batch's status in words; what is paused is in progress for the API. @param {Batch} batch */
export function statusWord(batch) {
  if (batch.trunkline.paused_at !== null && !hasEnded(batch)) return "paused";
  return batch.status.replace("_", " ");
}

/** @returns {BatchPart} */
export function statusBadge() {
  const node = el("span", { class: "badge" });
  return {
    node,
    update(batch) {
      const word = statusWord(batch);
      setText(node, word);
      node.dataset.status = word;
    },
  };
}

/** How many lines have an outcome. @param {Batch} batch */
export function numSettled(batch) {
  return batch.request_counts.completed + batch.request_counts.failed;
}

/**
 * The share of the lines that have an outcome: those that were answered, then those that failed.
 * @param {string} label
 * @returns {BatchPart}
 */
export function progressBar(label) {
  const completed = el("span", { class: "bar-completed" });
  const failed = el("span", { class: "bar-failed" });
  const node = el(
    "div",
    { class: "bar", role: "progressbar", "aria-label": label, "aria-valuemin": 0 },
    completed,
    failed,
  );
  return {
    node,
    update(batch) {
      const { total, completed: numCompleted, failed: numFailed } = batch.request_counts;
      completed.style.width = `${(100 * numCompleted) / Math.max(total, 1)}%`;
      failed.style.width = `${(100 * numFailed) / Math.max(total, 1)}%`;
      node.setAttribute("aria-valuemax", String(Math.max(total, 1)));
      node.setAttribute("aria-valuenow", String(numCompleted + numFailed));
      node.setAttribute("aria-valuetext", progressText(batch));
    },
  };
}

/** @param {Batch} batch */
export function progressText(batch) {
  const { total, failed } = batch.request_counts;
  if (total === 0) return "not counted yet";
  const text = `${format.count(numSettled(batch))} of ${format.count(total)}`;
  return failed === 0 ? text : `${text}, ${format.count(failed)} failed`;
}

/** The share of its prompts' tokens that a batch need not compute. @param {Batch} batch */
export function savedShare(batch) {
  const { input_tokens: total, input_tokens_details: details } = batch.usage;
  return total === 0 ? null : details.cached_tokens / total;
}

/** When a batch ended. @param {Batch} batch @returns {number | null} unix seconds */
export function endedAt(batch) {
  return batch.completed_at ?? batch.failed_at ?? batch.expired_at ?? batch.cancelled_at;
}

/**
 * A figure with its name, as a pair of a description list.
 * @param {string} name
 */
export function figure(name) {
  const value = el("dd", {}, format.NONE);
  const note = el("dd", { class: "figure-note" });
  return {
    node: el("div", { class: "figure" }, el("dt", {}, name), value, note),
    /** @param {string} text @param {string} [remark] */
    set(text, remark = "") {
      setText(value, text);
      setText(note, remark);
    },
  };
}

/**
 * A table that scrolls by itself where it is too wide.
 * @param {string} caption
 * @param {{name: string, class?: string}[]} columns
 */
export function table(caption, columns) {
  const body = el("tbody");
  const head = columns.map((column) =>
    el("th", { scope: "col", class: column.class ?? null }, column.name),
  );
  const node = el(
    "div",
    { class: "table-scroll", role: "region", "aria-label": caption, tabindex: "0" },
    el(
      "table",
      {},
      el("caption", { class: "visually-hidden" }, caption),
      el("thead", {}, el("tr", {}, ...head)),
      body,
    ),
  );
  return { node, body };
}

/** @param {string} id */
export function batchLink(id) {
  return `#/batches/${encodeURIComponent(id)}`;
}
