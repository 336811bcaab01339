// Signed grids: every number of an array as a square of its color, red for and blue against.

// The palettes of refl/show/colors.py: from nothing to the strongest.
const RAMPS = {
  light: {
    positive: [[255, 255, 255], [253, 219, 199], [239, 138, 98], [178, 24, 43]],
    negative: [[255, 255, 255], [209, 229, 240], [103, 169, 207], [33, 102, 172]],
    hidden: [226, 228, 232],
  },
  dark: {
    positive: [[24, 26, 31], [84, 34, 34], [176, 62, 56], [255, 150, 130]],
    negative: [[24, 26, 31], [24, 52, 86], [48, 108, 176], [140, 195, 255]],
    hidden: [58, 62, 71],
  },
};
const darkness = window.matchMedia("(prefers-color-scheme: dark)");

function ramps() {
  return darkness.matches ? RAMPS.dark : RAMPS.light;
}

// A color for -1 ... 1.
function colorOf(part) {
  const ramp = part < 0 ? ramps().negative : ramps().positive;
  const at = Math.min(Math.abs(part), 1) * (ramp.length - 1);
  const low = Math.min(Math.floor(at), ramp.length - 2);
  return ramp[low].map((x, n) => Math.round(x + (ramp[low + 1][n] - x) * (at - low)));
}

/* ---- how an array is laid out ------------------------------------------------------------ */

// The last two axes are rows and columns; each index before them is a pane of its own.
function layout(shape) {
  const columns = shape.length ? shape[shape.length - 1] : 1;
  const rows = shape.length > 1 ? shape[shape.length - 2] : 1;
  const panes = shape.slice(0, -2).reduce((product, n) => product * n, 1);
  return {panes, rows, columns};
}

const LABELED_ROW = 17;
const LABELS_UP_TO = 40;
const LABEL_WIDTH = 88;

// Pixels of a cell: labeled rows are high enough to read, everything else is as small as it must.
function cellSize({panes, rows, columns}, labeled, room) {
  const wanted = panes > 1 ? Math.min(room, 190) : room - (labeled ? LABEL_WIDTH : 0);
  const width = Math.max(3, Math.min(labeled || panes > 1 ? 16 : 6, Math.floor(wanted / columns)));
  if (labeled) return {width, height: LABELED_ROW};
  const height = Math.max(2, Math.min(rows === 1 ? 16 : width, Math.floor(300 / rows)));
  return {width, height};
}

/* ---- a grid ------------------------------------------------------------------------------ */

// A figure with:
//   numbers, shape     what is shown
//   name, caption      of it, as text and as nodes
//   rowLabels          tokens, one for each row, or null
//   place(index)       words for where an index is
//   hidden             flags of entries that a mask hides, or null
//   paneName           what the panes are: head, channel
//   chosen             flat index of the chosen entry, or null
//   onchoose(flat)     what choosing another does; without it a grid is only read
//   hook               what tests find it by
// Its `mark(strips)` outlines whole rows and columns, its `choose(flat)` moves the chosen entry.
function grid(options) {
  const plan = layout(options.shape);
  const labeled = Boolean(options.rowLabels) && plan.rows <= LABELS_UP_TO;
  const size = cellSize(plan, labeled, options.room);
  const view = {...options, plan, labeled, size, cursor: options.chosen ?? largest(options.numbers)};
  view.strongest = strongestShown(view);
  view.panes = Array.from({length: plan.panes}, (_, n) => pane(view, n));
  view.readout = el("output", {class: "readout"});
  view.box = el("div", gridAttributes(view), view.panes.map((each) => each.node));
  view.figure = el("figure", {class: "grid", "data-grid": options.hook},
    el("figcaption", {}, options.caption), view.box, legend(view), view.readout);
  listen(view);
  place(view);
  return Object.assign(view.figure, {
    mark: (strips) => mark(view, strips),
    choose: (flat) => { view.cursor = flat; place(view); },
  });
}

function gridAttributes(view) {
  const keys = view.onchoose ? "Arrow keys choose an element, " : "Arrow keys read the elements, ";
  return {
    class: "panes", tabindex: 0, role: "application", "aria-roledescription": "grid of numbers",
    "aria-label": `${summary(view)}. ${keys}Escape leaves.`,
  };
}

// What a grid shows, in words.
function summary({name, shape, numbers, place: words}) {
  const top = largest(numbers);
  return `${name}: ${shape.join(" by ") || "one number"}, sum ${digits(sum(numbers))}, `
    + `largest ${digits(numbers[top])} at ${words(unravel(top, shape))}`;
}

function strongestShown({numbers, hidden}) {
  let most = 0;
  for (let n = 0; n < numbers.length; n++) {
    if (!(hidden && hidden[n]) && Math.abs(numbers[n]) > most) most = Math.abs(numbers[n]);
  }
  return most;
}

