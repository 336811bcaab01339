// A stop as it is read on the way forward (how the number is made) and on the way back (who gets
// it back).

/* ---- what both directions show ------------------------------------------------------------ */

// Operands that are activations: they receive relevance; weights do not.
function valueOperands(stop) {
  return stop.operands.map((operand, k) => ({k, value: data.values[operand?.value ?? -1]}))
    .filter(({value}) => value);
}

function handsDownG(m) {
  return data.methods[m].formulation === "gradient_x_input";
}

function stopLink(stop, direction, words) {
  return el("a", {href: `#${direction}/${stop.index}`,
    onclick: (event) => { event.preventDefault(); go(stop.index, direction); }},
  words ?? `${blockName(stop)}${printable(stop.label)}`);
}

function stopHeader(stop, direction) {
  const forward = direction === "forward";
  return el("header", {class: "stop-header"},
    el("p", {class: "band"}, el("span", {class: "arrow", "aria-hidden": "true"}, forward ? "↓" : "↑"),
      el("strong", {}, forward ? "Forward" : "Sweep"),
      forward ? " how the number is made" : " who gets it back",
      el("span", {class: "count"}, `stop ${stop.index + 1} of ${data.stops.length}`)),
    el("h2", {id: "stop-title", tabindex: -1}, blockName(stop), printable(stop.label), " ",
      el("span", {class: "operation"}, stop.operation)),
    el("p", {class: "site"}, printable(stop.site), stop.role ? ` (${stop.role})` : ""));
}

// What is done here, and, where it is met for the first time, the idea of it.
function explained(stop, said, first, ideas = []) {
  const isFirst = first === stop.index;
  const elsewhere = said.idea && !isFirst && first !== null;
  return [
    el("p", {class: "does"}, prose(said.does), elsewhere ? [" ", el("span", {class: "soft"}, "(Why: see ",
      stopLink(data.stops[first], state.direction), ".)")] : null),
    said.idea && isFirst ? el("p", {class: "idea"}, prose(said.idea)) : null,
    ideas.map((idea) => el("p", {class: "idea"}, idea)),
  ];
}

// The equation, typeset; equations are this page's own and hold no text of the model.
function equation(name) {
  const said = data.equations[name];
  if (!said) return null;
  const parsed = new DOMParser().parseFromString(said.mathml ?? "", "text/html").body;
  const math = Array.from(parsed.childNodes, (node) => document.importNode(node, true));
  return el("div", {class: "equation", "data-equation": name},
    math.length ? el("div", {class: "scroll", tabindex: 0, role: "group", "aria-label": "equation"}, math)
      : null,
    said.says ? el("p", {class: "says"}, said.says) : null);
}

function source(number) {
  const {file, first, last, text} = data.sources[number];
  return el("details", {class: "source"},
    el("summary", {}, el("code", {}, `${file}, lines ${first} to ${last}`)),
    el("pre", {tabindex: 0}, el("code", {}, text)));
}

/* ---- grids of values ----------------------------------------------------------------------- */

function room() {
  return Math.max(160, document.getElementById("stop").clientWidth - 4);
}

function valueGrid(value, numbers, {lead, hook, chosen, onchoose, hidden, links, name}) {
  const caption = [lead, " ", el("span", {class: "site"}, printable(value.site)), " ",
    soft(`(${value.shape.join(" × ")})`), links ? [" ", links] : null];
  return grid({numbers, shape: value.shape, caption, hook, chosen, onchoose, hidden,
    name: `${name} ${printable(value.site)}`, rowLabels: rowTokens(value), place: placeIn(value),
    paneName: isPicture(value) ? "channel" : "head",
    room: room()});
}

function operandGrid(stop, k) {
  const operand = stop.operands[k];
  if (!operand) return null;
  const lead = symbol(letter(stop, k));
  const hook = `operand-${k}`;
  if (operand.weight !== undefined) return weightGrid(data.weights[operand.weight], lead, hook);
  const value = data.values[operand.value];
  const maker = value.made_by === null ? null : soft("made at ", stopLink(data.stops[value.made_by], "forward"));
  return valueGrid(value, c.value(value.id), {lead, hook, links: maker, name: letter(stop, k)});
}

function weightGrid(weight, lead, hook) {
  return grid({numbers: c.weight(weight.id), shape: weight.shape, hook, rowLabels: null,
    caption: [lead, " ", el("span", {class: "site"}, printable(weight.name)), " ",
      soft(`(${weight.shape.join(" × ")})`)],
    name: printable(weight.name), place: placeInWeight, room: room()});
}

function maskOf(stop) {
  if (stop.attributes.mask === null || stop.attributes.mask === undefined) return null;
  return Array.from(c.array(stop.attributes.mask), (flag) => !flag);
}

