/** @file The states of a batch in time, those it has been in and those it is to come to. */

import { el } from "../dom.js";
import * as format from "../format.js";

/** @typedef {import("../api.js").Batch} Batch */

/** Every state with the field that says when it began. */
const STATES = /** @type {const} */ ([
  ["Created", "created_at"],
  ["In progress", "in_progress_at"],
  ["Cancelling", "cancelling_at"],
  ["Finalizing", "finalizing_at"],
  ["Completed", "completed_at"],
  ["Failed", "failed_at"],
  ["Expired", "expired_at"],
  ["Cancelled", "cancelled_at"],
]);

/** What comes next when nothing goes wrong. */
const AHEAD = new Map([
  ["validating", ["In progress", "Finalizing", "Completed"]],
  ["in_progress", ["Finalizing", "Completed"]],
  ["finalizing", ["Completed"]],
  ["cancelling", ["Cancelled"]],
]);

/** @returns {import("../parts.js").BatchPart} */
export function makeTimeline() {
  const list = el("ol", { class: "timeline" });
  let shown = "";
  return {
    node: el("section", {}, el("h2", {}, "Timeline"), list),
    update(batch) {
      const steps = stepsOf(batch);
      const key = JSON.stringify(steps);
      if (key === shown) return;
      shown = key;
      list.replaceChildren(...steps.map(stepItem));
    },
  };
}

/**
 * @typedef {{name: string, time: string, note: string, isAhead: boolean, isCurrent: boolean}} Step
 * @param {Batch} batch
 * @returns {Step[]}
 */
function stepsOf(batch) {
  const been = STATES.filter(([, field]) => batch[field] !== null);
  const ahead = AHEAD.get(batch.status) ?? [];
  /** @type {Step[]} */
  const steps = been.map(([name, field], i) => {
    const isLast = i === been.length - 1;
    const next = isLast ? null : batch[been[i + 1][1]];
    return {
      name,
      time: format.clock(batch[field]),
      note: next === null ? "" : `for ${format.duration(next - batch[field])}`,
      isAhead: false,
      isCurrent: isLast,
    };
  });
  const { paused_at: pausedAt } = batch.trunkline;
  if (pausedAt !== null && ahead.length > 0) steps.at(-1).note = `paused ${format.clock(pausedAt)}`;
  for (const name of ahead)
    steps.push({ name, time: "", note: "", isAhead: true, isCurrent: false });
  return steps;
}

/** @param {Step} step */
function stepItem(step) {
  const item = el(
    "li",
    { class: step.isAhead ? "ahead" : null, "aria-current": step.isCurrent ? "step" : null },
    el("span", { class: "step-name" }, step.name),
    el("span", { class: "note" }, step.time),
    el("span", { class: "note" }, step.note),
  );
  if (step.isAhead) item.append(el("span", { class: "visually-hidden" }, "still to come"));
  return item;
}
