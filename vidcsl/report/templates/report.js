"use strict";

// Tables: a click on a column's name sorts by it, a second one in reverse; undefined values stay last.
for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.addEventListener("click", () => {
    const descending = head.getAttribute("aria-sort") === "ascending";
    for (const other of heads) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", descending ? "descending" : "ascending");
    const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
    const compare = (one, other) => {
      const [a, b] = [key(one), key(other)];
      if (a === "" || b === "") return (a === "") - (b === "");
      const order = isNaN(a) || isNaN(b) ? a.localeCompare(b, "en", { numeric: true }) : a - b;
      return descending ? -order : order;
    };
    table.tBodies[0].append(...[...table.tBodies[0].rows].sort(compare));
  }));
}

// Tables that are wider than their place say so, and can be scrolled by keyboard.
// In the next frame, as the hint makes the box higher: a size that changes while sizes are told is an error.
const fitting = new ResizeObserver((entries) => requestAnimationFrame(() => {
  for (const { target } of entries) {
    const wide = target.scrollWidth > target.clientWidth + 1;
    target.toggleAttribute("data-wide", wide);
    if (wide) target.tabIndex = 0; else target.removeAttribute("tabindex");
  }
}));
for (const box of document.querySelectorAll(".scroll")) fitting.observe(box);

// Links to the sections of a long page.
const nav = document.querySelector("nav");
for (const heading of document.querySelectorAll("section > h2[id]")) {
  const link = document.createElement("a");
  link.href = `#${heading.id}`;
  link.textContent = heading.textContent;
  nav?.append(link);
}

// Videos play while they are in view; readers who prefer less motion start them by hand.
if (!matchMedia("(prefers-reduced-motion: reduce)").matches) {
  const watcher = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (isIntersecting) target.play().catch(() => {}); else target.pause();
    }
  });
  for (const video of document.querySelectorAll("video")) watcher.observe(video);
}
