// The ledger of a stop: received = passed on + absorbed by cause + rounding.

// The engine's entry beside what this page forms by itself, under the eps and the mistake at hand.
function ledgerCard(stop, m, how) {
  const rule = stop.rules[m];
  const audit = Rules.works(stop, m) ? Rules.audit(c, stop, m, how) : null;
  return el("section", {class: "card ledger", "aria-labelledby": "ledger-title"},
    el("h3", {id: "ledger-title"}, "The ledger of this stop"),
    el("div", {class: "scroll", tabindex: 0, role: "group", "aria-label": "ledger"},
      el("table", {},
        el("thead", {}, el("tr", {}, el("td"), head("engine"), audit ? head("this page") : null)),
        el("tbody", {}, ledgerRows(stop, rule, audit)))),
    verdict(stop, rule, audit), audit ? null : el("p", {class: "note"},
      "This operation is not worked out in the page: the numbers are the engine's."));
}

function head(text) {
  return el("th", {scope: "col", class: "num"}, text);
}

function ledgerRows(stop, rule, audit) {
  return [
    ledgerRow("received", [el("strong", {}, "received")], rule.received, audit?.received),
    ...passedRows(stop, rule, audit),
    ...absorbedRows(stop, rule, audit),
    ledgerRow("error", ["rounding ", soft("(conservation error)")], rule.conservation_error,
      audit?.error),
  ];
}

function ledgerRow(part, words, engine, page, more = {}) {
  const cell = (x, of) => el("td", {class: "num", "data-part": part, "data-of": of, ...more},
    x === null || x === undefined ? "" : digits(x));
  return el("tr", {class: part}, el("th", {scope: "row"}, words), cell(engine, "engine"),
    page === undefined ? null : cell(page, "page"));
}

function passedRows(stop, rule, audit) {
  return valueOperands(stop).map(({k, value}, n) => {
    const words = [n ? "+ " : "= ", "passed on to ", symbol(letter(stop, k)), " ",
      soft(printable(value.site))];
    return ledgerRow("passed", words, passedTo(stop, rule, k), audit ? audit.passed[k] : undefined,
      {"data-operand": k});
  });
}

// The engine enters what a site was passed; both operands may be the same site.
function passedTo(stop, rule, k) {
  const {site} = data.values[stop.operands[k].value];
  const twice = valueOperands(stop).filter(({value}) => value.site === site).length;
  return (rule.passed[site] ?? 0) / twice;
}

function absorbedRows(stop, rule, audit) {
  const first = valueOperands(stop).length ? "+" : "=";
  const causes = new Set([...Object.keys(rule.absorbed), ...Object.keys(audit?.absorbed ?? {})]);
  return [...causes].map((cause, n) => {
    const sign = n ? "+" : first;
    const arrived = DESTINATIONS.includes(cause);
    const words = arrived ? [`${sign} arrived at ${cause}`]
      : [`${sign} absorbed: ${cause.replaceAll("_", " ")} `, soft(causeSaid(cause))];
    const page = audit ? audit.absorbed[cause] ?? 0 : undefined;
    return ledgerRow("absorbed", words, rule.absorbed[cause] ?? 0, page, {"data-cause": cause});
  });
}

function soft(...words) {
  return el("span", {class: "soft"}, words);
}

/* ---- the verdict ------------------------------------------------------------------------- */

function verdict(stop, rule, audit) {
  const closed = Math.abs(rule.conservation_error) <= rule.rounding_bound;
  const judged = audit ?? {closed, agrees: true, ok: closed, error: rule.conservation_error,
    bound: rule.rounding_bound};
  const [status, sign, words] = judgment(stop, judged);
  return el("p", {class: `closing ${status}`, "data-verdict": status},
    el("span", {class: "sign", "aria-hidden": "true"}, sign), words);
}

function judgment(stop, {closed, agrees, error, bound, worst}) {
  if (!closed) {
    const what = error > 0 ? "lost" : "created";
    return ["open", "✗", `It does not close: ${digits(Math.abs(error))} ${what}. `
      + `Rounding allows ${digits(bound)}.`];
  }
  if (!agrees) return ["moved", "≠", `The sum closes, the elements do not: ${worstSaid(stop, worst)}`];
  return ["closes", "✓", `It closes: ${digits(Math.abs(error))} is left, rounding allows `
    + `${digits(bound)}.`];
}

