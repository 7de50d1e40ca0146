/** @file Names of batches' input files, which a batch tells only by id. */

import { get } from "./api.js";

const MAX_FILES = 1000;

/** @type {Map<string, string | null>} null: deleted, or older than those that were looked at */
const names = new Map();

/**
 * Learn the names of these files with one request, if any is new.
 * @param {string[]} ids
 * @param {AbortSignal} signal
 */
export async function learnNames(ids, signal) {
  if (ids.every((id) => names.has(id))) return;
  const files = await get(`v1/files?purpose=batch&limit=${MAX_FILES}`, signal);
  for (const file of files.data) names.set(file.id, file.filename);
  for (const id of ids) if (!names.has(id)) names.set(id, null);
}

/** @param {string} id @returns {string | null} */
export function nameOf(id) {
  return names.get(id) ?? null;
}
