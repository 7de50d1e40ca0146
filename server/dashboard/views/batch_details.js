/** @file The rest of what a batch says of itself. */

import { el, setText } from "../dom.js";
import * as format from "../format.js";
import { hasEnded } from "../live.js";
import { batchLink } from "../parts.js";

/** @returns {import("../parts.js").BatchPart} */
export function makeDetails() {
  const list = el("dl", { class: "details" });
  const values = new Map();
  /** @param {string} name @param {string} text @param {string | null} [href] */
  function put(name, text, href = null) {
    if (!values.has(name)) {
      const value = href === null ? el("dd") : el("dd", {}, el("a", { href }));
      values.set(name, value);
      list.append(el("div", {}, el("dt", {}, name), value));
    }
    const value = values.get(name);
    setText(value.firstElementChild ?? value, text);
  }
  return {
    node: el("section", {}, el("h2", {}, "Details"), list),
    update(batch) {
      put("Model", batch.model ?? format.NONE);
      put("Endpoint", batch.endpoint);
      put("Input file", batch.input_file_id);
      put("Input tokens", format.count(batch.usage.input_tokens));
      put("Output tokens", format.count(batch.usage.output_tokens));
      put("Priority", String(batch.trunkline.priority));
      put(hasEnded(batch) ? "Window until" : "Must end by", format.clock(batch.expires_at));
      const { retry_of: source } = batch.trunkline;
      if (source !== null) put("Retry of", source, batchLink(source));
      for (const [name, value] of Object.entries(batch.metadata ?? {}))
        put(`Metadata: ${name}`, value);
    },
  };
}
