// A classic script, so that the chosen theme is there before the first paint.
"use strict";

(() => {
  const STORAGE_KEY = "trunkline.theme";
  const root = document.documentElement;
  const prefersDark = matchMedia("(prefers-color-scheme: dark)");

  /** The theme that is shown. */
  const current = () => root.dataset.theme ?? (prefersDark.matches ? "dark" : "light");

  const chosen = localStorage.getItem(STORAGE_KEY);
  if (chosen === "dark" || chosen === "light") root.dataset.theme = chosen;

  document.addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme-button");
    const label = () => {
      button.textContent = current() === "dark" ? "Light theme" : "Dark theme";
    };
    button.addEventListener("click", () => {
      root.dataset.theme = current() === "dark" ? "light" : "dark";
      localStorage.setItem(STORAGE_KEY, root.dataset.theme);
      label();
    });
    prefersDark.addEventListener("change", label);
    label();
  });
})();
