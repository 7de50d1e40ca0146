/** @file Elements made of data, which becomes text and attributes and never markup. */

const SVG = "http://www.w3.org/2000/svg";

/**
 * @typedef {Node | string | null | undefined} Child null and undefined are left out
 * @typedef {Record<string, string | number | boolean | EventListener | null>} Attributes
 *   a function is a listener for the event of its name, `true` an attribute without a value;
 *   `false` and null are left out
 */

/**
 * @template {Element} E
 * @param {E} element
 * @param {Attributes} attributes
 * @param {Child[]} children
 */
function furnish(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value !== null && value !== false)
      element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/**
 * @template {keyof HTMLElementTagNameMap} Tag
 * @param {Tag} tag
 * @param {Attributes} [attributes]
 * @param {...Child} children
 */
export function el(tag, attributes = {}, ...children) {
  return furnish(document.createElement(tag), attributes, children);
}

/**
 * @template {keyof SVGElementTagNameMap} Tag
 * @param {Tag} tag
 * @param {Attributes} [attributes]
 * @param {...Child} children
 */
export function svg(tag, attributes = {}, ...children) {
  return furnish(document.createElementNS(SVG, tag), attributes, children);
}

/**
 * Set an element's text, unless it is there already: selections and screen readers stay undisturbed.
 * @param {Element} element
 * @param {string} text
 */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/**
 * Bring the children of `parent` to the elements of `items`, in order. An item keeps its element, and
 * with it focus and selection.
 * @template Item
 * @param {Element} parent
 * @param {Item[]} items
 * @param {(item: Item) => string} keyOf
 * @param {(item: Item) => Element} make
 * @param {(element: Element, item: Item) => void} update
 */
export function reconcile(parent, items, keyOf, make, update) {
  const present = new Map(
    [...parent.children].map((child) => [child.getAttribute("data-key"), child]),
  );
  let next = parent.firstElementChild;
  for (const item of items) {
    const key = keyOf(item);
    let child = present.get(key);
    if (child === undefined) {
      child = make(item);
      child.setAttribute("data-key", key);
    }
    present.delete(key);
    update(child, item);
    if (child === next) next = next.nextElementSibling;
    else parent.insertBefore(child, next);
  }
  for (const gone of present.values()) gone.remove();
}

/**
 * Tell something to users of screen readers, who cannot see it change.
 * @param {string} text
 */
export function announce(text) {
  document.getElementById("announcer").textContent = text;
}

/**
 * A button that copies a text.
 * @param {string} label what is copied, for its name
 * @param {() => string} text
 */
export function copyButton(label, text) {
  const button = el(
    "button",
    { type: "button", class: "quiet small", "aria-label": `Copy ${label}` },
    "Copy",
  );
  button.addEventListener("click", async () => {
    button.textContent = (await copy(text())) ? "Copied" : "Not allowed";
    setTimeout(() => (button.textContent = "Copy"), 1500);
  });
  return button;
}

/**
 * The clipboard's own interface is there on https and localhost only.
 * @param {string} text
 */
async function copy(text) {
  if (navigator.clipboard !== undefined) {
    return navigator.clipboard.writeText(text).then(
      () => true,
      () => false,
    );
  }
  const area = el("textarea", { class: "visually-hidden", "aria-hidden": "true" });
  area.value = text;
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  return done;
}
