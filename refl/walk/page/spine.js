// The spine: every operation in the forward's order, grouped by block. A walk goes down it, and
// then back up.

function buildSpine() {
  const groups = [];
  for (const stop of data.stops) {
    if (!groups.length || groups.at(-1).block !== stop.block) {
      groups.push({block: stop.block, items: []});
    }
    groups.at(-1).items.push(spineItem(stop));
  }
  const lists = groups.map(({block, items}) => el("li", {},
    block === null ? null : el("span", {class: "block-name"}, data.blocks[block].name),
    el("ol", {class: block === null ? "outside" : ""}, items)));
  return el("ol", {class: "blocks"}, lists);
}

function spineItem(stop) {
  const flow = el("span", {class: "flow", "aria-hidden": "true"});
  const link = el("a", {href: `#forward/${stop.index}`, "data-stop": stop.index,
    onclick: (event) => { event.preventDefault(); go(stop.index, state.direction); }},
  el("span", {class: "label"}, printable(stop.label)),
  el("span", {class: "operation"}, stop.operation), flow, el("span", {class: "flags"}));
  return el("li", {}, link);
}

function drawSpine() {
  const links = document.querySelectorAll("#spine a[data-stop]");
  links.forEach((link, n) => drawSpineItem(link, data.stops[n]));
  const current = document.querySelector('#spine a[aria-current="step"]');
  if (current) centered(current);
  const here = stopAt(state.position);
  document.getElementById("spine-now").textContent
    = `${blockName(here)}${printable(here.label)} (${here.index + 1} of ${data.stops.length})`;
}

function drawSpineItem(link, stop) {
  const walked = state.position >= data.stops.length && stop.index >= stopAt(state.position).index;
  const audit = plantedAudit(stop);
  const broken = audit && !audit.ok;
  link.setAttribute("href", `#${state.direction}/${stop.index}`);
  link.dataset.direction = state.direction;
  link.classList.toggle("walked", walked);
  link.classList.toggle("broken", Boolean(broken));
  link.toggleAttribute("aria-current", false);
  if (stop.index === stopAt(state.position).index) link.setAttribute("aria-current", "step");
  drawFlow(link.querySelector(".flow"), stop, walked);
  link.querySelector(".flags").replaceChildren(...flags(stop, broken, audit));
}

// How much of the logit passed here, as far as the sweep has come.
function drawFlow(node, stop, walked) {
  const received = walked && !questionOpen(stop) ? stop.rules[state.method]?.received ?? 0 : 0;
  const most = Math.max(Math.abs(data.explained), 1e-300);
  node.style.width = `${Math.min(100, (100 * Math.abs(received)) / most)}%`;
  node.classList.toggle("negative", received < 0);
}

function flags(stop, broken, audit) {
  const found = [];
  if (partings().has(stop.index)) {
    found.push(el("span", {class: "parting", title: "the methods part here"},
      el("span", {"aria-hidden": "true"}, "≠"), hiddenText("the methods part here")));
  }
  if (broken) {
    const words = audit.closed ? "elements differ" : "does not close";
    found.push(el("span", {class: "fault", title: words},
      el("span", {"aria-hidden": "true"}, audit.closed ? "!" : "✗"), hiddenText(words)));
  }
  return found;
}

function hiddenText(words) {
  return el("span", {class: "unseen"}, `, ${words}`);
}

function blockName(stop) {
  return stop.block === null ? "" : `${data.blocks[stop.block].name} `;
}

// Within its own box only: the page itself stays where it is.
function centered(link) {
  const box = document.getElementById("spine-list");
  const away = link.getBoundingClientRect().top - box.getBoundingClientRect().top;
  box.scrollTop += away - box.clientHeight / 2;
}

/* ---- where the methods part -------------------------------------------------------------- */

const found = new Map();

// Stops at which the method at hand and another use different rules, or pass on different
// relevance, for the first time.
function partings() {
  if (!found.has(state.method)) found.set(state.method, new Set(partingsOf(state.method)));
  return found.get(state.method);
}

function partingsOf(m) {
  return data.methods.flatMap((_, other) => (other === m ? [] : [...Rules.parts(c, data, m, other)]));
}
