/** @file All batches: what runs, how far it is, and what has ended. */

import { BASE_URL, batchPath, get } from "../api.js";
import { copyButton, el, reconcile, setText } from "../dom.js";
import { learnNames, nameOf } from "../filenames.js";
import * as format from "../format.js";
import { every, hasEnded } from "../live.js";
import * as parts from "../parts.js";

/**
 * @typedef {import("../api.js").Batch} Batch
 * @typedef {import("../api.js").Progress} Progress
 * @typedef {import("../api.js").Engine} Engine
 */

const POLL_SECONDS = 2;
const PAGE_SIZE = 50;
const MAX_PAGE_SIZE = 100;

/** @type {import("../router.js").View} */
export async function showBatches(root, signal) {
  let numWanted = PAGE_SIZE;
  const summary = makeSummary();
  const warning = el("p", { class: "warning", hidden: true });
  const active = makeSection("Running and waiting", ACTIVE_COLUMNS, makeActiveRow);
  const ended = makeSection("Ended", ENDED_COLUMNS, makeEndedRow);
  const older = el("button", { type: "button", hidden: true }, "Show older batches");
  const empty = makeEmptyState();
  const loading = el("p", { class: "note" }, "Loading…");
  root.append(
    el(
      "div",
      { class: "title" },
      el("h1", { tabindex: "-1" }, "Batches"),
      el("a", { href: "#/new", class: "button primary" }, "New batch"),
    ),
    ...[loading, summary.node, warning, active.node, ended.node, older, empty],
  );

  async function update() {
    const [page, engines] = await Promise.all([
      newestBatches(numWanted, signal),
      get("v1/engines", signal),
    ]);
    await learnNames(
      page.batches.map((batch) => batch.input_file_id),
      signal,
    );
    const live = page.batches.filter((batch) => !hasEnded(batch));
    /** @type {Map<string, Progress>} */
    const paces = new Map();
    const running = live.filter(isRunnable);
    await Promise.all(
      running.map(async ({ id }) => paces.set(id, await get(`${batchPath(id)}/progress`, signal))),
    );
    loading.remove();
    summary.update(page.batches, paces, engines.data);
    warn(warning, live, engines.data);
    active.update(live, paces);
    ended.update(page.batches.filter(hasEnded), paces);
    older.hidden = !page.hasMore;
    summary.node.hidden = page.batches.length === 0;
    empty.hidden = page.batches.length > 0;
  }
  older.addEventListener("click", () => {
    numWanted += PAGE_SIZE;
    // Trouble is for the loop to tell.
    update().catch(() => {});
  });
  await every(POLL_SECONDS, signal, update);
}

/**
 * The newest batches, as many as are wanted.
 * @param {number} numWanted
 * @param {AbortSignal} signal
 * @returns {Promise<{batches: Batch[], hasMore: boolean}>}
 */
async function newestBatches(numWanted, signal) {
  const batches = [];
  let hasMore = true;
  while (hasMore && batches.length < numWanted) {
    const limit = Math.min(numWanted - batches.length, MAX_PAGE_SIZE);
    const after = batches.length === 0 ? "" : `&after=${encodeURIComponent(batches.at(-1).id)}`;
    const page = await get(`v1/batches?limit=${limit}${after}`, signal);
    batches.push(...page.data);
    hasMore = page.has_more && page.data.length > 0;
  }
  return { batches, hasMore };
}

/** Whether engines may work on a batch. @param {Batch} batch */
function isRunnable(batch) {
  return batch.status === "in_progress" && batch.trunkline.paused_at === null;
}

