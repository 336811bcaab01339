// The page of the walk: its state, its parts, and what moves it.
//
// Files, in the order they are joined: rules.js (arithmetic), elements.js, grids.js, words.js,
// bar.js, spine.js, ledger.js, worked.js, questions.js, views.js, keys.js, page.js.
//
// For tests:
//   window.walk             {data, state, c, go(index, direction), next(), previous(), choose(flat,
//                           operand), setMethod(number or name), plant(mistake id or null),
//                           setPredict(on), setEps(eps or null), digits(x)}; there once the page is
//                           ready, when also <main id="app" data-ready> is set
//   #stop                   the stop at hand: data-stop, data-direction (forward | sweep),
//                           data-method, data-operation
//   #spine a[data-stop]     every operation; aria-current="step" at the one at hand; class broken
//                           under a planted mistake that is found out there
//   [data-grid]             a grid: operand-K, output, received, passed-K, pixels; its .panes takes
//                           the focus and the keys
//   [data-part]             a cell of the ledger: received, passed (data-operand), absorbed
//                           (data-cause), error; data-of="engine" or "page"
//   .closing[data-verdict]  closes, open (the sum does not close), moved (elements differ)
//   [data-worked]           total and engine: the worked element and the engine's number
//   [data-fan-in]           the sum over several readers
//   [data-bar]              of the bar of the logit: way, arrived, or a cause
//   [data-option]           an answer to a question; #answer[data-answer] right or wrong
//   [data-element]          on #stop: index of the chosen element, as in the address
//   #methods button[data-method], #mistake (select), #predict, #eps, #eps-reset, #next, #previous,
//   #help-open, #help, #planted, #said (what a screen reader is told)

const data = {}; // filled when the page starts
let c = null;

const state = {
  position: 0, direction: "forward", method: 0, operand: 0, element: null,
  mistake: null, eps: null, predict: false, answers: new Map(),
};

/* ---- positions: forward 0 ... N - 1, then the sweep from N - 1 back to 0 --------------------- */

function stopAt(position) {
  const count = data.stops.length;
  return data.stops[position < count ? position : 2 * count - 1 - position];
}

function positionOf(index, direction) {
  return direction === "forward" ? index : 2 * data.stops.length - 1 - index;
}

function move(position) {
  const last = 2 * data.stops.length - 1;
  const next = Math.min(last, Math.max(0, position));
  if (next === state.position) return;
  const direction = next < data.stops.length ? "forward" : "sweep";
  Object.assign(state, {position: next, direction, operand: 0, element: null, eps: null});
  render();
  toTop();
}

function go(index, direction = state.direction) {
  move(positionOf(index, direction));
}

// To where the block changes: forward to its first stop, in the sweep to its last.
function moveBlock(step) {
  const last = 2 * data.stops.length - 1;
  let position = Math.min(last, Math.max(0, state.position + step));
  while (position > 0 && position < last && !entersBlock(position)) position += step;
  move(position);
}

function entersBlock(position) {
  const count = data.stops.length;
  return position === count || stopAt(position).block !== stopAt(position - 1).block;
}

// A new stop is read from its top; the page moves only where that is out of view.
function toTop() {
  const article = document.getElementById("stop");
  const above = document.getElementById("sticky").getBoundingClientRect().bottom;
  if (article.getBoundingClientRect().top < above - 1) article.scrollIntoView({block: "start"});
}

/* ---- what can be set ------------------------------------------------------------------------ */

function setMethod(method) {
  const found = typeof method === "number" ? method
    : data.methods.findIndex(({name}) => name === method);
  Object.assign(state, {method: Math.max(found, 0), eps: null});
  render();
}

function plant(id) {
  Object.assign(state, {mistake: id || null, eps: null});
  render();
}

function setPredict(on) {
  state.predict = on;
  render();
}

function choose(flat, operand = 0) {
  Object.assign(state, {element: flat, operand});
  render();
}

/* ---- drawing ---------------------------------------------------------------------------------- */

function render() {
  const stop = stopAt(state.position);
  const article = document.getElementById("stop");
  drawControls();
  const view = state.direction === "forward" ? forwardView(stop) : sweepView(stop);
  article.replaceChildren(...view.flat(9).filter(Boolean));
  article.className = state.direction;
  Object.assign(article.dataset, {stop: stop.index, direction: state.direction,
    method: data.methods[state.method].name, operation: stop.operation});
  markReceived(stop);
  drawBar(state.position, state.method, questionOpen(stop));
  drawSpine();
  drawMistake();
  document.getElementById("said").textContent = spoken(stop);
  remember();
}

// The strips of the received relevance, once its grid is in the page.
function markReceived(stop) {
  const chosen = chosenOperand(valueOperands(stop));
  const panel = document.querySelector("#passed .worked");
  if (panel && chosen) showWorked(stop, state.method, chosen, howHere(stop), panel);
}

function drawControls() {
  for (const button of document.querySelectorAll("#methods button")) {
    const pressed = Number(button.dataset.number) === state.method;
    button.setAttribute("aria-pressed", String(pressed));
  }
  document.getElementById("predict").setAttribute("aria-pressed", String(state.predict));
  document.getElementById("mistake").value = state.mistake ?? "";
  document.getElementById("previous").disabled = state.position === 0;
  document.getElementById("next").disabled = state.position === 2 * data.stops.length - 1;
}

