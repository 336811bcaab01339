// The bar of the logit: how much is still on its way, has arrived, or was absorbed, and by what.

const DESTINATIONS = ["tokens", "pixels"];

/* ---- the account ------------------------------------------------------------------------- */

// After the sweep's stops down to `last`: the amounts by cause in the sweep's order, what arrived,
// and what is on its way still. All are the engine's entries, added up.
function account(m, last) {
  const absorbed = new Map();
  let arrived = 0;
  let error = 0;
  for (let n = data.stops.length - 1; n >= last; n--) {
    const rule = data.stops[n].rules[m];
    if (!rule) continue;
    error += rule.conservation_error;
    for (const [cause, amount] of Object.entries(rule.absorbed)) {
      if (DESTINATIONS.includes(cause)) arrived += amount;
      else if (amount !== 0) absorbed.set(cause, (absorbed.get(cause) ?? 0) + amount);
    }
  }
  const gone = arrived + error + sum(absorbed.values());
  return {absorbed, arrived, way: data.explained - gone};
}

// Of the whole sweep, so that the bar's scale stays as one goes down it.
const extents = new Map();

function extent(m) {
  if (!extents.has(m)) extents.set(m, widest(m));
  return extents.get(m);
}

function widest(m) {
  let [low, high] = [0, 0];
  for (let last = data.stops.length; last >= 0; last--) {
    const {absorbed, arrived, way} = account(m, last);
    const amounts = [way, arrived, ...absorbed.values()];
    low = Math.min(low, sum(amounts.filter((x) => x < 0)));
    high = Math.max(high, sum(amounts.filter((x) => x > 0)));
  }
  return {low, high};
}

/* ---- the picture ------------------------------------------------------------------------- */

// What is absorbed at the stop at hand is told only once its question is answered.
function walkedTo(position, open) {
  const last = position < data.stops.length ? data.stops.length : stopAt(position).index;
  return open ? last + 1 : last;
}

function drawBar(position, m, open) {
  const forward = position < data.stops.length;
  const now = account(m, walkedTo(position, open));
  const parts = [["way", "on its way", now.way], ["arrived", arrivedName(), now.arrived]];
  for (const [cause, amount] of now.absorbed) parts.push([cause, causeName(cause), amount]);
  document.getElementById("bar").replaceChildren(track(parts, m), key(parts, forward));
}

function arrivedName() {
  return data.picture ? "arrived at pixels" : "arrived at tokens";
}

function causeName(cause) {
  return `absorbed: ${cause.replaceAll("_", " ")}`;
}

// Amounts below zero stand left of it: what is right less what is left is always the logit.
function track(parts, m) {
  const {low, high} = extent(m);
  const width = (x) => `${(100 * x) / (high - low || 1)}%`;
  const ends = {right: 0, left: 0};
  const segments = parts.filter(([, , amount]) => amount).map(([id, , amount]) => {
    const node = el("div", {class: `segment ${shade(id)}`, "data-segment": id});
    const start = amount > 0 ? ends.right : ends.left + amount;
    if (amount > 0) ends.right += amount;
    else ends.left += amount;
    node.style.left = width(start - low);
    node.style.width = width(Math.abs(amount));
    return node;
  });
  const tick = el("div", {class: "tick"});
  tick.style.left = width(data.explained - low);
  const zero = low < 0 ? el("div", {class: "zero"}) : null;
  if (zero) zero.style.left = width(-low);
  return el("div", {class: "track", "aria-hidden": "true"}, segments, zero, tick);
}

// Causes are told apart by their hatching as well as by their words.
const shades = new Map();

function shade(id) {
  if (id === "way" || id === "arrived") return id;
  if (!shades.has(id)) shades.set(id, `cause-${shades.size % 6}`);
  return shades.get(id);
}

function key(parts, forward) {
  const whole = el("li", {class: "whole"}, `${printable(data.what)} `, num(data.explained));
  if (forward) {
    return el("ul", {class: "key"}, whole, el("li", {}, "the sweep will say where it comes from"));
  }
  return el("ul", {class: "key"}, whole, el("li", {class: "equals"}, "="),
    parts.map(([id, name, amount]) => el("li", {"data-bar": id},
      el("i", {class: `swatch ${shade(id)}`, "aria-hidden": "true"}), `${name} `, num(amount))));
}

function num(x, more = {}) {
  return el("span", {class: "num", ...more}, digits(x));
}