function makeSummary() {
  const figures = {
    running: parts.figure("Running"),
    left: parts.figure("Requests left"),
    eta: parts.figure("Time left"),
    output: parts.figure("Output"),
    failed: parts.figure("Failed requests"),
    saved: parts.figure("Prefill saved"),
  };
  const node = el(
    "dl",
    { class: "figures", hidden: true },
    ...Object.values(figures).map((f) => f.node),
  );
  return {
    node,
    /**
     * @param {Batch[]} batches
     * @param {Map<string, Progress>} paces
     * @param {Engine[]} engines
     */
    update(batches, paces, engines) {
      const live = batches.filter((batch) => !hasEnded(batch));
      const left = live.reduce((n, b) => n + b.request_counts.total - parts.numSettled(b), 0);
      const etas = [...paces.values()]
        .map((pace) => pace.eta_seconds)
        .filter((eta) => eta !== null);
      const eta = etas.length === 0 ? null : Math.max(...etas);
      const output = [...paces.values()].reduce(
        (sum, p) => sum + (p.output_tokens_per_second ?? 0),
        0,
      );
      const failed = live.reduce((n, b) => n + b.request_counts.failed, 0);
      const prompt = batches.reduce((n, b) => n + b.usage.input_tokens, 0);
      const cached = batches.reduce((n, b) => n + b.usage.input_tokens_details.cached_tokens, 0);
      const served = new Set(engines.map((engine) => engine.model));
      const numRunning = live.filter(
        (batch) => isRunnable(batch) && served.has(batch.model),
      ).length;
      figures.running.set(
        format.count(numRunning),
        `of ${format.count(live.length)} open, ${format.plural(engines.length, "engine")}`,
      );
      figures.left.set(format.count(left), "in open batches");
      figures.eta.set(
        format.duration(eta),
        eta === null ? "" : `until ${format.clock(format.now() + eta)}`,
      );
      figures.output.set(live.length === 0 ? format.NONE : format.rate(output), "tokens/s");
      figures.failed.set(format.count(failed), "in open batches");
      figures.saved.set(
        prompt === 0 ? format.NONE : format.percent(cached / prompt),
        "of prompt tokens",
      );
    },
  };
}

/**
 * Say so when batches wait for an engine that is not there.
 * @param {HTMLElement} node
 * @param {Batch[]} live
 * @param {Engine[]} engines
 */
function warn(node, live, engines) {
  const served = new Set(engines.map((engine) => engine.model));
  const missing = new Set(
    live.filter((b) => b.status === "in_progress" && !served.has(b.model)).map((b) => b.model),
  );
  node.hidden = missing.size === 0;
  setText(
    node,
    `No engine serves ${[...missing].join(", ")} at the moment. Its batches wait, and go on as soon as one does.`,
  );
}

/**
 * A heading and a table of batches.
 * @param {string} title
 * @param {{name: string, class?: string}[]} columns
 * @param {(batch: Batch) => Row} makeRow
 * @typedef {{node: Element, update: (batch: Batch, pace: Progress | undefined) => void}} Row
 */
function makeSection(title, columns, makeRow) {
  const { node: scroll, body } = parts.table(title, columns);
  scroll.classList.add("batch-list");
  const node = el("section", { hidden: true }, el("h2", {}, title), scroll);
  /** @type {WeakMap<Element, Row>} */
  const rows = new WeakMap();
  return {
    node,
    /** @param {Batch[]} batches @param {Map<string, Progress>} paces */
    update(batches, paces) {
      node.hidden = batches.length === 0;
      reconcile(
        body,
        batches,
        (batch) => batch.id,
        (batch) => {
          const row = makeRow(batch);
          // Small screens have no room for a table's head.
          columns.forEach(({ name }, i) => row.node.children[i].setAttribute("data-label", name));
          rows.set(row.node, row);
          return row.node;
        },
        (element, batch) => rows.get(element).update(batch, paces.get(batch.id)),
      );
    },
  };
}

const ACTIVE_COLUMNS = [
  { name: "Batch" },
  { name: "Status" },
  { name: "Progress", class: "progress-column" },
  { name: "Requests/s", class: "number wide" },
  { name: "Output tokens/s", class: "number wide" },
  { name: "Time left", class: "number" },
];

