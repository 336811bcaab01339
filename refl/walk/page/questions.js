// Predict first: one question at each stop before its result is shown. The questions and their
// answers are made from the numbers, so that they are right for any model.

const SAME = 1e-4;

// {text, options: [words], right: number of the option, answer: words, ties: numbers of others that
// are as right}; null where none is asked.
function questionOf(stop, direction, m) {
  if (direction === "forward") return forwardQuestion(stop);
  return stop.rules[m] ? sweepQuestion(stop, m) : null;
}

/* ---- forward ----------------------------------------------------------------------------- */

function forwardQuestion(stop) {
  if (stop.operation === "softmax") return largestWeightQuestion(stop);
  if (stop.operation === "add") return largerOperandQuestion(stop);
  if (stop.operation === "movement" && stop.attributes.from !== undefined) return copiesQuestion(stop);
  if (["activation", "multiply"].includes(stop.operation)) return negativesQuestion(stop);
  if (["rms_norm", "layer_norm", "scale"].includes(stop.operation)) return growthQuestion(stop);
  return largestRowQuestion(stop);
}

function largestWeightQuestion(stop) {
  const value = data.values[stop.output];
  const tokens = rowTokens(value);
  const width = value.shape.at(-1);
  if (!tokens || tokensOf(width) === null) return growthQuestion(stop);
  const row = tokens.length - 1;
  const weights = c.value(stop.output).slice(row * width, (row + 1) * width);
  return tokenQuestion(`Head 0, last row: from which token will ${visible(tokens[row])} read most?`,
    weights, tokensOf(width), "weight");
}

function largerOperandQuestion(stop) {
  const operands = valueOperands(stop);
  if (operands.length < 2) return growthQuestion(stop);
  const sizes = operands.map(({value}) => rms(c.value(value.id)));
  return choice("Which operand is the larger part of the sum (by root mean square)?",
    operands.map(({k, value}) => operandWords(stop, k, value)), sizes.indexOf(Math.max(...sizes)),
    sizes.map(digits).join(" against "));
}

function copiesQuestion(stop) {
  const counts = new Map();
  for (const n of c.array(stop.attributes.from)) counts.set(n, (counts.get(n) ?? 0) + 1);
  const inputs = sum(valueOperands(stop).map(({value}) => c.value(value.id).length));
  counts.delete(-1); // a place left empty
  const copied = Array.from(counts.values()).some((count) => count > 1);
  const left = counts.size < inputs;
  const right = copied ? 1 : left ? 2 : 0;
  return choice("Where does each number of the input go?",
    ["to one place each", "some to several places", "some are left behind"], right,
    `${inputs} numbers in, ${c.value(stop.output).length} out`, copied && left ? [2] : []);
}

function negativesQuestion(stop) {
  const numbers = c.value(stop.output);
  const negative = numbers.filter((x) => x < 0).length;
  const right = negative === 0 ? 0 : negative === numbers.length ? 3 : 2 * negative < numbers.length ? 1 : 2;
  return choice("How many of the outputs will be negative?",
    ["none", "fewer than half", "half or more", "all"], right, `${negative} of ${numbers.length}`);
}

function growthQuestion(stop) {
  const before = strongestOf(c.value(valueOperands(stop)[0].value.id));
  const after = strongestOf(c.value(stop.output));
  const right = Math.abs(after - before) <= SAME * before ? 1 : after < before ? 0 : 2;
  return choice(`The input's largest amount is ${digits(before)}. And the output's?`,
    ["smaller", "the same, to four digits", "larger"], right, digits(after));
}

function largestRowQuestion(stop) {
  const value = data.values[stop.output];
  const tokens = value.shape.length === 2 ? rowTokens(value) : null;
  const numbers = c.value(stop.output);
  if (tokens) {
    const rows = rowsOf(numbers, value).map(rms);
    return tokenQuestion("Which token's row will be the largest (by root mean square)?", rows, tokens,
      "root mean square");
  }
  const top = numbers[largest(numbers)];
  return choice("Will the number of the largest amount be positive or negative?",
    ["positive", "negative"], top < 0 ? 1 : 0, digits(top));
}

/* ---- sweep ------------------------------------------------------------------------------- */

function sweepQuestion(stop, m) {
  const rule = stop.rules[m];
  const operands = valueOperands(stop);
  if (rule.function.startsWith("leaf")) return arrivedQuestion(stop, m);
  if (operands.length > 1) return whoGetsMoreQuestion(stop, m, operands);
  const tokens = rowTokens(data.values[operands[0].value.id]);
  const rows = tokens && operands[0].value.shape.length === 2 && tokens.length > 1;
  return rows && stop.operation === "linear" ? whichRowQuestion(stop, m, operands[0], tokens)
    : howMuchQuestion(stop, rule);
}

function arrivedQuestion(stop, m) {
  const value = data.values[stop.output];
  const tokens = value.shape.length === 2 ? rowTokens(value) : null;
  if (!tokens || tokens.length < 2) return null;
  return tokenQuestion("On which token's row has most relevance arrived?",
    rowsOf(received(stop, m), value).map(sum), tokens, "relevance");
}

