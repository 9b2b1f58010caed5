// What all pages share: curves, sorting, finding, and parts that are fetched again while a run is under way.
// Text of models and problem sets comes as text and is written as text (textContent); nothing here builds HTML from it.
"use strict";

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function coloured(figure) {
  const series = [1, 2, 3, 4, 5, 6].map((i) => css(`--series-${i}`));
  const ink = css("--muted"), rule = css("--rule");
  figure.data.forEach((curve, i) => {
    const index = curve.meta.series ?? i;
    const colour = series[index % series.length];
    const dash = ["solid", "dash", "dot", "dashdot"][Math.floor(index / series.length) % 4];
    if (curve.meta.band) curve.fillcolor = colour + "33";
    else curve.line = { ...curve.line, color: colour, dash };
  });
  const axis = { gridcolor: rule, linecolor: rule, tickcolor: rule };
  Object.assign(figure.layout, {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", autosize: true,
    font: { family: css("--sans"), color: ink, size: 11.5 },
    xaxis: { ...axis, ...figure.layout.xaxis }, yaxis: { ...axis, ...figure.layout.yaxis },
    hoverlabel: { bgcolor: css("--raised"), font: { color: css("--ink") } },
  });
  return figure;
}

function draw(place, figure) {
  coloured(figure);
  const options = { displaylogo: false, responsive: true, modeBarButtonsToRemove: ["lasso2d", "select2d"] };
  return Plotly.react(place, figure.data, figure.layout, options);
}

const waiting = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting || !entry.target.figure) continue;
    draw(entry.target, entry.target.figure);
    entry.target.figure = null;
    entry.target.drawn = true;
  }
}, { rootMargin: "200px" });

function put(place, figure) {
  if (place.drawn && place.offsetParent !== null) { draw(place, figure); return; }
  place.figure = figure;
  waiting.unobserve(place);
  waiting.observe(place);
}

async function figures(place) {
  const answer = await fetch(place.dataset.figures);
  if (!answer.ok) { place.textContent = await answer.text(); return; }
  const subjects = Object.entries((await answer.json()).figures);
  const sectioned = "subjects" in place.dataset;
  subjects.forEach(([name, list], number) => {
    const key = `subject-${number}-${name}`;
    let section = [...place.children].find((child) => child.dataset.key === key);
    if (!section) {
      section = document.createElement(sectioned ? "details" : "div");
      section.dataset.key = key;
      if (sectioned) {
        section.className = "subject";
        section.open = number < 2;
        section.append(Object.assign(document.createElement("summary"), { textContent: name }));
      }
      section.append(Object.assign(document.createElement("div"), { className: "grid" }));
      place.append(section);
    }
    const grid = section.lastElementChild;
    list.forEach((figure, i) => {
      if (!grid.children[i]) {
        const plot = Object.assign(document.createElement("div"), { className: "plot" });
        plot.setAttribute("role", "img");
        plot.setAttribute("aria-label", figure.layout.title.text);
        grid.append(plot);
      }
      put(grid.children[i], figure);
    });
  });
}

function sortable(table) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    if (head.tagName !== "TH") return;
    head.tabIndex = 0;
    const sort = () => {
      const rising = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", rising ? "ascending" : "descending");
      const key = (row) => {
        const cell = row.cells[column];
        const text = cell.dataset.sort ?? cell.textContent.trim();
        const number = parseFloat(text.replaceAll("\u202f", "").replace("\u2212", "-"));
        return Number.isNaN(number) ? text : number;
      };
      const rows = [...table.tBodies[0].rows].map((row) => [key(row), row]);
      const compare = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b)));
      rows.sort(([a], [b]) => (rising ? compare(a, b) : compare(b, a)));
      table.tBodies[0].append(...rows.map(([, row]) => row));
    };
    head.addEventListener("click", sort);
    head.addEventListener("keydown", (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); sort(); } });
  });
}

function find(input) {
  const wanted = input.value.toLowerCase();
  for (const row of document.querySelectorAll(`#${input.dataset.find} tbody tr`)) {
    row.hidden = !row.textContent.toLowerCase().includes(wanted);
  }
}

async function refresh(parts) {
  const answer = await fetch(location.href);
  if (!answer.ok) return;
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
  for (const id of parts) {
    const old = document.getElementById(id), now = fresh.getElementById(id);
    if (!old || !now || old.contains(document.activeElement) || old.querySelector("details[open], :checked")) continue;
    old.replaceWith(document.adoptNode(now));
    now.querySelectorAll("table.sortable").forEach(sortable);
  }
  document.querySelectorAll("[data-find]").forEach(find);
  if (!fresh.body.dataset.live) clearInterval(refresh.timer);
}

document.addEventListener("DOMContentLoaded", () => {
  document.querySelectorAll("table.sortable").forEach(sortable);
  document.querySelectorAll("[data-find]").forEach((input) => {
    input.addEventListener("input", () => find(input));
    input.addEventListener("keydown", (event) => { if (event.key === "Enter") event.preventDefault(); });
  });
  document.querySelectorAll("[data-submit]").forEach((select) => {
    select.addEventListener("change", () => select.form.requestSubmit());
  });
  document.querySelectorAll("[data-figures]").forEach((place) => {
    figures(place);
    if (place.dataset.liveFigures) setInterval(() => figures(place), 1000 * place.dataset.liveFigures);
  });
  const live = document.body.dataset.live;
  if (live) refresh.timer = setInterval(() => refresh(document.body.dataset.liveParts.split(" ")), 1000 * live);
});
