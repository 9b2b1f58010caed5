// The tree: rows fold, tokens come when their row is in sight, colours change without asking the server again.
"use strict";

const HEAD = 64;  // tokens of a row that is not opened
const blocks = new WeakMap();  // row -> what the server said of its tokens
const measured = new Map();  // address -> promise of entropy and ratio by node
const numberOf = (x) => (x === null || x === undefined ? "–" : Math.abs(x) < 0.001 && x ? x.toExponential(1) : x.toFixed(3)).replace("-", "\u2212");

const rowsOf = (tree) => [...tree.children];
const chosen = () => document.querySelector("[name=colour]:checked").value;

// ---- folding

function setFold(tree, row, open) {
  if (!row.hasAttribute("aria-expanded")) return;
  row.setAttribute("aria-expanded", open);
  show(tree);
}

function show(tree) {
  const rows = rowsOf(tree);
  for (let i = 0; i < rows.length;) {
    rows[i].hidden = false;
    const below = Number(rows[i].dataset.below);
    if (below && rows[i].getAttribute("aria-expanded") === "false") {
      for (let k = i + 1; k <= i + below; k++) rows[k].hidden = true;
      i += below + 1;
    } else i += 1;
  }
}

function reveal(row) {
  const tree = row.parentElement, rows = rowsOf(tree), at = rows.indexOf(row);
  for (let i = 0; i < at; i++) {
    if (i + Number(rows[i].dataset.below) >= at && rows[i].hasAttribute("aria-expanded")) rows[i].setAttribute("aria-expanded", true);
  }
  show(tree);
  focusRow(row);
  row.scrollIntoView({ block: "center" });
}

// ---- tokens

async function load(tree, rows, whole) {
  const asked = rows.filter((row) => row.dataset.state !== (whole ? "whole" : "head") && row.dataset.state !== "whole");
  for (let i = 0; i < asked.length; i += 200) {
    const part = asked.slice(i, i + 200);
    part.forEach((row) => { row.dataset.state = whole ? "whole" : "head"; });
    const nodes = part.map((row) => row.dataset.node).join(",");
    const answer = await fetch(`${tree.dataset.tokens}&nodes=${nodes}${whole ? "" : `&most=${HEAD}`}`);
    if (!answer.ok) { say(await answer.text()); return; }
    const found = await answer.json();
    for (const row of part) {
      if (!whole && row.dataset.state === "whole") continue;  // opened meanwhile
      blocks.set(row, found[row.dataset.node]);
      write(row, whole);
    }
  }
  await colour(tree, asked);
}

function write(row, whole) {
  const block = blocks.get(row), holder = document.createElement("span");
  holder.className = `text tokens ${whole && block.text.length > HEAD ? "whole" : whole ? "" : "short"}`;
  block.text.forEach((text, i) => {
    const token = document.createElement("span");
    token.textContent = whole ? text.replaceAll("\n", "⏎\n") : text.replaceAll("\n", "⏎").replaceAll("\t", "⇥");
    token.dataset.i = i;
    if (!block.mask[i]) token.classList.add("out");
    if (block.wrong[i]) token.classList.add("bad");
    holder.append(token);
  });
  if (block.more) {
    const more = document.createElement("span");
    more.className = "cut";
    more.textContent = ` … ${block.more} more tokens`;
    holder.append(more);
  }
  row.querySelector(".words .text").replaceWith(holder);
}

const inSight = new IntersectionObserver((entries) => {
  const byTree = new Map();
  for (const entry of entries) {
    if (!entry.isIntersecting || entry.target.dataset.state) continue;
    const tree = entry.target.parentElement;
    byTree.set(tree, [...(byTree.get(tree) ?? []), entry.target]);
  }
  byTree.forEach((rows, tree) => load(tree, rows, false));
}, { rootMargin: "300px" });

async function toggleText(row) {
  const tree = row.parentElement;
  if (row.dataset.state === "whole") {
    const block = blocks.get(row);
    const open = row.querySelector(".tokens").classList.contains("short");
    if (!block) return;
    write(row, open);
    if (!open) row.querySelector(".tokens").classList.add("short");
    await colour(tree, [row]);
  } else await load(tree, [row], true);
}