function worstSaid(stop, worst) {
  if (!worst) return "some differ from those of the right rule.";
  const value = data.values[stop.operands[worst.operand].value];
  return `${placeIn(value)(unravel(worst.index, value.shape))} of ${letter(stop, worst.operand)} is `
    + `off by ${digits(worst.difference)}.`;
}

/* ---- a planted mistake ------------------------------------------------------------------- */

const audits = new Map();

// The audit of a stop under the planted mistake; null where it does not apply.
function plantedAudit(stop) {
  if (!state.mistake || !applies(stop)) return null;
  const key = `${state.mistake}/${state.method}/${stop.index}`;
  if (!audits.has(key)) {
    audits.set(key, Rules.audit(c, stop, state.method, {mistake: state.mistake}));
  }
  return audits.get(key);
}

function mistakeAtHand() {
  return Rules.MISTAKES.find(({id}) => id === state.mistake) ?? null;
}

function applies(stop) {
  const mistake = mistakeAtHand();
  return Boolean(mistake && stop.rules[state.method] && Rules.works(stop, state.method)
    && mistake.applies(stop, state.method, data));
}

function drawMistake() {
  const mistake = mistakeAtHand();
  const box = document.getElementById("planted");
  box.hidden = !mistake;
  if (mistake) box.replaceChildren(...plantedSaid(mistake));
}

function plantedSaid(mistake) {
  const met = data.stops.map((stop) => [stop, plantedAudit(stop)]).filter(([, audit]) => audit);
  const wrong = met.filter(([, audit]) => !audit.ok);
  if (!met.length) {
    return [el("strong", {}, `${mistake.title}: `), "no stop of this net under "
      + `${data.methods[state.method].title} has it to make. Try another method.`];
  }
  const first = wrong.length ? wrong.at(-1)[0] : null;
  return [el("strong", {}, `Planted: ${mistake.title}. `), `${capitalized(mistake.says)}. `,
    `${plural(met.length, "stop")} touched, ${wrong.length} found out. Each is judged alone: above `
    + "it the sweep is right. ", first ? stopLink(first, "sweep", "Go to the first") : null];
}

function capitalized(text) {
  return text[0].toUpperCase() + text.slice(1);
}

/* ---- several readers --------------------------------------------------------------------- */

function fanIn(stop, m) {
  const value = data.values[stop.output];
  if (value.read_by.length < 2 || !stop.rules[m]) return null;
  const parts = Rules.fan_in(c, stop.output, m);
  if (!parts.length) return null; // a reader whose arithmetic the page does not have
  const rows = parts.map((part, n) => el("tr", {},
    el("th", {scope: "row"}, n ? "+ " : "", stopLink(data.stops[part.stop], "sweep"),
      soft(` as ${letter(data.stops[part.stop], part.operand)}`)),
    el("td", {class: "num"}, digits(Rules.sum(c, stop.output, part.amounts, m)))));
  return el("div", {class: "fan-in", "data-fan-in": parts.length},
    el("p", {}, `Read by ${plural(value.read_by.length, "stop")}. Each handed back its part, and the `
      + "parts add up:"),
    el("table", {}, el("tbody", {}, rows, el("tr", {class: "sum"},
      el("th", {scope: "row"}, "= received"),
      el("td", {class: "num"}, digits(stop.rules[m].received))))));
}

/* ---- the other methods ------------------------------------------------------------------- */

function methodsTable(stop) {
  const rows = data.methods.map((method, m) => {
    const rule = stop.rules[m];
    const passed = rule ? sum(Object.values(rule.passed)) : 0;
    const absorbed = rule ? sum(Object.values(rule.absorbed)) : 0;
    return el("tr", {class: m === state.method ? "at-hand" : ""},
      el("th", {scope: "row"}, method.title), el("td", {}, rule ? rule.rule : "nothing arrives"),
      [rule ? rule.received : 0, passed, absorbed].map((x) => el("td", {class: "num"}, digits(x))));
  });
  const titles = ["received", "passed on", "absorbed"].map(head);
  const parted = partings().has(stop.index);
  return el("section", {class: "card methods", "aria-labelledby": "methods-title"},
    el("h3", {id: "methods-title"}, "The same stop under each method"),
    parted ? el("p", {class: "parted"}, el("span", {"aria-hidden": "true"}, "≠ "),
      "Here the methods part: by their rules, or by what they pass on.") : null,
    el("div", {class: "scroll", tabindex: 0, role: "group", "aria-label": "methods"},
      el("table", {}, el("thead", {}, el("tr", {}, el("td"), el("th", {scope: "col"}, "rule"), titles)),
        el("tbody", {}, rows))));
}
