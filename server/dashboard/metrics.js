/** @file The metrics page, which speaks for the whole installation and needs no key. */

import { get } from "./api.js";

/** @typedef {{name: string, labels: Record<string, string>, value: number}} Sample */

const SAMPLE = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? ([^ ]+)/;
const LABEL = /([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)"/g;

/**
 * @param {AbortSignal} signal
 * @returns {Promise<Metrics>}
 */
export async function readMetrics(signal) {
  return new Metrics(parse(await get("metrics", signal, (response) => response.text())));
}

/** Samples in Prometheus's text format. @param {string} page @returns {Sample[]} */
function parse(page) {
  const samples = [];
  for (const line of page.split("\n")) {
    const match = SAMPLE.exec(line);
    if (match === null) continue;
    const labels = Object.fromEntries(
      [...(match[2] ?? "").matchAll(LABEL)].map((m) => [m[1], m[2]]),
    );
    samples.push({ name: match[1], labels, value: Number(match[3]) });
  }
  return samples;
}

export class Metrics {
  /** @param {Sample[]} samples */
  constructor(samples) {
    this.samples = samples;
  }

  /**
   * The sum over all samples of a metric that have these labels.
   * @param {string} name
   * @param {Record<string, string>} [labels]
   * @returns {number | null} null if there are none
   */
  sum(name, labels = {}) {
    const wanted = Object.entries(labels);
    const found = this.samples.filter(
      (sample) =>
        sample.name === name && wanted.every(([key, value]) => sample.labels[key] === value),
    );
    return found.length === 0 ? null : found.reduce((total, sample) => total + sample.value, 0);
  }
}
