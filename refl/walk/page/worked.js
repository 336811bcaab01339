// One element worked out, with its digits.

const SHOWN_TERMS = 8;

/* ---- the panel --------------------------------------------------------------------------- */

// work: what rules.js worked out; where: words; engine: rows that lead to the engine's number
function workedPanel(work, where, formula, after) {
  return [
    el("h3", {id: "worked-title"}, "One element worked out"),
    el("p", {class: "where"}, symbol(work.symbol), " at ", where),
    formula,
    el("div", {class: "scroll", tabindex: 0, role: "group", "aria-label": "the terms"},
      el("table", {class: "terms"}, termsTable(work))),
    work.note ? el("p", {class: "note"}, work.note) : null,
    after,
  ];
}

function termsTable(work) {
  const order = work.terms.map((_, n) => n).filter((n) => work.terms[n].value !== 0)
    .sort((a, b) => Math.abs(work.terms[b].value) - Math.abs(work.terms[a].value));
  const shown = order.slice(0, SHOWN_TERMS).sort((a, b) => a - b).map((n) => work.terms[n]);
  const rest = order.slice(SHOWN_TERMS).map((n) => work.terms[n].value);
  const zeros = work.terms.length - order.length;
  const columns = sharedColumns(work.terms);
  const span = columns ? columns.length : 1;
  return [termsHead(columns), el("tbody", {},
    shown.map((term) => termRow(term, columns)),
    rest.length ? lastRow(span, `and ${rest.length} more, smaller ones`, sum(rest)) : null,
    zeros ? lastRow(span, `and ${zeros} that are zero`, 0) : null,
    totalRows(work, span))];
}

// The pieces' symbols, where all terms are made alike; else null, and each row names its own.
function sharedColumns(terms) {
  if (!terms.length) return null;
  const names = (term) => term.pieces.map(({symbol: s, divides}) => `${divides ? "÷" : ""}${s}`).join();
  return terms.every((term) => names(term) === names(terms[0])) ? terms[0].pieces : null;
}

function termsHead(columns) {
  const pieces = columns
    ? columns.map((piece, n) => el("th", {scope: "col", class: "num"}, joint(piece, n),
      symbol(piece.symbol)))
    : [el("th", {scope: "col", class: "num"}, "product")];
  return el("thead", {}, el("tr", {}, el("th", {scope: "col"}, "at"), pieces,
    el("th", {scope: "col", class: "num"}, "= term")));
}

function joint(piece, n) {
  if (piece.divides) return n ? "÷ " : "1 ÷ ";
  return n ? "× " : "";
}

function termRow(term, columns) {
  const pieces = columns
    ? term.pieces.map((piece) => el("td", {class: "num"}, digits(piece.value)))
    : [el("td", {class: "num"}, term.pieces.map((piece, n) => [n ? " " : "", joint(piece, n),
      symbol(piece.symbol), ` ${digits(piece.value)}`]))];
  const at = term.at ? el("th", {scope: "row"}, term.at) : el("td", {});
  return el("tr", {}, at, pieces,
    el("td", {class: "num"}, digits(term.value)));
}

function lastRow(span, words, value, more = {}, kind = "") {
  return el("tr", {class: kind}, el("th", {scope: "row", colspan: span + 1}, words),
    el("td", {class: "num", ...more}, digits(value)));
}

function totalRows(work, span) {
  const total = {"data-worked": "total"};
  if (!work.factor) return [lastRow(span, symbol(work.symbol), work.total, total, "sum")];
  const whole = sum(work.terms.map(({value}) => value));
  const {symbol: name, value} = work.factor;
  return [
    work.terms.length > 1 ? lastRow(span, "sum", whole, {}, "sum") : null,
    lastRow(span, ["× ", symbol(name)], value),
    lastRow(span, symbol(work.symbol), work.total, total, "sum"),
  ];
}

/* ---- the engine's number beside it -------------------------------------------------------- */

function engineLine(total, engine) {
  const away = Math.abs(total - engine);
  const stored = away <= 1e-8 * Math.max(Math.abs(total), Math.abs(engine));
  return el("p", {class: "engine"}, "The engine has ", num(engine, {"data-worked": "engine"}),
    away ? `: apart by ${digits(away)}` : ": the same",
    away && stored ? ", since the page keeps nine digits of it." : ".");
}

