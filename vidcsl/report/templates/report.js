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

// Players: draw frame by frame out of the film strips below them.
for (const player of document.querySelectorAll(".player")) {
  const count = Number(player.dataset.frames);
  const [width, height] = [Number(player.dataset.width), Number(player.dataset.height)];
  const strips = [...player.parentElement.querySelectorAll(".strip img")];
  const screens = [...player.querySelectorAll("canvas")].map((canvas) => canvas.getContext("2d"));
  const [button, slider] = [player.querySelector("button"), player.querySelector("input")];
  let timer = null;
  const show = () => screens.forEach((screen, i) => {
    screen.drawImage(strips[i], slider.value * width, 0, width, height, 0, 0, width, height);
  });
  const stop = () => {
    clearInterval(timer);
    timer = null;
    button.textContent = "Play";
  };
  const play = () => {
    timer = setInterval(() => {
      slider.value = (Number(slider.value) + 1) % count;
      show();
    }, 125);
    button.textContent = "Pause";
  };
  button.addEventListener("click", () => (timer === null ? play() : stop()));
  slider.addEventListener("input", () => { stop(); show(); });
  Promise.all(strips.map((strip) => strip.decode())).then(() => { player.hidden = false; show(); });
}