/* ---- forward ------------------------------------------------------------------------------ */

function forwardView(stop) {
  const open = questionOpen(stop);
  return [
    stopHeader(stop, "forward"),
    explained(stop, saidForward(stop), firstForward(stop)),
    el("div", {class: "formula"}, equation(stop.forward.equation), source(stop.forward.source)),
    attributesLine(stop), picture(stop),
    questionCard(stop), forwardGrids(stop, open),
  ];
}

// Numbers of the operation that are neither operands nor output.
function attributesLine(stop) {
  const names = {norm_eps: "norm_eps", offset: "weight offset", factor: "factor", kind: "kind"};
  const said = Object.entries(names).filter(([key]) => stop.attributes[key])
    .map(([key, words]) => {
      const value = stop.attributes[key];
      return `${words} ${typeof value === "number" ? digits(value) : printable(value)}`;
    });
  return said.length ? el("p", {class: "attributes"}, said.join(", ")) : null;
}

function picture(stop) {
  if (stop.operation !== "source" || !data.picture) return null;
  return el("p", {}, el("img", {class: "picture", src: data.picture.uri, alt: "the picture explained"}));
}

function forwardGrids(stop, open) {
  const operands = stop.operands.map((_, k) => operandGrid(stop, k));
  const into = el("div", {class: "grids"}, el("h3", {}, operands.some(Boolean) ? "What goes in" : ""),
    operands);
  if (open) return operands.some(Boolean) ? into : null;
  const value = data.values[stop.output];
  const panel = el("section", {class: "card worked", "aria-labelledby": "worked-title"});
  const chosen = state.element ?? largestVisible(c.value(value.id), stop);
  const work = (j) => {
    if (!Rules.works(stop, state.method)) return;
    panel.replaceChildren(...workedForward(stop, j).flat(9).filter(Boolean));
    const strips = madeOf(stop, unravel(j, value.shape));
    operands.forEach((figure, k) => figure?.mark(strips[k] ?? []));
  };
  const choose = (j) => { state.element = j; work(j); remember(); };
  const output = valueGrid(value, c.value(value.id), {lead: symbol(outputLetter(stop)), hook: "output",
    chosen, onchoose: choose, hidden: maskOf(stop), links: readers(value), name: "output"});
  work(chosen);
  return [operands.some(Boolean) ? into : null,
    el("div", {class: "grids"}, el("h3", {}, "What comes out"), output),
    panel.childNodes.length ? panel : null];
}

function largestVisible(numbers, stop) {
  const hidden = maskOf(stop);
  return largest(hidden ? numbers.map((x, n) => (hidden[n] ? 0 : x)) : numbers);
}

function readers(value) {
  if (!value.read_by.length) return null;
  const links = value.read_by.flatMap((n, m) => [m ? ", " : "", stopLink(data.stops[n], "forward")]);
  return el("span", {class: "soft"}, "read by ", links);
}

/* ---- sweep -------------------------------------------------------------------------------- */

function sweepView(stop) {
  const m = state.method;
  const rule = stop.rules[m];
  const open = questionOpen(stop);
  return [
    stopHeader(stop, "sweep"),
    explained(stop, saidSweep(stop, rule), firstSweep(stop, m), ideasAt(stop, m)),
    undoing(stop, rule),
    rule ? receivedPart(stop, m) : null,
    rule ? questionCard(stop) : null,
    rule && !open ? el("div", {id: "passed"}, passedPart(stop, m)) : null,
    open ? null : methodsTable(stop),
  ];
}

function ideasAt(stop, m) {
  const ideas = [];
  const last = stop.index === data.stops.length - 1;
  if (last) ideas.push(IDEAS.seed);
  if (last && handsDownG(m)) ideas.push(IDEAS.gradient_x_input);
  if (stop === firstFanIn(m)) ideas.push(IDEAS.fan_in);
  return ideas;
}

// The forward line being undone beside the rule that undoes it.
function undoing(stop, rule) {
  const line = el("div", {class: "undone"}, el("h3", {}, "The forward line undone"),
    equation(stop.forward.equation), source(stop.forward.source));
  if (!rule) return line;
  const options = Object.entries(rule.options)
    .map(([name, value]) => `${name} ${typeof value === "number" ? digits(value) : value}`);
  return el("div", {class: "undoing"}, line, el("div", {class: "rule"},
    el("h3", {}, "The rule: ", el("span", {"data-rule": rule.rule}, rule.rule)),
    equation(rule.equation), source(rule.source),
    options.length ? el("p", {class: "attributes"}, options.join(", ")) : null));
}

