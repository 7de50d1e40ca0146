/** @file Starts the dashboard. */

import { setText } from "./dom.js";
import { askForKey, currentKey, onKeyChange } from "./key.js";
import { refresh, startRouter } from "./router.js";
import { showBatch } from "./views/batch.js";
import { showBatches } from "./views/batches.js";
import { showEngines } from "./views/engines.js";
import { showNewBatch } from "./views/new_batch.js";

const keyButton = document.getElementById("key-button");
const labelKey = () => setText(keyButton, currentKey() === null ? "API key" : "API key set");
onKeyChange(labelKey);
labelKey();
keyButton.addEventListener("click", async () => {
  if (await askForKey()) refresh();
});

startRouter([
  { name: "batches", title: "Batches", pattern: /^\/(?:batches)?$/, show: showBatches },
  { name: "batches", title: "Batch", pattern: /^\/batches\/([^/]+)$/, show: showBatch },
  { name: "engines", title: "Engines", pattern: /^\/engines$/, show: showEngines },
  { name: "new", title: "New batch", pattern: /^\/new$/, show: showNewBatch },
]);
