"use strict";
const root = document.documentElement;
const dark = matchMedia("(prefers-color-scheme: dark)");
let chosen = null;
const paint = () => { root.dataset.theme = chosen || (dark.matches ? "dark" : "light"); };
dark.addEventListener("change", paint);
paint();

const show = (value) => {
  if (!isFinite(value)) return "-";
  const size = Math.abs(value);
  for (const [unit, name] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]])
    if (size >= 1e4 && size < 1e12 && size >= unit) return Number((value / unit).toPrecision(4)) + name;
  return size >= 1e12 ? value.toExponential(2).replace("e+", "e") : String(Number(value.toPrecision(5)));
};

function press(button) {
  for (const other of button.parentElement.children) other.setAttribute("aria-pressed", other === button);
  const panel = button.closest("[data-panels]");
  for (const figure of panel.querySelectorAll("figure")) figure.hidden = figure.dataset.axis !== button.dataset.axis;
}

function toggle(button) {
  const on = button.getAttribute("aria-pressed") !== "true";
  const panel = button.closest("[data-panels]") || button.closest("figure");
  for (const twin of panel.querySelectorAll(".legend button"))
    if (twin.dataset.series === button.dataset.series) twin.setAttribute("aria-pressed", on);
  for (const group of panel.querySelectorAll("g[data-series]"))
    if (group.dataset.series === button.dataset.series) group.style.display = on ? "" : "none";
}

function nearest(points, x) {
  return points.reduce((best, point) => (Math.abs(point[0] - x) < Math.abs(best[0] - x) ? point : best));
}

function hover(canvas, event) {
  const figure = canvas.closest("figure");
  const plot = JSON.parse(figure.querySelector("script").textContent);
  const box = canvas.getBoundingClientRect();
  const share = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
  const scale = (x) => (plot.log ? Math.log(x) : x);
  const [low, high] = plot.x.map(scale);
  const at = low + share * (high - low);
  const hidden = new Set([...figure.querySelectorAll('.legend button[aria-pressed="false"]')].map((b) => b.dataset.series));
  const seen = plot.series.filter((one) => one.points.length && !hidden.has(one.name)).map((one) => {
    const points = one.points.map(([x, y]) => [scale(x), y, x]);
    return { ...one, point: nearest(points, at) };
  });
  leave(canvas);
  if (!seen.length) return;
  const x = nearest(seen.map((one) => one.point), at);
  const cursor = canvas.appendChild(document.createElement("div"));
  cursor.className = "cursor";
  cursor.style.left = (100 * (x[0] - low)) / (high - low) + "%";
  const tip = canvas.appendChild(document.createElement("div"));
  tip.className = "tip";
  tip.append(plot.across + " " + show(x[2]));
  const table = tip.appendChild(document.createElement("table"));
  for (const one of seen.sort((a, b) => b.point[1] - a.point[1])) {
    const cells = table.insertRow();
    const name = cells.insertCell();
    const swatch = name.appendChild(document.createElement("span"));
    swatch.className = "swatch " + one.colour;
    name.append(one.name);
    cells.insertCell().textContent = one.point[1].toFixed(4);
  }
  tip.style.top = ".4rem";
  tip.style[share < 0.5 ? "left" : "right"] = (share < 0.5 ? 100 * share : 100 * (1 - share)) + "%";
  tip.style.margin = "0 .8rem";
}

function leave(canvas) {
  for (const old of canvas.querySelectorAll(".cursor, .tip")) old.remove();
}

function ready() {
  for (const button of document.querySelectorAll(".switch button")) {
    button.onclick = () => press(button);
    if (button.getAttribute("aria-pressed") === "true") press(button);
  }
  for (const button of document.querySelectorAll(".legend button")) button.onclick = () => toggle(button);
  for (const canvas of document.querySelectorAll(".canvas")) {
    canvas.onpointermove = canvas.onpointerdown = (event) => hover(canvas, event);
    canvas.onpointerleave = () => leave(canvas);
  }
  document.querySelector(".theme").onclick = () => {
    chosen = root.dataset.theme === "dark" ? "light" : "dark";
    paint();
  };
}
ready();

const live = document.body.dataset.live;
if (live) {
  let version = live;
  setInterval(async () => {
    try {
      const now = await (await fetch("version")).text();
      if (now === version) return;
      const page = new DOMParser().parseFromString(await (await fetch(".")).text(), "text/html");
      version = now;
      const axis = document.querySelector('.switch button[aria-pressed="true"]')?.dataset.axis;
      document.querySelector("main").replaceWith(page.querySelector("main"));
      for (const button of document.querySelectorAll(".switch button"))
        button.setAttribute("aria-pressed", button.dataset.axis === axis);
      ready();
    } catch { /* the server has ended; the page stays as it is */ }
  }, 2000);
}