function receivedPart(stop, m) {
  const value = data.values[stop.output];
  const figure = valueGrid(value, received(stop, m), {lead: relevanceSymbol(m, outputLetter(stop)),
    hook: "received", hidden: maskOf(stop), name: "relevance received by"});
  return el("section", {class: "grids", "aria-labelledby": "received-title"},
    el("h3", {id: "received-title"}, "Received"), fanIn(stop, m), figure);
}

function relevanceSymbol(m, name) {
  return handsDownG(m) ? [symbol(`R_${name.replace("_", "")}`), " = ", symbol(name), " g"]
    : symbol(`R_${name.replace("_", "")}`);
}

// Relevance at an array of the engine's or of this page's: R, or x times g.
function relevanceAt(valueId, propagated, m) {
  const x = c.value(valueId);
  if (!propagated) return new Float64Array(x.length);
  return handsDownG(m) ? propagated.map((g, n) => x[n] * g) : propagated;
}

function received(stop, m) {
  return relevanceAt(stop.output, c.propagated(stop.output, m), m);
}

// What operand k gets from this stop; where the page does not form it, the engine's number of a
// value that no other stop reads.
function passedOn(stop, m, k, how) {
  const id = stop.operands[k].value;
  if (Rules.works(stop, m)) return relevanceAt(id, Rules.relevance(c, stop, m, how).inputs[k], m);
  return relevanceAt(id, c.propagated(id, m), m);
}

function howHere(stop) {
  const how = {};
  if (state.eps !== null) how.eps = state.eps;
  if (applies(stop)) how.mistake = state.mistake;
  return how;
}

function passedPart(stop, m) {
  const how = howHere(stop);
  const panel = el("section", {class: "card worked", "aria-labelledby": "worked-title"});
  const operands = valueOperands(stop);
  const figures = operands.map(({k, value}) => passedGrid(stop, m, k, value, how, panel));
  const chosen = chosenOperand(operands);
  if (chosen) chosen.work = () => showWorked(stop, m, chosen, how, panel);
  if (chosen) chosen.work();
  return [
    el("section", {class: "grids", "aria-labelledby": "passed-title"},
      el("h3", {id: "passed-title"}, operands.length ? "Passed on" : "Where the way ends"),
      figures, operands.length ? null : leaf(stop, m)),
    ledgerCard(stop, m, how),
    epsSlider(stop, m),
    panel.childNodes.length ? panel : null,
  ];
}

function passedGrid(stop, m, k, value, how, panel) {
  const numbers = passedOn(stop, m, k, how);
  const chosen = state.operand === k && state.element !== null ? state.element : largest(numbers);
  const choose = (i) => {
    Object.assign(state, {operand: k, element: i});
    showWorked(stop, m, {k, value}, how, panel);
    remember();
  };
  return valueGrid(value, numbers, {lead: ["to ", relevanceSymbol(m, letter(stop, k))],
    hook: `passed-${k}`, chosen, onchoose: choose, name: "relevance passed on to"});
}

function chosenOperand(operands) {
  return operands.find(({k}) => k === state.operand) ?? operands[0] ?? null;
}

function showWorked(stop, m, {k, value}, how, panel) {
  if (!Rules.works(stop, m)) return;
  const numbers = passedOn(stop, m, k, how);
  const i = state.operand === k && state.element !== null ? state.element : largest(numbers);
  panel.replaceChildren(...workedSweep(stop, m, k, i, how).flat(9).filter(Boolean));
  const figure = document.querySelector('[data-grid="received"]');
  figure?.mark(getsFrom(stop, m, k, unravel(i, value.shape)));
}

/* ---- the end of the way -------------------------------------------------------------------- */

function leaf(stop, m) {
  const role = stop.attributes.role ?? "tokens";
  if (!DESTINATIONS.includes(role)) return null;
  return role === "tokens" ? tokensEnd(stop, m) : pixelsEnd(m);
}

// The explanation itself: each token with the sum of its row.
function tokensEnd(stop, m) {
  const value = data.values[stop.output];
  const tokens = rowTokens(value) ?? [];
  const amounts = rowsOf(received(stop, m), value).map(sum);
  const strongest = strongestOf(amounts) || 1;
  const signed = amounts.some((x) => x < 0);
  return el("div", {class: "explanation"},
    el("p", {}, "Summed over its features, every row is one number: the explanation of the ",
      printable(data.what), "."),
    el("ol", {class: "tokens"}, tokens.map((token, n) => tokenBar(token, amounts[n],
      strongest, signed))),
    el("p", {class: "account"}, endSaid(m)));
}

