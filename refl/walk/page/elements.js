// Elements, numbers and tokens as text: what every other part of the page is made with.

/* ---- elements ---------------------------------------------------------------------------- */

// el("p", {class: "note", onclick: f}, "text", child, [more]): strings become text nodes, so that
// nothing in a token or in a checkpoint can become markup.
function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) attribute(node, name, value);
  node.append(...children.flat(3).filter((child) => child !== null && child !== undefined));
  return node;
}

function attribute(node, name, value) {
  if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
  else if (value === true) node.setAttribute(name, "");
  else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value);
}

// A symbol such as R_i or z_j with what follows the underscore set low.
function symbol(text) {
  const set = String(text).replaceAll("delta_", "δ_").replaceAll("sum_", "Σ_").replaceAll("^2", "²");
  const parts = set.split(/_([A-Za-z0-9,\[\]]+)/);
  return el("span", {class: "symbol"}, parts.map((part, n) => (n % 2 ? el("sub", {}, part) : part)));
}

// A sentence in which x_i, of one letter each, is a symbol.
function prose(text) {
  return text.split(/\b([A-Za-z]_[a-z])\b/).map((part, n) => (n % 2 ? symbol(part) : part));
}

function plural(count, one, many = `${one}s`) {
  return `${count} ${count === 1 ? one : many}`;
}

/* ---- numbers ----------------------------------------------------------------------------- */

// A number as Python's format(x, ".5g") has it: five digits, ties to even.
function digits(x) {
  if (x === null || Number.isNaN(x)) return "nan"; // JSON has null for it
  if (!Number.isFinite(x)) return x > 0 ? "inf" : "-inf";
  if (x === 0) return Object.is(x, -0) ? "-0" : "0";
  const [mantissa, exponent] = rounded(Math.abs(x)).split("e");
  const sign = x < 0 ? "-" : "";
  return sign + (exponent < -4 || exponent >= 5
    ? scientific(mantissa, Number(exponent))
    : decimal(mantissa.replace(".", ""), Number(exponent)));
}

// toExponential rounds ties up; enough of the exact digits tell a tie from what only looks so.
function rounded(x) {
  const [mantissa, exponent] = x.toExponential(60).split("e");
  const exact = mantissa.replace(".", "");
  const tie = /^50*$/.test(exact.slice(5)) && Number(exact[4]) % 2 === 0;
  return tie ? `${mantissa.slice(0, 6)}e${exponent}` : x.toExponential(4);
}

function scientific(mantissa, exponent) {
  const power = String(Math.abs(exponent)).padStart(2, "0");
  return `${trimmed(mantissa)}e${exponent < 0 ? "-" : "+"}${power}`;
}

function decimal(figures, exponent) {
  const padded = exponent < 0 ? "0".repeat(-exponent) + figures : figures;
  const point = exponent < 0 ? 1 : exponent + 1;
  return trimmed(`${padded.slice(0, point)}.${padded.slice(point)}`);
}

function trimmed(text) {
  return text.includes(".") ? text.replace(/\.?0*$/, "") : text;
}

function sum(numbers) {
  let total = 0;
  for (const x of numbers) total += x;
  return total;
}

// The flat index of the largest amount.
function largest(numbers) {
  let best = 0;
  for (let n = 1; n < numbers.length; n++) {
    if (Math.abs(numbers[n]) > Math.abs(numbers[best])) best = n;
  }
  return best;
}

// Flat index <-> index along each axis.
const {unravel} = Rules;

function ravel(index, shape) {
  return index.reduce((flat, n, axis) => flat * shape[axis] + n, 0);
}

/* ---- tokens ------------------------------------------------------------------------------ */

const LONGEST = 40;

// Control, format and unassigned characters as their escapes: a token must not steer the page.
function printable(text) {
  return String(text).replace(/[\p{C}\p{Z}]/gu, (c) => (c === " " ? c : escaped(c)));
}

function escaped(c) {
  const code = c.codePointAt(0).toString(16);
  return code.length <= 2 ? `\\x${code.padStart(2, "0")}` : `\\u${code.padStart(4, "0")}`;
}

// A token: blanks at its ends made visible, and no longer than a label may be.
function visible(token) {
  const shown = printable(token).replace(/^ +| +$/g, (blanks) => "␣".repeat(blanks.length));
  const letters = Array.from(shown);
  return letters.length <= LONGEST ? shown : `${letters.slice(0, LONGEST - 1).join("")}…`;
}

// Isolated, so that a token that runs from right to left turns nothing else around.
function tokenText(token) {
  return el("bdi", {class: "token"}, visible(token));
}