function workedForward(stop, j) {
  const value = data.values[stop.output];
  const work = Rules.worked_forward(c, stop, j);
  return workedPanel(work, placeIn(value)(unravel(j, value.shape)), null,
    engineLine(work.total, c.value(stop.output)[j]));
}

function workedSweep(stop, m, k, i, how) {
  const value = data.values[stop.operands[k].value];
  const work = Rules.worked_relevance(c, stop, m, k, i, how);
  const changed = how.eps !== undefined || how.mistake;
  return workedPanel(work, placeIn(value)(unravel(i, value.shape)), null, [
    inRelevance(work, value, m, i), changed ? changedNote() : null,
    readersLines(stop, value, m, k, i, work.total, changed)]);
}

function changedNote() {
  return el("p", {class: "note"}, "Worked out under the eps or the mistake chosen above; the engine's "
    + "number is of the rule as it is.");
}

// A g is not yet a relevance: R = x g.
function inRelevance(work, value, m, i) {
  if (!handsDownG(m) || !/^g/.test(work.symbol)) return null;
  const x = c.value(value.id)[i];
  return el("p", {}, symbol("R_i"), " = ", symbol("x_i"), " ", symbol(work.symbol), " = ", num(x), " × ",
    num(work.total), " = ", num(x * work.total));
}

// What other readers of the same value hand it; together they are the engine's number.
function readersLines(stop, value, m, k, i, total, changed) {
  const engine = c.propagated(value.id, m)?.[i] ?? 0;
  const others = value.read_by.length < 2 ? []
    : Rules.fan_in(c, value.id, m).filter((part) => part.stop !== stop.index || part.operand !== k);
  if (value.read_by.length > 1 && !others.length) return null; // the parts of the others are not known
  if (!others.length) return engineLine(total, engine);
  const rows = others.map((part) => el("tr", {},
    el("th", {scope: "row"}, "+ from ", stopLink(data.stops[part.stop], "sweep")),
    el("td", {class: "num"}, digits(part.amounts[i]))));
  const whole = total + sum(others.map((part) => part.amounts[i]));
  return el("div", {class: "readers"},
    el("p", {}, `${printable(value.site)} is read by ${value.read_by.length} stops, and this one hands it `
      + "its part:"),
    el("table", {}, el("tbody", {}, el("tr", {}, el("th", {scope: "row"}, "from here"),
      el("td", {class: "num"}, digits(total))), rows, el("tr", {class: "sum"},
      el("th", {scope: "row"}, "together"), el("td", {class: "num"}, digits(whole))))),
    changed ? null : engineLine(whole, engine));
}

/* ---- what an element is made of ---------------------------------------------------------- */

const BY_ROWS = ["softmax", "rms_norm", "layer_norm"];

// Strips of each operand that go into an output element.
function madeOf(stop, index) {
  const [row, column] = [index.at(-2) ?? 0, index.at(-1)];
  const pane = paneOf(index, data.values[stop.output].shape);
  if (stop.operation === "linear") return [[{pane, row}], [{row: column}], []];
  if (stop.operation === "matmul") return [[{pane, row}], [{pane, column}]];
  if (BY_ROWS.includes(stop.operation)) return stop.operands.map((_, k) => (k ? [{row: 0, column}] : [{pane, row}]));
  if (stop.operation === "embedding") return [[{row: stop.attributes.ids?.[row]}]];
  if (["add", "multiply", "activation", "scale"].includes(stop.operation)) {
    return stop.operands.map(() => [{pane, row, column}]);
  }
  return [];
}

// Strips of the received relevance from which an element of operand k gets its part.
function getsFrom(stop, m, k, index) {
  const [row, column] = [index.at(-2) ?? 0, index.at(-1)];
  const pane = paneOf(index, data.values[stop.operands[k].value].shape);
  if (stop.operation === "linear") return [{pane, row}];
  if (stop.operation === "matmul") return [k ? {pane, column} : {pane, row}];
  const alone = stop.rules[m].function.startsWith("identity");
  if (BY_ROWS.includes(stop.operation) && !alone) return [{pane, row}];
  const moved = ["movement", "rotary", "gather", "pooling", "embedding"].includes(stop.operation);
  return moved ? [] : [{pane, row, column}];
}

function paneOf(index, shape) {
  return ravel(index.slice(0, -2), shape.slice(0, -2));
}
