/** @file Views by the hash of the address, so that each can be linked to. */

import { ApiError } from "./api.js";
import { el } from "./dom.js";
import { askForKey } from "./key.js";

/**
 * @typedef {{name: string, title: string, pattern: RegExp, show: View}} Route
 * @typedef {(root: HTMLElement, signal: AbortSignal, ...parameters: string[]) => Promise<void>} View
 *   renders into `root` and keeps it up to date until `signal` ends it
 */

let current = new AbortController();

/**
 * Show the view of the address, now and whenever it changes.
 * @param {Route[]} routes
 */
export function startRouter(routes) {
  addEventListener("hashchange", () => show(routes, true));
  document.getElementById("skip-link").addEventListener("click", (event) => {
    event.preventDefault();
    document.getElementById("main").focus();
  });
  show(routes, false);
}

/** Show the current view anew. */
export function refresh() {
  dispatchEvent(new HashChangeEvent("hashchange"));
}

/**
 * @param {Route[]} routes
 * @param {boolean} isChange whether the user comes from another view
 */
function show(routes, isChange) {
  current.abort();
  current = new AbortController();
  const { signal } = current;
  const path = location.hash.replace(/^#/, "") || "/batches";
  const main = document.getElementById("main");
  const root = el("div", { class: "view" });
  main.replaceChildren(root);
  scrollTo(0, 0);
  for (const route of routes) {
    const match = route.pattern.exec(path);
    if (match === null) continue;
    mark(route.name);
    document.title = `${route.title} · Trunkline`;
    route.show(root, signal, ...match.slice(1).map(decode)).catch((error) => {
      if (!signal.aborted) root.replaceChildren(problem(error));
    });
    if (isChange) focusHeading(root);
    return;
  }
  mark("");
  document.title = "Not found · Trunkline";
  root.append(
    el("h1", { tabindex: "-1" }, "There is no such page"),
    el("p", {}, "See the ", el("a", { href: "#/batches" }, "batches"), "."),
  );
  focusHeading(root);
}

/** A part of an address; a broken escape stands for itself. @param {string} text */
function decode(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

/** @param {HTMLElement} root */
function focusHeading(root) {
  root.querySelector("h1")?.focus({ preventScroll: true });
}

/** Mark the link to the current view. @param {string} name */
function mark(name) {
  for (const link of document.querySelectorAll("[data-view]")) {
    if (link.getAttribute("data-view") === name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
}

/** What is shown when a view cannot go on. @param {Error} error */
function problem(error) {
  const isRefused = error instanceof ApiError && error.status === 401;
  const again = el(
    "button",
    { type: "button", class: "primary" },
    isRefused ? "Enter a key" : "Try again",
  );
  again.addEventListener("click", async () => {
    if (!isRefused || (await askForKey())) refresh();
  });
  return el(
    "section",
    { class: "problem", role: "alert" },
    el("h1", { tabindex: "-1" }, isRefused ? "An API key is needed" : "This cannot be shown"),
    el("p", {}, error.message),
    el("div", { class: "actions" }, again, el("a", { href: "#/batches" }, "All batches")),
  );
}
