/** @file What requests share: the prefixes that attention reads once for a group, drawn in place. */

import { el, setText, svg } from "../dom.js";
import * as format from "../format.js";
import { MARGINS, chartFrame, label, ticks } from "./frame.js";

/**
 * @typedef {import("../api.js").Plan} Plan
 * @typedef {import("../api.js").Group} Group
 */

const HEIGHT = 260;
// Of a prefix that is computed once, so that it can be seen beside what reuses it.
const MIN_COMPUTED_PIXELS = 3;

export function prefixTreeChart() {
  /** @type {Plan | null} */
  let plan = null;
  let shown = "";
  const legend = el(
    "ul",
    { class: "legend", "aria-hidden": "true" },
    el("li", { class: "computed" }, "a group's prefix, computed once"),
    el("li", { class: "reused" }, "reused by its group"),
    el("li", { class: "own" }, "outside of groups, at the mean length of a prompt"),
  );
  const frame = chartFrame("Shared prefixes", HEIGHT, (width) => draw(plan, width), [
    "Requests",
    "First in order",
    "From token",
    "Prefix tokens",
    "Tokens saved",
  ]);
  const actual = el("p", { class: "note" });
  frame.before.append(actual, legend);
  return {
    node: frame.node,
    /**
     * @param {import("../api.js").BatchPlan} answer
     * @param {number | null} actualShare of the prompt tokens so far
     */
    update(answer, actualShare) {
      setText(actual, soFar(answer, actualShare));
      const key = JSON.stringify(answer.plan);
      if (answer.plan === null || key === shown) return;
      shown = key;
      plan = answer.plan;
      frame.update(
        words(plan),
        plan.groups.map((group) => [
          format.count(group.requests),
          format.count(group.first_in_order + 1),
          format.count(group.prefix_start),
          format.count(group.prefix_tokens),
          format.count((group.requests - 1) * group.prefix_tokens),
        ]),
      );
    },
  };
}

/**
 * What has come of the plan by now.
 * @param {import("../api.js").BatchPlan} answer
 * @param {number | null} actualShare
 */
function soFar({ plan, actual_seconds: seconds }, actualShare) {
  if (plan === null || actualShare === null) return "";
  return (
    `Of the requests answered by now, ${format.percent(actualShare)} was saved. ` +
    `Predicted time: ${format.duration(plan.predicted_seconds)}; by now ${format.duration(seconds)}.`
  );
}

/** @param {Plan} plan */
function words(plan) {
  return (
    `${format.count(plan.sequences)} prompts have ${format.count(plan.prompt_tokens)} tokens, ` +
    `${format.count(plan.unique_prompt_tokens)} of them different: the plan saves ` +
    `${format.percent(plan.saved_share)} of the prefill. ` +
    `Drawn: ${format.plural(plan.groups.length, "prefix", "prefixes")} that attention reads once for a whole ` +
    `group, of ${format.count(plan.shared_prefixes)} that are shared.`
  );
}

/**
 * Requests from left to right in the order in which they run, tokens of their prompts from the top
 * down. How long each prompt is the plan does not say; the mean is drawn behind.
 * @param {Plan | null} plan
 * @param {number} width
 */
function draw(plan, width) {
  if (plan === null || plan.sequences === 0) return [];
  const plotWidth = width - MARGINS.left - MARGINS.right;
  const plotHeight = HEIGHT - MARGINS.top - MARGINS.bottom;
  const mean = plan.prompt_tokens / plan.sequences;
  const deepest = Math.max(
    mean,
    ...plan.groups.map((group) => group.prefix_start + group.prefix_tokens),
  );
  const levels = ticks(deepest, 4);
  const x = (/** @type {number} */ request) =>
    MARGINS.left + (request / plan.sequences) * plotWidth;
  const y = (/** @type {number} */ token) => MARGINS.top + (token / levels.at(-1)) * plotHeight;

  /** @type {SVGElement[]} */
  const shapes = [
    svg("rect", { class: "own", x: x(0), y: y(0), width: plotWidth, height: y(mean) - y(0) }),
    ...plan.groups.flatMap((group) => groupShapes(group, x, y)),
  ];
  shapes.push(label(0, 12, "start", "tokens of the prompt"));
  for (const level of levels) {
    shapes.push(label(MARGINS.left - 8, y(level) + 4, "end", format.count(level)));
  }
  shapes.push(
    label(x(0), HEIGHT - 6, "start", "1"),
    label(x(plan.sequences / 2), HEIGHT - 6, "middle", "requests, in order"),
    label(x(plan.sequences), HEIGHT - 6, "end", format.count(plan.sequences)),
  );
  return shapes;
}

/**
 * A prefix: computed for its first request, reused by the others.
 * @param {Group} group
 * @param {(request: number) => number} x
 * @param {(token: number) => number} y
 */
function groupShapes(group, x, y) {
  const top = y(group.prefix_start);
  const height = Math.max(y(group.prefix_start + group.prefix_tokens) - top, 1);
  const left = x(group.first_in_order);
  const right = x(group.first_in_order + group.requests);
  const first = Math.min(
    Math.max(x(group.first_in_order + 1) - left, MIN_COMPUTED_PIXELS),
    right - left,
  );
  return [
    svg("rect", { class: "reused", x: left, y: top, width: right - left, height }),
    svg("rect", { class: "computed", x: left, y: top, width: first, height }),
  ];
}
