/** @file What all charts have: a title, a picture in words, and a table of the same numbers. */

import { el, setText, svg } from "../dom.js";

/** @typedef {{left: number, right: number, top: number, bottom: number}} Margins pixels */

/** Around the plot, for its axes. @type {Margins} */
export const MARGINS = { left: 56, right: 8, top: 24, bottom: 24 };

/**
 * A chart's section. `draw` is called again when the width changes, so that text keeps its size.
 * @param {string} title
 * @param {number} height pixels
 * @param {(width: number) => SVGElement[]} draw
 * @param {string[]} columns of the table
 */
export function chartFrame(title, height, draw, columns) {
  const picture = svg("svg", { role: "img", height, class: "chart" });
  const before = el("div");
  const summary = el("p", { class: "note" });
  const body = el("tbody");
  const head = el(
    "tr",
    {},
    ...columns.map((name) => el("th", { scope: "col", class: "number" }, name)),
  );
  const numbers = el(
    "details",
    {},
    el("summary", {}, "As a table"),
    el(
      "div",
      {
        class: "table-scroll",
        role: "region",
        tabindex: "0",
        "aria-label": `${title}, as a table`,
      },
      el("table", {}, el("thead", {}, head), body),
    ),
  );
  const node = el(
    "section",
    { hidden: true },
    el("h2", {}, title),
    summary,
    before,
    picture,
    numbers,
  );

  function redraw() {
    const width = picture.clientWidth;
    if (width === 0) return;
    picture.setAttribute("viewBox", `0 0 ${width} ${height}`);
    picture.replaceChildren(...draw(width));
  }
  new ResizeObserver(redraw).observe(picture);

  return {
    node,
    /** For what stands above the picture. */
    before,
    /**
     * @param {string} words what the picture shows
     * @param {string[][]} rows
     */
    update(words, rows) {
      node.hidden = false;
      setText(summary, words);
      picture.setAttribute("aria-label", `${title}. ${words}`);
      body.replaceChildren(
        ...rows.map((row) =>
          el("tr", {}, ...row.map((text) => el("td", { class: "number" }, text))),
        ),
      );
      redraw();
    },
  };
}

/**
 * Round values from 0 on, the last at least `highest`.
 * @param {number} highest
 * @param {number} numWanted
 */
export function ticks(highest, numWanted) {
  const rough = (highest || 1) / numWanted;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
  const values = [0, step];
  while (values.at(-1) < highest) values.push(values.length * step);
  return values;
}

/**
 * @param {number} x
 * @param {number} y
 * @param {string} anchor start, middle or end
 * @param {string} words
 */
export function label(x, y, anchor, words) {
  return svg("text", { x, y, "text-anchor": anchor }, words);
}
