/** @file What went wrong: lines that failed, by what they failed of; or what is wrong with the input. */

import { el, setText } from "../dom.js";
import * as format from "../format.js";
import { table } from "../parts.js";

/**
 * @typedef {import("../api.js").ErrorGroup} ErrorGroup
 * @typedef {import("../api.js").LineError} LineError
 */

const MAX_LINE_ERRORS = 100;

export function makeErrors() {
  const title = el("h2", {}, "Errors");
  const remark = el("p", { class: "note" });
  const failures = table("Failed requests by error", [
    { name: "Error" },
    { name: "Requests", class: "number" },
    { name: "Message" },
    { name: "First lines" },
  ]);
  const faults = table("What is wrong with the input file", [
    { name: "Line", class: "number" },
    { name: "Error" },
    { name: "Message" },
  ]);
  const node = el("section", { hidden: true }, title, remark, failures.node, faults.node);
  failures.node.hidden = faults.node.hidden = true;
  let shown = "";

  return {
    node,
    /** The lines that validation refused. @param {import("../api.js").Batch} batch */
    update(batch) {
      const all = batch.errors?.data ?? [];
      if (all.length === 0 || !faults.node.hidden) return;
      node.hidden = faults.node.hidden = false;
      const more = all.length > MAX_LINE_ERRORS ? ` The first ${MAX_LINE_ERRORS} of them:` : "";
      setText(
        remark,
        `The input file was refused and nothing ran: ${format.plural(all.length, "error")}.${more}`,
      );
      faults.body.replaceChildren(...all.slice(0, MAX_LINE_ERRORS).map(faultRow));
    },
    /** The requests that failed by now. @param {ErrorGroup[]} groups */
    groups(groups) {
      const key = JSON.stringify(groups);
      if (groups.length === 0 || key === shown) return;
      shown = key;
      node.hidden = failures.node.hidden = false;
      failures.body.replaceChildren(...groups.map(groupRow));
    },
  };
}

/** @param {ErrorGroup} group */
function groupRow(group) {
  const more = group.count > group.lines.length ? ", …" : "";
  return el(
    "tr",
    {},
    el(
      "th",
      { scope: "row", class: "stacked" },
      el("span", { class: "code" }, group.code ?? "error"),
      el(
        "span",
        { class: "note" },
        group.status_code === null ? "not run" : `HTTP ${group.status_code}`,
      ),
    ),
    el("td", { class: "number" }, format.count(group.count)),
    el("td", { class: "message" }, group.message),
    el("td", { class: "lines" }, group.lines.map((line) => format.count(line)).join(", ") + more),
  );
}

/** @param {LineError} error */
function faultRow(error) {
  return el(
    "tr",
    {},
    el("td", { class: "number" }, format.count(error.line)),
    el("th", { scope: "row", class: "code" }, error.code),
    el("td", { class: "message" }, error.message),
  );
}
