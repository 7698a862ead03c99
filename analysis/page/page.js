"use strict";

/* Sorting: a heading goes through rising, falling and the order in which the table was written. */
function compare(a, b) {
  const x = Number(a), y = Number(b);
  return Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b, "en", { numeric: true }) : x - y;
}

function sortBy(table, column, direction) {
  const body = table.tBodies[0];
  const keyOf = (row) => row.cells[column].dataset.key;
  const rows = [...body.rows].sort((r, s) => r.dataset.place - s.dataset.place);
  if (direction !== "none") {
    const sign = direction === "ascending" ? 1 : -1;
    rows.sort((r, s) => {
      const a = keyOf(r), b = keyOf(s);
      if (a === "" || b === "") return (a === "") - (b === "");  // no value: last, either way
      return sign * compare(a, b);
    });
  }
  body.append(...rows);
  table.classList.toggle("sorted", direction !== "none");
}

for (const table of document.querySelectorAll("table.sortable")) {
  [...table.tBodies[0].rows].forEach((row, place) => { row.dataset.place = place; });
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const next = { ascending: "descending", descending: "none" };
    const direction = next[head.getAttribute("aria-sort")] || "ascending";
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    if (direction !== "none") head.setAttribute("aria-sort", direction);
    sortBy(table, column, direction);
  }));
}

/* Figures open large; Escape, the button and a click beside the figure close them. */
const large = document.getElementById("large");
for (const button of document.querySelectorAll("button.enlarge")) {
  button.addEventListener("click", () => {
    const shown = button.querySelector("img"), image = large.querySelector("img");
    image.src = shown.src;
    image.alt = shown.alt;
    large.showModal();
  });
}
large.addEventListener("click", (event) => {
  if (event.target.tagName !== "IMG") large.close();
});

/* Data: to the clipboard, or selected where the browser gives no clipboard to files. */
function select(text) {
  const range = document.createRange();
  range.selectNodeContents(text);
  const selection = getSelection();
  selection.removeAllRanges();
  selection.addRange(range);
}

for (const button of document.querySelectorAll("button.copy")) {
  const text = button.closest("details").querySelector("pre");
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text.textContent);
      button.textContent = "Copied";
    } catch {
      select(text);
      button.textContent = "Selected";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  });
}

for (const button of document.querySelectorAll("button.save")) {
  button.addEventListener("click", () => {
    const text = button.closest("details").querySelector("pre").textContent;
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
    link.download = button.dataset.name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });
}