// Bars start in the middle only where some go to the left.
function tokenBar(token, amount, strongest, signed) {
  const bar = el("span", {class: amount < 0 ? "amount against" : "amount for", "aria-hidden": "true"});
  bar.style.width = `${((signed ? 50 : 100) * Math.abs(amount)) / strongest}%`;
  return el("li", {}, el("span", {class: "name"}, tokenText(token)),
    el("span", {class: signed ? "lane signed" : "lane"}, bar), num(amount));
}

function endSaid(m) {
  const {absorbed, arrived} = account(m, 0);
  const parts = [...absorbed].map(([cause, x]) => (
    ` ${x < 0 ? "-" : "+"} ${digits(Math.abs(x))} (${causeSaid(cause)})`));
  return `${printable(data.what)} ${digits(data.explained)} = ${digits(arrived)} (${arrivedName()})${parts.join("")}`;
}

function pixelsEnd(m) {
  const {size} = data.picture ?? {};
  const relevance = data.methods[m].relevance;
  if (!size || typeof relevance !== "number") return null;
  const place = (index) => `[${index.join(", ")}]`;
  return el("div", {class: "explanation"},
    el("p", {}, "Summed over its channels, every pixel has one number: the explanation of the ",
      printable(data.what), "."),
    el("img", {class: "picture", src: data.picture.uri, alt: "the picture explained"}),
    grid({numbers: c.array(relevance), shape: size, caption: "relevance of the pixels", hook: "pixels",
      name: "relevance of the pixels", rowLabels: null, place, room: room()}),
    el("p", {class: "account"}, endSaid(m)));
}

/* ---- eps ---------------------------------------------------------------------------------- */

// Another eps for this stop alone; the rest of the sweep stays as it is.
function epsSlider(stop, m) {
  const eps = stop.rules[m].options.eps;
  if (eps === undefined || !Rules.works(stop, m)) return null;
  const at = state.eps ?? eps;
  const shown = el("output", {class: "num", id: "eps-now"}, digits(at));
  const slider = el("input", {type: "range", id: "eps", min: -9, max: 0, step: 0.1, list: "eps-default",
    value: Math.log10(at), "aria-describedby": "eps-note", "aria-valuetext": digits(at)});
  slider.addEventListener("input", () => setEps(stop, m, 10 ** Number(slider.value)));
  return el("section", {class: "card eps"},
    el("label", {for: "eps"}, "eps of this stop: ", shown), slider,
    el("datalist", {id: "eps-default"}, el("option", {value: Math.log10(eps)})),
    el("p", {class: "note", id: "eps-note"}, `Recomputes this stop only; the sweep was made with ${digits(eps)}. `,
      el("button", {type: "button", class: "quiet", id: "eps-reset", disabled: state.eps === null,
        onclick: () => setEps(stop, m, null)}, "back to it")));
}

// The slider stays where it is, so that it can be dragged on: all beside it is made anew.
function setEps(stop, m, eps) {
  state.eps = eps;
  const made = el("div", {}, passedPart(stop, m));
  const old = document.getElementById("passed");
  const kept = old.querySelector(".eps");
  const again = made.querySelector(".eps");
  if (eps !== null && kept) refreshSlider(kept, again);
  old.replaceChildren(...Array.from(made.childNodes, (node) => (node === again && eps !== null ? kept : node)));
  if (eps !== null) kept.querySelector("input").focus({preventScroll: true});
  else document.getElementById("eps").focus({preventScroll: true});
}

function refreshSlider(kept, again) {
  const slider = kept.querySelector("input");
  const now = again.querySelector("#eps-now").textContent;
  kept.querySelector("#eps-now").textContent = now;
  kept.querySelector("#eps-reset").disabled = false;
  slider.setAttribute("aria-valuetext", now);
}

/* ---- where things are met first ------------------------------------------------------------- */

const firsts = new Map();

function firstForward(stop) {
  const {idea} = saidForward(stop);
  return firstOf(`forward/${stop.operation}/${idea}`, data.stops,
    (each) => each.operation === stop.operation && saidForward(each).idea === idea);
}

function firstSweep(stop, m) {
  const rule = stop.rules[m];
  if (!rule) return null;
  return firstOf(`sweep/${m}/${rule.equation}/${stop.attributes.role ?? ""}`, data.stops.slice().reverse(),
    (each) => each.rules[m]?.equation === rule.equation
      && each.attributes.role === stop.attributes.role);
}

function firstOf(key, stops, meets) {
  if (!firsts.has(key)) firsts.set(key, stops.find(meets).index);
  return firsts.get(key);
}

function firstFanIn(m) {
  return data.stops.slice().reverse()
    .find((stop) => stop.rules[m] && data.values[stop.output].read_by.length > 1);
}