// ---- colours

function policyAddress(tree) {
  const policy = document.getElementById("policy");
  return policy ? `${tree.dataset.measured}&policy=${encodeURIComponent(policy.value)}` : null;
}

async function measures(tree) {
  const address = policyAddress(tree);
  if (!address) { say("No policy of this run is here, so entropy and ratio cannot be computed."); return {}; }
  if (!measured.has(address)) {
    say("Computing under the chosen policy …");
    measured.set(address, fetch(address).then(async (answer) => {
      if (!answer.ok) { say(await answer.text()); return {}; }
      say("Computed.");
      return answer.json();
    }));
  }
  return measured.get(address);
}

const SCALES = {  // token's numbers -> sign and strength of its colour
  advantage: (t, most) => [t.advantage, t.mask ? Math.abs(t.advantage) / most : 0],
  probability: (t) => [-1, 1 - t.probability],
  entropy: (t) => [-1, t.entropy === undefined ? 0 : Math.min(1, t.entropy / 2)],
  ratio: (t) => (t.ratio > 0 ? [Math.log(t.ratio), Math.min(1, Math.abs(Math.log(t.ratio)) / Math.log(2))] : [1, 0]),
  value: (t) => (t.value === null ? [1, 0] : [t.value - 0.5, Math.min(1, Math.abs(2 * t.value - 1))]),
};
const LEGENDS = {
  advantage: [["p-up", "trained towards"], ["p-down", "trained away from"], ["", "the deeper the larger the advantage beside the tree's largest; grey: outside the mask"]],
  probability: [["p-down", "sampled with low probability"], ["", "the deeper the lower"]],
  entropy: [["p-down", "high entropy under the chosen policy"], ["", "deepest from 2 nats on"]],
  ratio: [["p-up", "likelier under the chosen policy than when sampled"], ["p-down", "less likely"], ["", "deepest from a factor of two on"]],
  value: [["p-up", "value above one half"], ["p-down", "below"], ["", "of the state at the segment's end"]],
};

function numbers(row, i, more) {
  const block = blocks.get(row), node = row.dataset.node;
  return { id: block.id[i], text: block.text[i], probability: block.probability[i], advantage: block.advantage[i], mask: block.mask[i],
    wrong: block.wrong[i], value: block.value, entropy: more[node]?.entropy[i], ratio: more[node]?.ratio[i] };
}

async function colour(tree, rows) {
  const by = chosen();
  const more = by === "entropy" || by === "ratio" ? await measures(tree) : {};
  const strongest = Number(tree.dataset.strongest) || 1;
  for (const row of rows ?? rowsOf(tree)) {
    if (!blocks.has(row)) continue;
    for (const token of row.querySelectorAll(".tokens > span[data-i]")) {
      const [sign, strength] = SCALES[by](numbers(row, token.dataset.i, more), strongest);
      token.classList.toggle("p-up", sign > 0);
      token.classList.toggle("p-down", sign < 0);
      token.style.setProperty("--c", strength < 0.001 ? 0 : (0.1 + 0.75 * strength).toFixed(3));
    }
  }
}

function legend() {
  const place = document.getElementById("legend");
  place.replaceChildren(...LEGENDS[chosen()].flatMap(([kind, text]) => {
    const part = document.createElement("span");
    part.textContent = text;
    if (kind) { part.className = `swatch ${kind}`; part.style.background = `rgb(var(--${kind.slice(2)}) / 0.6)`; }
    return [part, " "];
  }));
  const needs = document.querySelector(".needs-policy");
  if (needs) needs.hidden = !["entropy", "ratio"].includes(chosen());
}

// ---- numbers of a token

const say = (text) => { document.getElementById("numbers").textContent = text; };

async function tell(row, i) {
  const by = chosen();
  const more = by === "entropy" || by === "ratio" ? await measures(row.parentElement) : {};
  const t = numbers(row, i, more);
  const parts = [`“${t.text.replaceAll("\n", "⏎")}” id ${t.id}`, `probability ${numberOf(t.probability)}`, `advantage ${numberOf(t.advantage)}`,
    t.mask ? "in the mask" : "outside the mask", `V of the segment ${numberOf(t.value)}`];
  if (t.entropy !== undefined) parts.push(`entropy ${numberOf(t.entropy)} nats`, `ratio ${numberOf(t.ratio)}`);
  if (t.wrong) parts.push("on the first wrong step");
  say(parts.join(" · "));
}