/** @param {Batch} batch @returns {Row} */
function makeActiveRow(batch) {
  const name = makeName(batch);
  const badge = parts.statusBadge();
  const bar = parts.progressBar(`Progress of ${batch.id}`);
  const text = el("span", { class: "note" });
  const requests = el("td", { class: "number wide" });
  const output = el("td", { class: "number wide" });
  const left = el("span");
  const until = el("span", { class: "note" });
  return {
    node: el(
      "tr",
      {},
      name.node,
      el("td", {}, badge.node),
      el("td", { class: "progress-column" }, bar.node, text),
      requests,
      output,
      el("td", { class: "number stacked" }, left, until),
    ),
    update(latest, pace) {
      name.update(latest);
      badge.update(latest);
      bar.update(latest);
      setText(text, parts.progressText(latest));
      setText(requests, format.rate(pace?.requests_per_second));
      setText(output, format.rate(pace?.output_tokens_per_second));
      const eta = pace?.eta_seconds ?? null;
      setText(left, format.duration(eta));
      setText(until, eta === null ? "" : `until ${format.clock(format.now() + eta)}`);
    },
  };
}

const ENDED_COLUMNS = [
  { name: "Batch" },
  { name: "Result" },
  { name: "Answered", class: "number" },
  { name: "Failed", class: "number" },
  { name: "Took", class: "number wide" },
  { name: "Prefill saved", class: "number wide" },
  { name: "Ended", class: "number wide" },
];

/** @param {Batch} batch @returns {Row} */
function makeEndedRow(batch) {
  const name = makeName(batch);
  const badge = parts.statusBadge();
  const { total, completed, failed } = batch.request_counts;
  const ended = parts.endedAt(batch);
  const node = el(
    "tr",
    {},
    name.node,
    el("td", {}, badge.node),
    el(
      "td",
      { class: "number stacked" },
      el("span", {}, format.count(completed)),
      el("span", { class: "note" }, `of ${format.count(total)}`),
    ),
    el("td", { class: failed > 0 ? "number bad" : "number" }, format.count(failed)),
    el("td", { class: "number wide" }, format.duration(ended - batch.created_at)),
    el("td", { class: "number wide" }, format.percent(parts.savedShare(batch))),
    el("td", { class: "number wide" }, format.clock(ended)),
  );
  return {
    node,
    update(latest) {
      name.update(latest);
      badge.update(latest);
    },
  };
}

/** The cell with a batch's name. @param {Batch} batch */
function makeName(batch) {
  const link = el("a", { href: parts.batchLink(batch.id) });
  const id = el("span", { class: "id" }, batch.id);
  const model = el("span", { class: "note" });
  return {
    node: el("th", { scope: "row", class: "stacked name" }, link, id, model),
    /** @param {Batch} latest */
    update(latest) {
      const name = nameOf(latest.input_file_id);
      setText(link, name ?? latest.id);
      id.hidden = name === null;
      setText(model, latest.model ?? "");
    },
  };
}

function makeEmptyState() {
  const snippet = `from openai import OpenAI

client = OpenAI(base_url="${BASE_URL}", api_key="YOUR_KEY")
file = client.files.create(file=open("requests.jsonl", "rb"), purpose="batch")
batch = client.batches.create(
    input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
)`;
  return el(
    "section",
    { class: "empty", hidden: true },
    el("h2", {}, "No batches yet"),
    el(
      "p",
      {},
      el("a", { href: "#/new" }, "Upload a .jsonl file"),
      " here, or start a batch from Python:",
    ),
    el(
      "div",
      { class: "snippet" },
      el(
        "pre",
        { tabindex: "0", role: "region", "aria-label": "Python example" },
        el("code", {}, snippet),
      ),
      copyButton("the Python example", () => snippet),
    ),
    el(
      "p",
      { class: "note" },
      "Each line of the file is a request: ",
      el(
        "code",
        {},
        '{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {…}}',
      ),
    ),
  );
}
