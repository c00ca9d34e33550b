"use strict";
// Hover a figure for run and value; click a value or a legend entry to follow a variant through every figure and table.
const chips = [...document.querySelectorAll("button.chip")];
const followed = () => new Set(chips.filter(chip => chip.getAttribute("aria-pressed") === "true").map(chip => chip.dataset.variant));
const follow = () => {
  const chosen = followed();
  for (const one of document.querySelectorAll("[data-variant]:not(.chip)"))
    one.classList.toggle("faded", chosen.size > 0 && !chosen.has(one.dataset.variant));
};
const toggle = chip => { chip.setAttribute("aria-pressed", String(chip.getAttribute("aria-pressed") !== "true")); follow(); };
chips.forEach(chip => chip.addEventListener("click", () => toggle(chip)));

const tip = document.getElementById("tip");
const REACH = 16; // pixels around a value within which it is shown
for (const drawing of document.querySelectorAll("svg.drawing")) {
  const marks = JSON.parse(drawing.dataset.marks);
  const ring = document.createElementNS("http://www.w3.org/2000/svg", "rect");
  ring.setAttribute("class", "ring");
  ring.setAttribute("rx", 6);
  const nearest = event => {
    const frame = drawing.getBoundingClientRect(), scale = frame.width / drawing.viewBox.baseVal.width;
    const x = (event.clientX - frame.left) / scale, y = (event.clientY - frame.top) / scale, chosen = followed();
    let best = null, least = REACH / scale;
    for (const mark of marks) {
      if (chosen.size && !chosen.has(mark[4])) continue;
      const away = Math.hypot(Math.max(mark[0] - x, 0, x - mark[2]), Math.max(mark[1] - y, 0, y - mark[3]));
      if (away < least) { least = away; best = mark; }
    }
    return best;
  };
  const hide = () => { tip.hidden = true; ring.remove(); };
  const show = event => {
    const mark = nearest(event);
    if (!mark) return hide();
    tip.textContent = mark[5];
    tip.hidden = false;
    tip.style.left = `${Math.max(4, Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8))}px`;
    tip.style.top = `${event.clientY + (event.clientY > innerHeight - 90 ? -48 : 18)}px`;
    for (const [name, at] of [["x", mark[0] - 5], ["y", mark[1] - 5], ["width", mark[2] - mark[0] + 10], ["height", mark[3] - mark[1] + 10]])
      ring.setAttribute(name, at);
    drawing.append(ring);
  };
  drawing.addEventListener("pointermove", show);
  drawing.addEventListener("pointerdown", show);
  drawing.addEventListener("pointerleave", hide);
  drawing.addEventListener("click", event => {
    const mark = nearest(event), chip = mark && chips.find(one => one.dataset.variant === mark[4]);
    if (chip) toggle(chip);
  });
}

const slider = document.getElementById("step");
if (slider) {
  const data = JSON.parse(document.getElementById("maps-data").textContent), last = data.palette.length - 1;
  const output = document.getElementById("step-shown");
  slider.closest(".slider").hidden = false;
  slider.addEventListener("input", () => {
    const frame = Number(slider.value);
    output.textContent = `step ${data.steps[frame].toLocaleString("en-US")}`;
    data.maps.forEach((map, n) => document.querySelectorAll(`#map-${n} .cell`).forEach((cell, i) => {
      const mass = map.values[frame][i], known = mass !== null, text = cell.querySelector("text");
      cell.querySelector("rect").setAttribute("fill", known ? data.palette[Math.round(Math.min(Math.max(mass, 0), 1) * last)] : "none");
      cell.querySelector("title").textContent = `${map.texts[i]}: ${known ? mass.toFixed(3) : "no number"}`;
      if (text) { text.textContent = known ? mass.toFixed(2) : ""; text.setAttribute("class", mass > .5 ? "onlight" : "ondark"); }
    }));
  });
}
