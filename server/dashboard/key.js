/** @file The API key: asked for when the server wants one, kept in this tab only. */

const STORAGE_KEY = "trunkline.api_key";

/** @type {Promise<boolean> | null} the question that is being asked */
let asking = null;
// Whoever closes the dialog is not asked again before they open it themselves.
let isDeclined = false;

/** @type {() => void} */
let changed = () => {};

/** Call `listener` whenever the key has changed. @param {() => void} listener */
export function onKeyChange(listener) {
  changed = listener;
}

/** @returns {string | null} */
export function currentKey() {
  return sessionStorage.getItem(STORAGE_KEY);
}

/**
 * The server refused a request.
 * @param {string | null} refused the key that was sent
 * @param {string} reason the server's words
 * @returns {Promise<boolean>} whether there is another key to try
 */
export async function replaceKey(refused, reason) {
  if (currentKey() !== refused) return true;
  if (isDeclined) return false;
  asking ??= ask(reason).finally(() => (asking = null));
  return asking;
}

/**
 * Let the user give, change or forget the key.
 * @returns {Promise<boolean>} whether the key has changed
 */
export async function askForKey() {
  isDeclined = false;
  asking ??= ask("").finally(() => (asking = null));
  return asking;
}

/** @param {string} reason */
function ask(reason) {
  const dialog = /** @type {HTMLDialogElement} */ (document.getElementById("key-dialog"));
  const input = /** @type {HTMLInputElement} */ (document.getElementById("key-input"));
  const before = currentKey();
  document.getElementById("key-reason").textContent = reason;
  document.getElementById("key-forget").hidden = before === null;
  input.value = "";
  dialog.returnValue = "close";
  dialog.showModal();
  input.focus();
  return new Promise((resolve) => {
    const closed = () => {
      const key = input.value.trim();
      input.value = "";
      if (dialog.returnValue === "use" && key !== "") sessionStorage.setItem(STORAGE_KEY, key);
      else if (dialog.returnValue === "forget") sessionStorage.removeItem(STORAGE_KEY);
      const hasChanged = currentKey() !== before;
      isDeclined = !hasChanged;
      if (hasChanged) changed();
      resolve(hasChanged);
    };
    dialog.addEventListener("close", closed, { once: true });
  });
}
