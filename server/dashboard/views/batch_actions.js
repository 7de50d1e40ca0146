/** @file What can be done to a batch: pause, resume, cancel, retry, and its priority. */

import { batchPath, idempotencyKey, post } from "../api.js";
import { announce, el, setText } from "../dom.js";
import { hasEnded } from "../live.js";
import { batchLink } from "../parts.js";

/** @typedef {import("../api.js").Batch} Batch */

/**
 * @param {string} id
 * @param {(batch: Batch) => void} onChange takes the batch as it is then
 * @param {() => void} onGone focus has lost its place
 * @returns {import("../parts.js").BatchPart}
 */
export function makeActions(id, onChange, onGone) {
  const path = batchPath(id);
  const error = el("p", { class: "error", role: "alert" });
  const pause = el("button", { type: "button" }, "Pause");
  const cancel = el("button", { type: "button", class: "danger" }, "Cancel batch");
  const retry = el("button", { type: "button", class: "primary" }, "Retry what failed");
  const priority = el("input", {
    id: "batch-priority",
    type: "number",
    min: -100,
    max: 100,
    step: 1,
    required: true,
  });
  const form = el(
    "form",
    { class: "inline-form" },
    el("label", { for: "batch-priority" }, "Priority"),
    priority,
    el("button", { type: "submit" }, "Set"),
  );
  const confirmation = makeConfirmation();
  // One key for all clicks: what a lost reply had already started is not started twice.
  const retryKey = idempotencyKey();
  /** @type {Batch} */
  let latest;

  /** @param {() => Promise<void>} act */
  async function attempt(act) {
    setText(error, "");
    try {
      await act();
    } catch (problem) {
      setText(error, problem.message);
    }
  }
  pause.addEventListener("click", () =>
    attempt(async () => {
      const action = latest.trunkline.paused_at === null ? "pause" : "resume";
      onChange(await post(`${path}/${action}`));
    }),
  );
  cancel.addEventListener("click", async () => {
    if (!(await confirmation.ask())) return;
    await attempt(async () => {
      onChange(await post(`${path}/cancel`));
      onGone();
    });
  });
  retry.addEventListener("click", () =>
    attempt(async () => {
      const batch = await post(`${path}/retry`, undefined, { "idempotency-key": retryKey });
      announce("A new batch of the lines that were not answered has started");
      location.hash = batchLink(batch.id);
    }),
  );
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    attempt(async () => {
      onChange(await post(path, { priority: priority.valueAsNumber }));
      announce(`Priority set to ${priority.value}`);
    });
  });

  return {
    node: el("div", { class: "actions" }, form, pause, cancel, retry, confirmation.node, error),
    update(batch) {
      latest = batch;
      const { total, completed } = batch.request_counts;
      const isOpen = batch.status === "validating" || batch.status === "in_progress";
      form.hidden = hasEnded(batch);
      pause.hidden = !isOpen;
      setText(pause, batch.trunkline.paused_at === null ? "Pause" : "Resume");
      cancel.hidden = !isOpen;
      retry.hidden = !hasEnded(batch) || batch.status === "failed" || completed === total;
      // Not while somebody types another one.
      if (document.activeElement !== priority) priority.value = String(batch.trunkline.priority);
    },
  };
}

function makeConfirmation() {
  const dialog = el(
    "dialog",
    { "aria-labelledby": "cancel-title" },
    el(
      "form",
      { method: "dialog" },
      el("h2", { id: "cancel-title" }, "Cancel this batch?"),
      el("p", {}, "What is answered by now stays. The rest is not run; you can retry it later."),
      el(
        "div",
        { class: "actions" },
        el("button", { type: "submit", value: "keep", class: "primary" }, "Keep it running"),
        el("button", { type: "submit", value: "cancel", class: "danger" }, "Cancel batch"),
      ),
    ),
  );
  return {
    node: dialog,
    /** @returns {Promise<boolean>} */
    ask() {
      dialog.returnValue = "keep";
      dialog.showModal();
      return new Promise((resolve) => {
        dialog.addEventListener("close", () => resolve(dialog.returnValue === "cancel"), {
          once: true,
        });
      });
    },
  };
}
