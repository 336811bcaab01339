// Keys, the address, and help.

const HELP = [
  ["→ or ↓", "the next stop: forward through the net, then back up it in the sweep's order"],
  ["← or ↑", "the stop before"],
  ["Page Down, Page Up", "the next block, the block before (or Shift with an arrow)"],
  ["Home, End", "the first stop forward, the last stop of the sweep"],
  ["m", "the next method"],
  ["p", "predict first: a question at every stop before its result"],
  ["1 to 4", "answer the question"],
  ["Tab, then arrows", "in a grid: choose the element that is worked out; Escape leaves the grid"],
  ["?", "this help"],
];

/* ---- keys --------------------------------------------------------------------------------- */

// Whatever uses keys itself keeps them.
const OWN_KEYS = 'input, select, textarea, dialog, pre, .scroll, [role="application"]';

const KEYS = {
  ArrowRight: () => move(state.position + 1), ArrowDown: () => move(state.position + 1),
  ArrowLeft: () => move(state.position - 1), ArrowUp: () => move(state.position - 1),
  PageDown: () => moveBlock(1), PageUp: () => moveBlock(-1),
  Home: () => move(0), End: () => move(2 * data.stops.length - 1),
  m: () => setMethod((state.method + 1) % data.methods.length),
  p: () => setPredict(!state.predict),
  "?": () => openHelp(),
};

function onKey(event) {
  if (event.ctrlKey || event.altKey || event.metaKey || event.defaultPrevented) return;
  if (event.target.closest?.(OWN_KEYS)) return;
  const action = keyAction(event);
  if (!action) return;
  event.preventDefault();
  action();
}

function keyAction({key, shiftKey}) {
  if (shiftKey && key.startsWith("Arrow")) {
    return () => moveBlock(key === "ArrowRight" || key === "ArrowDown" ? 1 : -1);
  }
  if (/^[1-4]$/.test(key) && questionOpen(stopAt(state.position))) {
    return () => answerQuestion(Number(key) - 1);
  }
  return Object.hasOwn(KEYS, key) ? KEYS[key] : null;
}

/* ---- the address --------------------------------------------------------------------------- */

// #sweep/97?m=cp-lrp&k=1&e=3,17: a stop, the method, and the chosen element of operand k.
function address() {
  const stop = stopAt(state.position);
  const query = [];
  if (state.method) query.push(`m=${data.methods[state.method].name}`);
  if (state.mistake) query.push(`mistake=${state.mistake}`);
  const element = elementChosen(stop);
  if (element && state.operand) query.push(`k=${state.operand}`);
  if (element) query.push(`e=${element}`);
  return `#${state.direction}/${stop.index}${query.length ? `?${query.join("&")}` : ""}`;
}

// The value whose element is chosen: the output forward, an operand in the sweep.
function chosenValue(stop, direction = state.direction, operand = state.operand) {
  if (direction === "forward") return data.values[stop.output];
  return data.values[stop.operands[operand ?? 0]?.value ?? -1] ?? null;
}

// Its index, as "3,17"; null where nobody has chosen one.
function elementChosen(stop) {
  const value = chosenValue(stop);
  return state.element === null || !value ? null : unravel(state.element, value.shape).join(",");
}

function remember() {
  const [{dataset}, element] = [document.getElementById("stop"), elementChosen(stopAt(state.position))];
  if (element) dataset.element = element;
  else delete dataset.element;
  history.replaceState(null, "", address());
}

// Takes what it understands of an address; anything else in it is left aside.
function readAddress() {
  const parts = /^#(forward|sweep)\/(\d+)(?:\?(.*))?$/.exec(location.hash);
  if (!parts || Number(parts[2]) >= data.stops.length) return;
  const [, direction, index, rest] = parts;
  const query = new URLSearchParams(rest ?? "");
  const method = data.methods.findIndex(({name}) => name === query.get("m"));
  const mistake = Rules.MISTAKES.find(({id}) => id === query.get("mistake"));
  const stop = data.stops[Number(index)];
  const operand = Number(query.get("k") ?? 0) || 0;
  Object.assign(state, {position: positionOf(stop.index, direction), direction, operand,
    method: Math.max(method, 0), mistake: mistake?.id ?? null, eps: null,
    element: elementIn(query.get("e"), chosenValue(stop, direction, operand))});
}

function elementIn(text, value) {
  const index = (text ?? "").split(",").map(Number);
  if (!text || !value || index.length !== value.shape.length) return null;
  const inside = index.every((n, axis) => Number.isInteger(n) && n >= 0 && n < value.shape[axis]);
  return inside ? ravel(index, value.shape) : null;
}

/* ---- help ---------------------------------------------------------------------------------- */

function helpDialog() {
  return el("dialog", {id: "help", "aria-labelledby": "help-title"},
    el("h2", {id: "help-title"}, "How to walk"),
    el("p", {}, "The walk goes forward through every operation of the net, then back through all of "
      + "them in the sweep, which divides the explained number among what made it. At each stop: the "
      + "equation, the numbers as grids (red for, blue against), one element worked out, and in the "
      + "sweep the ledger: received = passed on + absorbed + rounding."),
    el("dl", {}, HELP.map(([keys, words]) => [el("dt", {}, el("kbd", {}, keys)), el("dd", {}, words)])),
    el("form", {method: "dialog"}, el("button", {id: "help-close"}, "Close")));
}

function openHelp() {
  document.getElementById("help").showModal();
}
