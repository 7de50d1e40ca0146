/** @file Engines: who computes, and how busy it is; and the installation's totals. */

import { ApiError, get } from "../api.js";
import { el, reconcile, setText } from "../dom.js";
import * as format from "../format.js";
import { every } from "../live.js";
import { readMetrics } from "../metrics.js";
import * as parts from "../parts.js";

/** @typedef {import("../api.js").Engine} Engine */

const POLL_SECONDS = 2;

/** @type {import("../router.js").View} */
export async function showEngines(root, signal) {
  const loading = el("p", { class: "note" }, "Loading…");
  const cards = el("div", { class: "cards" });
  const empty = makeEmptyState();
  const totals = makeTotals();
  root.append(el("h1", { tabindex: "-1" }, "Engines"), loading, cards, empty, totals.node);
  /** @type {WeakMap<Element, (engine: Engine) => void>} */
  const updates = new WeakMap();

  await every(POLL_SECONDS, signal, async () => {
    const [engines, metrics] = await Promise.all([
      get("v1/engines", signal),
      readMetrics(signal).catch(withoutMetrics),
    ]);
    loading.remove();
    empty.hidden = engines.data.length > 0;
    reconcile(
      cards,
      engines.data,
      (engine) => engine.id,
      (engine) => {
        const card = makeCard(engine);
        updates.set(card.node, card.update);
        return card.node;
      },
      (node, engine) => updates.get(node)(engine),
    );
    totals.node.hidden = metrics === null;
    if (metrics !== null) totals.update(metrics);
  });
}

/** A proxy may keep the metrics page to itself. @param {Error} error */
function withoutMetrics(error) {
  if (error instanceof ApiError) return null;
  throw error;
}

/** @param {Engine} engine */
function makeCard(engine) {
  const figures = {
    running: parts.figure("Running"),
    waiting: parts.figure("Waiting"),
    output: parts.figure("Output"),
    prompt: parts.figure("Prefill"),
    step: parts.figure("Step time"),
    preempted: parts.figure("Preemptions"),
  };
  const used = el("span", { class: "bar-completed" });
  const bar = el(
    "div",
    { class: "bar", role: "meter", "aria-label": "KV cache in use", "aria-valuemin": 0 },
    used,
  );
  const pages = el("p", { class: "note" });
  const heartbeat = el("p", { class: "note" });
  const node = el(
    "section",
    { class: "card" },
    el("h2", {}, engine.model),
    el(
      "p",
      { class: "note" },
      `${engine.device}, ${engine.dtype}, context of ${format.count(engine.max_model_tokens)} tokens`,
    ),
    el("p", { class: "id" }, engine.id),
    el("dl", { class: "figures" }, ...Object.values(figures).map((f) => f.node)),
    el("h3", {}, "KV cache"),
    bar,
    pages,
    heartbeat,
  );
  return {
    node,
    /** @param {Engine} latest */
    update(latest) {
      const { figures: now } = latest;
      figures.running.set(format.count(now.num_running), "sequences");
      figures.waiting.set(format.count(now.num_waiting), "sequences");
      figures.output.set(format.rate(now.output_tokens_per_second), "tokens/s");
      figures.prompt.set(format.rate(now.prompt_tokens_per_second), "tokens/s");
      const { step_seconds: seconds = null } = now;
      if (seconds === null || seconds >= 1) figures.step.set(format.rate(seconds), "s, mean");
      else figures.step.set(format.rate(1000 * seconds), "ms, mean");
      figures.preempted.set(
        format.count(now.num_preemptions),
        `in ${format.plural(now.num_steps ?? 0, "step")}`,
      );
      const share = now.kv_pages ? now.kv_pages_in_use / now.kv_pages : 0;
      used.style.width = `${100 * share}%`;
      bar.setAttribute("aria-valuemax", String(now.kv_pages ?? 1));
      bar.setAttribute("aria-valuenow", String(now.kv_pages_in_use ?? 0));
      const text = now.kv_pages
        ? `${format.count(now.kv_pages_in_use)} of ${format.count(now.kv_pages)} pages, ${format.percent(share)}`
        : "not told yet";
      bar.setAttribute("aria-valuetext", text);
      setText(pages, text);
      const age = Math.max(0, format.now() - latest.heartbeat_at);
      setText(
        heartbeat,
        `Up since ${format.clock(latest.started_at)}; last heartbeat ${format.duration(Math.round(age))} ago`,
      );
    },
  };
}

function makeEmptyState() {
  return el(
    "section",
    { class: "empty", hidden: true },
    el("h2", {}, "No engine is alive"),
    el(
      "p",
      {},
      "Batches wait until one is. ",
      el("code", {}, "trunkline serve"),
      " starts one beside the server; ",
      el("code", {}, "trunkline engine"),
      " starts one on any machine that reaches the database.",
    ),
  );
}

function makeTotals() {
  const figures = {
    waiting: parts.figure("Requests waiting"),
    running: parts.figure("At an engine"),
    paused: parts.figure("Paused"),
    answered: parts.figure("Answered"),
    failed: parts.figure("Failed"),
    saved: parts.figure("Prefill saved"),
  };
  const node = el(
    "section",
    {},
    el("h2", {}, "The installation"),
    el("dl", { class: "figures" }, ...Object.values(figures).map((f) => f.node)),
  );
  return {
    node,
    /** @param {import("../metrics.js").Metrics} metrics */
    update(metrics) {
      for (const state of ["waiting", "running", "paused"]) {
        const numTokens = metrics.sum("trunkline_queued_prompt_tokens", { state });
        figures[state].set(
          format.count(metrics.sum("trunkline_queued_requests", { state }) ?? 0),
          `about ${format.count(numTokens ?? 0)} prompt tokens`,
        );
      }
      const lines = (/** @type {string} */ outcome) =>
        metrics.sum("trunkline_lines_total", { outcome }) ?? 0;
      figures.answered.set(format.count(lines("completed")), "requests, ever");
      figures.failed.set(format.count(lines("failed")), "refused, expired or cancelled");
      const prompt = metrics.sum("trunkline_prompt_tokens_total");
      const cached = metrics.sum("trunkline_cached_prompt_tokens_total") ?? 0;
      figures.saved.set(
        prompt ? format.percent(cached / prompt) : format.NONE,
        `${format.count(cached)} tokens`,
      );
    },
  };
}