function pane(view, number) {
  const {rows, columns, panes} = view.plan;
  const canvas = el("canvas", {width: columns, height: rows, "aria-hidden": "true"});
  canvas.style.width = `${columns * view.size.width}px`;
  canvas.style.height = `${rows * view.size.height}px`;
  paint(canvas, view, number * rows * columns);
  const marks = el("div", {class: "marks"});
  const cells = el("div", {class: "cells"}, canvas, marks);
  const title = panes > 1 ? el("div", {class: "pane-title"}, `${view.paneName ?? "head"} ${number}`) : null;
  const labels = view.labeled ? rowLabels(view, panes > 1) : null;
  const node = el("div", {class: "pane"}, title, el("div", {class: "pane-body"}, labels, cells));
  return {node, canvas, marks, cells};
}

function rowLabels(view, narrow) {
  const labels = view.rowLabels.map((token) => el("span", {}, tokenText(token)));
  return el("div", {class: narrow ? "labels narrow" : "labels", "aria-hidden": "true"}, labels);
}

// One pixel for each number; the browser enlarges it without smoothing.
function paint(canvas, view, start) {
  const {width, height} = canvas;
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  for (let n = 0; n < width * height; n++) {
    const hidden = view.hidden && view.hidden[start + n];
    const part = view.strongest ? view.numbers[start + n] / view.strongest : 0;
    image.data.set([...(hidden ? ramps().hidden : colorOf(part || 0)), 255], 4 * n);
  }
  context.putImageData(image, 0, 0);
}

// The scale, with its ends in numbers.
function legend(view) {
  const steps = Array.from({length: 13}, (_, n) => {
    const step = el("i");
    step.style.background = `rgb(${colorOf((n - 6) / 6).join(" ")})`;
    return step;
  });
  const hidden = view.hidden && view.hidden.some(Boolean);
  return el("p", {class: "scale"}, el("span", {class: "num"}, digits(-view.strongest)),
    el("span", {class: "ramp", "aria-hidden": "true"}, steps),
    el("span", {class: "num"}, digits(view.strongest)),
    hidden ? el("span", {class: "hidden-key"}, el("i", {class: "hidden-swatch"}), "masked") : null,
    el("span", {class: "total"}, "sum ", el("span", {class: "num"}, digits(sum(view.numbers)))));
}

/* ---- the chosen entry -------------------------------------------------------------------- */

function place(view) {
  const {rows, columns} = view.plan;
  const number = Math.floor(view.cursor / (rows * columns));
  const within = view.cursor % (rows * columns);
  view.cursorNode ??= el("div", {class: view.onchoose ? "cursor chosen" : "cursor"});
  outline(view, view.cursorNode, Math.floor(within / columns), within % columns);
  view.panes[number].cells.append(view.cursorNode);
  read(view, view.cursor);
}

function outline({size}, node, row, column, high = 1, wide = 1) {
  node.style.left = `${column * size.width}px`;
  node.style.top = `${row * size.height}px`;
  node.style.width = `${wide * size.width}px`;
  node.style.height = `${high * size.height}px`;
}

// Says where an entry is, and its number.
function read(view, flat) {
  const index = unravel(flat, view.shape);
  const hidden = view.hidden && view.hidden[flat];
  view.readout.replaceChildren(
    el("span", {class: "where"}, view.place(index)), " ",
    el("span", {class: "num"}, hidden ? "masked" : digits(view.numbers[flat])));
}

// Strips: {index: leading indexes, row} or {..., column}: what a worked element is made of.
function mark(view, strips) {
  const {rows, columns} = view.plan;
  for (const each of view.panes) each.marks.replaceChildren();
  for (const {pane: number = 0, row, column} of strips) {
    const node = el("div", {class: "strip"});
    if (column === undefined) outline(view, node, row, 0, 1, columns);
    else if (row === undefined) outline(view, node, 0, column, rows, 1);
    else outline(view, node, row, column);
    view.panes[number]?.marks.append(node);
  }
}

function listen(view) {
  const {rows, columns} = view.plan;
  view.panes.forEach(({canvas}, number) => {
    const at = (event) => number * rows * columns
      + Math.min(rows - 1, Math.max(0, Math.floor(event.offsetY / view.size.height))) * columns
      + Math.min(columns - 1, Math.max(0, Math.floor(event.offsetX / view.size.width)));
    canvas.addEventListener("click", (event) => chooseIn(view, at(event)));
    canvas.addEventListener("pointermove", (event) => read(view, at(event)));
    canvas.addEventListener("pointerleave", () => read(view, view.cursor));
  });
  view.box.addEventListener("keydown", (event) => keyInGrid(view, event));
}

function chooseIn(view, flat) {
  view.cursor = flat;
  place(view);
  if (view.onchoose) view.onchoose(flat);
}

// In a focused grid the arrow keys are its own; they stop at its ends.
function keyInGrid(view, event) {
  const {rows, columns} = view.plan;
  const column = view.cursor % columns;
  const steps = {
    ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns,
    Home: -column, End: columns - 1 - column, PageDown: rows * columns, PageUp: -rows * columns,
  };
  if (event.key === "Escape") document.getElementById("stop-title").focus();
  else if (!(event.key in steps) || event.shiftKey || event.ctrlKey || event.metaKey) return;
  event.preventDefault();
  event.stopPropagation();
  const next = view.cursor + steps[event.key];
  if (event.key in steps && next >= 0 && next < view.numbers.length) {
    chooseIn(view, next);
    view.cursorNode.scrollIntoView({block: "nearest", inline: "nearest"});
  }
}
