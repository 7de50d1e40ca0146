/** @file One batch: how far, how fast, what failed, what sharing saved. */

import { batchPath, get } from "../api.js";
import { prefixTreeChart } from "../charts/prefix_tree.js";
import { throughputChart } from "../charts/throughput.js";
import { announce, copyButton, el, setText } from "../dom.js";
import { learnNames, nameOf } from "../filenames.js";
import * as format from "../format.js";
import { every, followBatch, hasEnded } from "../live.js";
import * as parts from "../parts.js";
import { makeActions } from "./batch_actions.js";
import { makeDetails } from "./batch_details.js";
import { makeDownloads } from "./batch_downloads.js";
import { makeErrors } from "./batch_errors.js";
import { makeTimeline } from "./batch_timeline.js";

/**
 * @typedef {import("../api.js").Batch} Batch
 * @typedef {import("../api.js").Progress} Progress
 */

const POLL_SECONDS = 2;
// Progress is read out at each of so many equal parts of the way.
const NUM_ANNOUNCEMENTS = 4;

/** @type {import("../router.js").View} */
export async function showBatch(root, signal, id) {
  const heading = el("h1", { tabindex: "-1" }, id);
  const badge = parts.statusBadge();
  const notice = el("p", { class: "warning", hidden: true });
  const bar = parts.progressBar("Progress");
  const barText = el("p", { class: "bar-text" });
  const figures = makeFigures();
  const actions = makeActions(
    id,
    (batch) => show(batch),
    () => heading.focus(),
  );
  const throughput = throughputChart();
  const tree = prefixTreeChart();
  const errors = makeErrors();
  const sections = [makeTimeline(), errors, makeDownloads(signal), makeDetails()];
  const [timeline, , downloads, details] = sections;
  const body = el(
    "div",
    { class: "batch", hidden: true },
    ...[notice, bar.node, barText, figures.node, timeline.node, errors.node],
    ...[throughput.node, tree.node, downloads.node, details.node],
  );
  root.append(
    el("nav", { "aria-label": "Path", class: "path" }, el("a", { href: "#/batches" }, "Batches")),
    el("div", { class: "title" }, heading, badge.node, actions.node),
    el(
      "p",
      { class: "id" },
      id,
      " ",
      copyButton("the batch's id", () => id),
    ),
    body,
  );
  const narrate = makeNarrator();

  /** @type {Batch} */
  let latest;
  /** @param {Batch} batch */
  function show(batch) {
    latest = batch;
    body.hidden = false;
    const name = nameOf(batch.input_file_id);
    setText(heading, name ?? id);
    document.title = `${name ?? id}: ${parts.progressText(batch)} · Trunkline`;
    for (const part of [badge, bar, figures, actions, ...sections]) part.update(batch);
    setText(barText, parts.progressText(batch));
    narrate(batch);
  }

  async function updateMore() {
    if (latest === undefined) return true;
    // What is asked for after the end is final.
    const isLast = hasEnded(latest);
    const [progress, shape, engines] = await Promise.all([
      get(`${batchPath(id)}/progress`, signal),
      get(`${batchPath(id)}/plan`, signal),
      get("v1/engines", signal),
      learnNames([latest.input_file_id], signal),
    ]);
    figures.pace(progress, latest);
    throughput.update(progress.buckets);
    tree.update(shape, parts.savedShare(latest));
    errors.groups(progress.errors);
    const isServed = engines.data.some((engine) => engine.model === latest.model);
    notice.hidden = isServed || latest.status !== "in_progress";
    setText(
      notice,
      `No engine serves ${latest.model} at the moment. The batch goes on as soon as one does.`,
    );
    show(latest);
    return !isLast;
  }

  show(await get(batchPath(id), signal));
  await Promise.all([followBatch(id, signal, show), every(POLL_SECONDS, signal, updateMore)]);
}

function makeFigures() {
  const figures = {
    eta: parts.figure("Time left"),
    elapsed: parts.figure("Running for"),
    requests: parts.figure("Requests"),
    output: parts.figure("Output"),
    failed: parts.figure("Failed"),
    saved: parts.figure("Prefill saved"),
  };
  return {
    node: el("dl", { class: "figures" }, ...Object.values(figures).map((f) => f.node)),
    /** @param {Batch} batch */
    update(batch) {
      const cached = batch.usage.input_tokens_details.cached_tokens;
      figures.failed.set(format.count(batch.request_counts.failed), "requests");
      figures.saved.set(
        format.percent(parts.savedShare(batch)),
        `${format.count(cached)} of ${format.count(batch.usage.input_tokens)} tokens`,
      );
    },
    /** @param {Progress} progress @param {Batch} batch */
    pace(progress, batch) {
      const { eta_seconds: eta, elapsed_seconds: elapsed } = progress;
      if (hasEnded(batch))
        figures.eta.set(format.NONE, `ended ${format.clock(parts.endedAt(batch))}`);
      else
        figures.eta.set(
          format.duration(eta),
          eta === null ? "" : `until ${format.clock(format.now() + eta)}`,
        );
      figures.elapsed.set(
        format.duration(elapsed),
        elapsed === null ? "not started" : `since ${format.clock(batch.in_progress_at)}`,
      );
      const isLive = !hasEnded(batch);
      const mean = (/** @type {number} */ n) =>
        elapsed === null ? null : n / Math.max(elapsed, 1);
      const requests = isLive ? progress.requests_per_second : mean(parts.numSettled(batch));
      const output = isLive ? progress.output_tokens_per_second : mean(batch.usage.output_tokens);
      figures.requests.set(
        format.rate(requests),
        isLive ? "requests/s, last minute" : "requests/s, mean",
      );
      figures.output.set(format.rate(output), isLive ? "tokens/s, last minute" : "tokens/s, mean");
    },
  };
}

/** Tells screen readers of a new status, and now and then how far the batch is. */
function makeNarrator() {
  let said = "";
  let isFirst = true;
  return (/** @type {Batch} */ batch) => {
    const share = parts.numSettled(batch) / Math.max(batch.request_counts.total, 1);
    const step = `${parts.statusWord(batch)} ${Math.floor(share * NUM_ANNOUNCEMENTS)}`;
    if (!isFirst && step !== said)
      announce(`Batch ${parts.statusWord(batch)}: ${parts.progressText(batch)}`);
    said = step;
    isFirst = false;
  };
}