// ---- keyboard

function focusRow(row) {
  row.parentElement.querySelector("[tabindex='0']")?.setAttribute("tabindex", -1);
  row.tabIndex = 0;
  row.focus({ preventScroll: false });
}

function stepToken(row, by) {
  const tokens = [...row.querySelectorAll(".tokens > span[data-i]")];
  if (!tokens.length) return;
  const at = tokens.findIndex((token) => token.classList.contains("at"));
  const next = tokens[at < 0 ? 0 : Math.min(tokens.length - 1, Math.max(0, at + by))];
  document.querySelector(".tokens .at")?.classList.remove("at");
  next.classList.add("at");
  next.scrollIntoView({ block: "nearest" });
  tell(row, next.dataset.i);
}

function key(event) {
  const row = event.target.closest("[role=treeitem]");
  if (!row || event.target !== row || event.altKey || event.ctrlKey || event.metaKey) return;
  const tree = row.parentElement, seen = rowsOf(tree).filter((r) => !r.hidden), at = seen.indexOf(row);
  const open = row.getAttribute("aria-expanded");
  const moves = {
    ArrowDown: () => seen[at + 1] && focusRow(seen[at + 1]),
    ArrowUp: () => seen[at - 1] && focusRow(seen[at - 1]),
    Home: () => focusRow(seen[0]),
    End: () => focusRow(seen.at(-1)),
    Enter: () => toggleText(row),
    " ": () => setFold(tree, row, open !== "true"),
    ArrowRight: () => (event.shiftKey ? stepToken(row, 1) : open === "false" ? setFold(tree, row, true) : open && seen[at + 1] && focusRow(seen[at + 1])),
    ArrowLeft: () => {
      if (event.shiftKey) stepToken(row, -1);
      else if (open === "true") setFold(tree, row, false);
      else {
        const all = rowsOf(tree), here = all.indexOf(row);
        const parent = all.slice(0, here).reverse().find((r) => all.indexOf(r) + Number(r.dataset.below) >= here);
        if (parent) focusRow(parent);
      }
    },
  };
  if (moves[event.key]) { event.preventDefault(); moves[event.key](); }
}

document.addEventListener("DOMContentLoaded", () => {
  const trees = [...document.querySelectorAll(".tree-rows")];
  trees.forEach((tree) => {
    rowsOf(tree).forEach((row) => inSight.observe(row));
    tree.addEventListener("keydown", key);
    tree.addEventListener("click", (event) => {
      const row = event.target.closest("[role=treeitem]");
      if (!row || event.target.closest("a") || String(getSelection())) return;
      if (event.target.closest(".tokens, .preview")) { focusRow(row); toggleText(row); return; }
      setFold(tree, row, row.getAttribute("aria-expanded") !== "true");
      focusRow(row);
    });
    tree.addEventListener("mouseover", (event) => {
      const token = event.target.closest(".tokens > span[data-i]");
      if (token) tell(token.closest("[role=treeitem]"), token.dataset.i);
    });
  });
  document.querySelectorAll("[data-fold]").forEach((button) => button.addEventListener("click", () => {
    for (const tree of trees) {
      tree.querySelectorAll("[aria-expanded]").forEach((row) => row.setAttribute("aria-expanded", button.dataset.fold === "open"));
      show(tree);
    }
  }));
  document.querySelectorAll("[name=colour]").forEach((radio) => radio.addEventListener("change", () => {
    legend();
    trees.forEach((tree) => colour(tree));
    const address = new URL(location.href);
    address.searchParams.set("colour", radio.value);
    history.replaceState(null, "", address);
  }));
  document.getElementById("policy")?.addEventListener("change", () => trees.forEach((tree) => colour(tree)));
  const arrive = () => {
    const row = location.hash.startsWith("#node-") && document.getElementById(location.hash.slice(1));
    if (row) reveal(row);
  };
  addEventListener("hashchange", arrive);
  legend();
  arrive();
});