// What a screen reader is told of a stop.
function spoken(stop) {
  const where = `stop ${stop.index + 1} of ${data.stops.length}, ${blockName(stop)}${printable(stop.label)}, `
    + stop.operation;
  if (state.direction === "forward") return `Forward, ${where}.`;
  const rule = stop.rules[state.method];
  if (!rule) return `Sweep, ${where}: nothing arrives here.`;
  const start = `Sweep, ${where}, rule ${rule.rule}: received ${digits(rule.received)}`;
  if (questionOpen(stop)) return `${start}. A question is asked.`;
  const absorbed = Object.entries(rule.absorbed).filter(([, x]) => x)
    .map(([cause, x]) => `, ${DESTINATIONS.includes(cause) ? "arrived" : `absorbed by ${cause.replaceAll("_", " ")}`} ${digits(x)}`);
  return `${start}, passed on ${digits(sum(Object.values(rule.passed)))}${absorbed.join("")}.`;
}

/* ---- the frame, built once ------------------------------------------------------------------------ */

function frame() {
  document.getElementById("app").replaceChildren(
    header(),
    el("div", {id: "sticky"}, el("section", {id: "bar", "aria-label": "the bar of the logit"})),
    el("div", {class: "columns"},
      el("nav", {id: "spine", "aria-label": "operations"},
        el("details", {id: "spine-box", open: wide.matches},
          el("summary", {}, "Operations: ", el("span", {id: "spine-now"})),
          el("div", {id: "spine-list"}, buildSpine()))),
      el("div", {class: "main"}, el("p", {id: "planted", role: "status", hidden: true}),
        el("article", {id: "stop", "aria-labelledby": "stop-title"}), steps())),
    el("p", {id: "said", class: "unseen", "aria-live": "polite"}),
    helpDialog());
}

const wide = window.matchMedia("(min-width: 60rem)");

function header() {
  return el("header", {class: "top"},
    el("div", {class: "title"}, el("h1", {}, `A walk through the ${printable(data.what)}`),
      inputLine(),
      el("p", {class: "soft"}, [data.model, data.architecture, data.dtype, `refl ${data.refl}`]
        .filter(Boolean).map(printable).join(" · "))),
    el("div", {class: "controls"}, methodSwitch(), mistakeMenu(),
      el("button", {type: "button", id: "predict", "aria-pressed": "false",
        onclick: () => setPredict(!state.predict)}, "Predict first"),
      el("button", {type: "button", id: "help-open", onclick: openHelp}, "Help ", el("kbd", {}, "?"))));
}

function inputLine() {
  const all = [...data.tokens, ...(data.decoder_tokens ? ["→", ...data.decoder_tokens] : [])];
  const some = all.slice(0, 60);
  if (data.picture) return null;
  return el("p", {class: "input"}, some.map((token) => [tokenText(token), " "]),
    all.length > some.length ? "…" : null);
}

function methodSwitch() {
  const buttons = data.methods.map(({name, title, summary}, m) => el("button", {type: "button",
    "data-method": name, "data-number": m, title: summary, "aria-pressed": "false",
    onclick: () => setMethod(m)}, title));
  return el("div", {id: "methods", role: "group", "aria-label": "method"}, buttons);
}

function mistakeMenu() {
  const options = Rules.MISTAKES.map(({id, title}) => el("option", {value: id}, title));
  return el("label", {class: "mistake"}, "Plant a mistake ",
    el("select", {id: "mistake", onchange: (event) => plant(event.target.value)},
      el("option", {value: ""}, "none"), options));
}

function steps() {
  return el("div", {class: "steps"},
    el("button", {type: "button", id: "previous", onclick: () => move(state.position - 1)}, "← back"),
    el("button", {type: "button", id: "next", onclick: () => move(state.position + 1)}, "next →"));
}

/* ---- the start ------------------------------------------------------------------------------------- */

async function inflated(id) {
  const text = atob(document.getElementById(id).textContent);
  const bytes = Uint8Array.from(text, (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).arrayBuffer();
}

async function start() {
  Object.assign(data, JSON.parse(new TextDecoder().decode(await inflated("walk-data"))));
  c = Rules.load(data, await inflated("walk-arrays"));
  frame();
  readAddress();
  render();
  document.addEventListener("keydown", onKey);
  window.addEventListener("hashchange", () => { readAddress(); render(); });
  window.addEventListener("resize", later(render));
  darkness.addEventListener("change", render);
  window.walk = {data, state, c, go, choose, setMethod, plant, setPredict, digits,
    next: () => move(state.position + 1), previous: () => move(state.position - 1),
    setEps: (eps) => setEps(stopAt(state.position), state.method, eps)};
  document.getElementById("app").dataset.ready = "";
}

// Once things have come to rest, and only where the width changed: a phone's bars change the height.
function later(action) {
  let [timer, width] = [0, window.innerWidth];
  return () => {
    if (window.innerWidth === width) return;
    width = window.innerWidth;
    clearTimeout(timer);
    timer = setTimeout(action, 150);
  };
}

start();
