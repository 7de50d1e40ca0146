/** @file Numbers, times and sizes as people read them. A missing value is a dash. */

export const NONE = "–";

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const three = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });
const timeOfDay = new Intl.DateTimeFormat("en-GB", {
  hour: "2-digit",
  minute: "2-digit",
  second: "2-digit",
});
const dayAndTime = new Intl.DateTimeFormat("en-GB", {
  day: "numeric",
  month: "short",
  hour: "2-digit",
  minute: "2-digit",
});

/** @param {number | null | undefined} value */
export function count(value) {
  return value === null || value === undefined ? NONE : whole.format(value);
}

/** A rate, with three digits: 0.0312, 4.25, 118, 2,310. @param {number | null | undefined} value */
export function rate(value) {
  if (value === null || value === undefined) return NONE;
  return value >= 100 ? whole.format(value) : three.format(value);
}

/** @param {number | null | undefined} value from 0 to 1 */
export function percent(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return NONE;
  const shown = value * 100;
  // 100 % means all: what is nearly all is not rounded up to it.
  return `${shown < 100 && shown > 99.9 ? "99.9" : shown.toFixed(shown === 100 || shown === 0 ? 0 : 1)} %`;
}

/** Two units at most: 2 d 4 h, 3 h 07 min, 4 min 05 s, 12 s. @param {number | null | undefined} seconds */
export function duration(seconds) {
  if (seconds === null || seconds === undefined) return NONE;
  if (seconds < 1 && seconds > 0) return "< 1 s";
  const s = Math.round(seconds);
  const pad = (/** @type {number} */ n) => String(n).padStart(2, "0");
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${pad(s % 60)} s`;
  if (s < 86_400) return `${Math.floor(s / 3600)} h ${pad(Math.floor((s % 3600) / 60))} min`;
  return `${Math.floor(s / 86_400)} d ${Math.floor((s % 86_400) / 3600)} h`;
}

/** The local time, with the day unless it is today. @param {number | null | undefined} unixSeconds */
export function clock(unixSeconds) {
  if (unixSeconds === null || unixSeconds === undefined) return NONE;
  const date = new Date(unixSeconds * 1000);
  const isToday = date.toDateString() === new Date().toDateString();
  return (isToday ? timeOfDay : dayAndTime).format(date);
}

/** @param {number | null | undefined} numBytes */
export function bytes(numBytes) {
  if (numBytes === null || numBytes === undefined) return NONE;
  const units = ["B", "kB", "MB", "GB"];
  let value = numBytes;
  let unit = 0;
  while (value >= 1000 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${unit === 0 ? value : value.toFixed(1)} ${units[unit]}`;
}

/** @param {number} n @param {string} one @param {string} [many] */
export function plural(n, one, many = `${one}s`) {
  return `${count(n)} ${n === 1 ? one : many}`;
}

/** Unix seconds. */
export function now() {
  return Date.now() / 1000;
}
