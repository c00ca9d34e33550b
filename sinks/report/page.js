"use strict";
// Tables: click a heading to sort, type to filter, copy as CSV. Where a cell shows a rounded number, data-value has it.
const value = cell => {
  if (cell.dataset.value !== undefined) return Number(cell.dataset.value);
  const number = parseFloat(cell.textContent.replaceAll(",", ""));
  return /^[-+\d.]/.test(cell.textContent.trim()) && !Number.isNaN(number) ? number : cell.textContent;
};
const compare = (a, b) => typeof a === "number" && typeof b === "number" ? a - b
  : typeof a === "number" ? -1 : typeof b === "number" ? 1 : String(a).localeCompare(String(b));
for (const table of document.querySelectorAll("table")) {
  table.querySelectorAll("th").forEach((heading, column) => heading.querySelector("button").addEventListener("click", () => {
    const up = heading.getAttribute("aria-sort") !== "ascending";
    table.querySelectorAll("th").forEach(other => other.removeAttribute("aria-sort"));
    heading.setAttribute("aria-sort", up ? "ascending" : "descending");
    const rows = [...table.tBodies[0].rows];
    rows.sort((a, b) => (up ? 1 : -1) * compare(value(a.cells[column]), value(b.cells[column])));
    table.tBodies[0].append(...rows);
  }));
  const box = table.closest(".sheet");
  box.querySelector(".filter")?.addEventListener("input", event => {
    const words = event.target.value.toLowerCase().split(/\s+/);
    for (const row of table.tBodies[0].rows) row.hidden = !words.every(word => row.textContent.toLowerCase().includes(word));
  });
  const button = box.querySelector(".copy");
  button.addEventListener("click", async () => {
    const text = cell => cell.dataset.value ?? cell.textContent.trim();
    const csv = [...table.rows].filter(row => !row.hidden)
      .map(row => [...row.cells].map(cell => `"${text(cell).replaceAll('"', '""')}"`).join(",")).join("\n");
    try { await navigator.clipboard.writeText(csv); button.textContent = "Copied"; }
    catch { button.textContent = "The browser does not allow copying"; }
  });
}