function whoGetsMoreQuestion(stop, m, operands) {
  const amounts = operands.map(({k}) => passedTo(stop, stop.rules[m], k));
  const most = Math.max(...amounts);
  const even = most - Math.min(...amounts) <= SAME * Math.abs(most);
  const names = operands.map(({k, value}) => operandWords(stop, k, value));
  return choice(`${digits(stop.rules[m].received)} is received. Which operand gets more of it?`,
    [...names, "both the same, to four digits"], even ? names.length : amounts.indexOf(most),
    amounts.map(digits).join(" against "));
}

function whichRowQuestion(stop, m, {k, value}, tokens) {
  const rows = rowsOf(passedOn(stop, m, k, {}), value).map(sum);
  return tokenQuestion("Which token's row will receive the most?", rows, tokens, "relevance");
}

function howMuchQuestion(stop, rule) {
  const passed = sum(Object.values(rule.passed));
  const change = passed - rule.received;
  const right = Math.abs(change) <= SAME * Math.abs(rule.received) ? 1 : change < 0 ? 0 : 2;
  const offset = stop.operation === "softmax" ? " Mind the constant part of softmax's expansion." : "";
  return choice(`${digits(rule.received)} is received.${offset} What is passed on will sum to:`,
    ["a smaller number", "the same, to four digits", "a larger number"], right, digits(passed));
}

/* ---- what questions are made of ----------------------------------------------------------- */

// `ties`: other options that are as right; null where there is nothing to choose between.
function choice(text, options, right, answer, ties = []) {
  return options.length > 1 ? {text, options, right, answer, ties} : null;
}

function isRight(asked, n) {
  return n === asked.right || asked.ties.includes(n);
}

// Up to four tokens in their order, the one with the most among them.
function tokenQuestion(text, amounts, tokens, what) {
  const order = Array.from(amounts, (_, n) => n).sort((a, b) => amounts[b] - amounts[a]);
  const some = order.slice(0, 4).sort((a, b) => a - b);
  const options = some.map((n) => `${visible(tokens[n])} (token ${n})`);
  const most = amounts[order[0]];
  const ties = some.flatMap((n, at) => (amounts[n] === most && n !== order[0] ? [at] : []));
  return choice(text, options, some.indexOf(order[0]),
    `${visible(tokens[order[0]])} with a ${what} of ${digits(most)}${ties.length ? ", no more than another" : ""}`,
    ties);
}

function operandWords(stop, k, value) {
  return `${letter(stop, k).replace("_", "")}: ${printable(value.site)}`;
}

function rowsOf(numbers, value) {
  const width = value.shape.at(-1);
  return Array.from({length: value.shape.at(-2)}, (_, n) => numbers.slice(n * width, (n + 1) * width));
}

function rms(numbers) {
  return Math.sqrt(sum(numbers.map((x) => x * x)) / numbers.length);
}

function strongestOf(numbers) {
  return Math.abs(numbers[largest(numbers)]);
}

/* ---- asking ------------------------------------------------------------------------------ */

function questionKey(position) {
  return `${position}/${state.method}`;
}

// Whether the stop at hand waits for an answer.
function questionOpen(stop) {
  return state.predict && stop === stopAt(state.position)
    && !state.answers.has(questionKey(state.position))
    && questionOf(stop, state.direction, state.method) !== null;
}

function questionCard(stop) {
  const asked = state.predict ? questionOf(stop, state.direction, state.method) : null;
  if (!asked) return null;
  const answer = state.answers.get(questionKey(state.position));
  return el("section", {class: "card question", "aria-labelledby": "question-title"},
    el("h3", {id: "question-title"}, "Predict first"), el("p", {}, asked.text),
    el("div", {class: "options"}, asked.options.map((words, n) => optionButton(asked, words, n, answer))),
    answer === undefined ? null : answerLine(asked, answer));
}

function optionButton(asked, words, n, answer) {
  const open = answer === undefined;
  const kind = open ? "" : n === (isRight(asked, answer) ? answer : asked.right) ? "right" : n === answer ? "wrong" : "";
  return el("button", {type: "button", class: kind, disabled: !open, "data-option": n,
    onclick: () => answerQuestion(n)}, el("kbd", {}, n + 1), " ", el("bdi", {}, words));
}

function answerLine(asked, answer) {
  const hit = isRight(asked, answer);
  const said = hit ? answer : asked.right;
  return el("p", {id: "answer", tabindex: -1, "data-answer": hit ? "right" : "wrong"},
    el("strong", {}, hit ? "Yes: " : "No: "), el("bdi", {}, asked.options[said]), " (",
    el("bdi", {}, asked.answer), ").");
}

function answerQuestion(n) {
  const stop = stopAt(state.position);
  if (!questionOpen(stop)) return;
  const asked = questionOf(stop, state.direction, state.method);
  if (n >= asked.options.length) return;
  state.answers.set(questionKey(state.position), n);
  render();
  document.getElementById("answer")?.focus({preventScroll: true});
}
