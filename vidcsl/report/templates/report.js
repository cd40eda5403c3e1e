"use strict";

// Tables: a click on a column's name sorts by it, a second one the other way; undefined stays last.
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

// The way around a long page.
const nav = document.querySelector("nav");
for (const heading of document.querySelectorAll("section > h2[id]")) {
  const link = document.createElement("a");
  link.href = `#${heading.id}`;
  link.textContent = heading.textContent;
  nav?.append(link);
}

// Films play while they are seen; those who want less motion start them by hand.
if (!matchMedia("(prefers-reduced-motion: reduce)").matches) {
  const watcher = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (isIntersecting) target.play().catch(() => {}); else target.pause();
    }
  });
  for (const film of document.querySelectorAll("video")) watcher.observe(film);
}

// The map: a touched video lights its class and shows its nearest neighbours.
for (const figure of document.querySelectorAll(".touch")) {
  const [map, links, told, classes] = [".map", ".links", "output", "select"].map((s) => figure.querySelector(s));
  const dots = [...map.querySelectorAll("circle")];
  const show = (name, chosen) => {
    map.classList.toggle("lit", name !== "");
    for (const dot of dots) {
      dot.classList.toggle("same", dot.dataset.class === name);
      dot.classList.toggle("chosen", dot === chosen);
      dot.classList.remove("near");
    }
    links.replaceChildren();
    classes.value = name;
  };
  const touch = (dot) => {
    const { class: name, near, name: video } = dot.dataset;
    show(name, dot);
    const others = near.split(" ").filter(Boolean).map((i) => map.getElementById(`v${i}`));
    for (const other of others.filter((each) => each.tagName === "circle")) {
      const line = document.createElementNS(map.namespaceURI, "line");
      [["x1", dot, "cx"], ["y1", dot, "cy"], ["x2", other, "cx"], ["y2", other, "cy"]].forEach(
        ([end, from, centre]) => line.setAttribute(end, from.getAttribute(centre)));
      line.classList.toggle("right", other.dataset.class === name);
      other.classList.add("near");
      links.append(line);
    }
    const taken = others.map((other) => other.dataset.class);
    const right = taken.filter((each) => each === name).length;
    told.textContent = `${video}, ${name}: ${right} of its ${taken.length} nearest neighbours are of its class (${taken.join(", ")}).`;
  };
  const at = (event) => event.target.closest("circle");
  map.addEventListener("pointerover", (event) => at(event) && touch(at(event)));
  map.addEventListener("click", (event) => at(event) && touch(at(event)));
  classes.addEventListener("change", () => {
    show(classes.value, null);
    const count = dots.filter((dot) => dot.dataset.class === classes.value).length;
    told.textContent = classes.value ? `${count} videos of ${classes.value}.` : "";
  });
}
