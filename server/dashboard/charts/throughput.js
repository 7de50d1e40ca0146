/** @file Tokens per second over time. */

import { svg } from "../dom.js";
import * as format from "../format.js";
import { MARGINS, chartFrame, label, ticks } from "./frame.js";

/** @typedef {import("../api.js").Bucket} Bucket */

const HEIGHT = 180;
const TIME_LABEL_PIXELS = 120;

export function throughputChart() {
  /** @type {Bucket[]} */
  let buckets = [];
  let shown = "";
  const frame = chartFrame("Output tokens per second", HEIGHT, (width) => draw(buckets, width), [
    "From",
    "Seconds",
    "Output tokens/s",
    "Prompt tokens/s",
    "Answered",
    "Failed",
  ]);
  return {
    node: frame.node,
    /** @param {Bucket[]} latest in time */
    update(latest) {
      const key = JSON.stringify(latest);
      if (latest.length === 0 || key === shown) return;
      shown = key;
      buckets = latest;
      const rates = buckets.map(outputRate);
      const seconds = buckets.at(-1).start + buckets[0].seconds - buckets[0].start;
      const mean = buckets.reduce((sum, bucket) => sum + bucket.output_tokens, 0) / seconds;
      frame.update(
        `${format.rate(mean)} on average over ${format.duration(seconds)}, ${format.rate(Math.max(...rates))} at most.`,
        buckets.map((bucket) => [
          format.clock(bucket.start),
          format.count(bucket.seconds),
          format.rate(outputRate(bucket)),
          format.rate(bucket.prompt_tokens / bucket.seconds),
          format.count(bucket.completed),
          format.count(bucket.failed),
        ]),
      );
    },
  };
}

/** @param {Bucket} bucket */
function outputRate(bucket) {
  return bucket.output_tokens / bucket.seconds;
}

/**
 * A bar for each bucket; where nothing was committed there is none.
 * @param {Bucket[]} buckets
 * @param {number} width
 */
function draw(buckets, width) {
  if (buckets.length === 0) return [];
  const plotWidth = width - MARGINS.left - MARGINS.right;
  const plotHeight = HEIGHT - MARGINS.top - MARGINS.bottom;
  const bottom = MARGINS.top + plotHeight;
  const levels = ticks(Math.max(...buckets.map(outputRate)), 4);
  const start = buckets[0].start;
  const seconds = buckets.at(-1).start + buckets[0].seconds - start;
  const x = (/** @type {number} */ time) => MARGINS.left + ((time - start) / seconds) * plotWidth;
  const y = (/** @type {number} */ rate) => bottom - (rate / levels.at(-1)) * plotHeight;

  /** @type {SVGElement[]} */
  const shapes = levels.flatMap((level) => [
    svg("line", {
      class: "grid",
      x1: MARGINS.left,
      x2: width - MARGINS.right,
      y1: y(level),
      y2: y(level),
    }),
    label(MARGINS.left - 8, y(level) + 4, "end", format.rate(level)),
  ]);
  shapes.push(label(0, 12, "start", "tokens/s"));
  for (const bucket of buckets) {
    const left = x(bucket.start);
    const right = x(bucket.start + bucket.seconds);
    const top = y(outputRate(bucket));
    shapes.push(
      svg("rect", {
        ...{ class: "bar-mark", x: left, y: top, height: bottom - top },
        // A gap between bars as long as there is room for one.
        width: Math.max(right - left - (right - left > 4 ? 1 : 0), 0.5),
      }),
    );
  }
  const numLabels = Math.max(2, Math.min(6, Math.floor(plotWidth / TIME_LABEL_PIXELS) + 1));
  for (let i = 0; i < numLabels; i += 1) {
    const time = start + (seconds * i) / (numLabels - 1);
    const anchor = i === 0 ? "start" : i === numLabels - 1 ? "end" : "middle";
    shapes.push(label(x(time), HEIGHT - 6, anchor, format.clock(time)));
  }
  return shapes;
}
