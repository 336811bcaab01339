// What the page says: about each operation, each rule and each idea, where it is first met.
//
// `does` stands at every stop; `idea` only where the operation or the rule is met for the first
// time in that direction. Keys of rules are those of the equations: operation.function.

const FORWARD = {
  embedding: {
    does: "The id of each token picks one row of the table.",
    idea: "From here on a token is a row of numbers. Everything that follows changes these rows or "
      + "mixes them, and at the end of the sweep each row's relevance is summed: that sum is the "
      + "token's.",
  },
  learned: {
    does: "Rows of the checkpoint join the activations: the same for every input.",
    idea: "They are not made from the input. What relevance reaches them in the sweep is absorbed.",
  },
  source: {does: "Numbers that nothing in the net computes."},
  linear: {
    does: "Every output is a weighted sum of one row's inputs, plus a bias where there is one.",
    idea: "Each product W x is one contribution to the output z. The sweep will ask which part of z "
      + "each of them made.",
  },
  rms_norm: {
    does: "Every row is divided by its root mean square and multiplied by a weight for each feature.",
    idea: "The divisor is one number for the whole row. norm_eps keeps it away from zero; it is the "
      + "model's own, and not the eps of the rules.",
  },
  layer_norm: {
    does: "Every row loses its mean and is divided by its standard deviation; then a weight and a "
      + "bias for each feature.",
    idea: "Mean and standard deviation are one number each for the whole row. norm_eps is the "
      + "model's own, and not the eps of the rules.",
  },
  rotary: {
    does: "Pairs of features are turned by an angle that grows with the token's position.",
    idea: "This is how attention learns where tokens stand: a query and a key that are as far apart "
      + "always meet at the same angle. cos and sin do not depend on the input, so the turn is a "
      + "linear map without a bias.",
  },
  scale: {
    does: "Every number is multiplied by the same constant.",
    idea: "In attention the factor is mostly 1 / sqrt(d) for heads of d features: it keeps the "
      + "scores from growing with d.",
  },
  movement: {
    does: "Numbers change their place, never their value.",
    idea: "Splitting into heads, transposing, taking one row: nothing is computed, but a number may "
      + "be copied or left behind.",
  },
  gather: {does: "Rows are picked by number.", idea: "Here tokens are sent to the experts that a "
    + "router chose for them."},
  top_k: {does: "The largest entries of each row are kept.", idea: "A router's choice of experts. "
    + "The choice itself is a fact of this run; nothing flows through it."},
  combine: {does: "What the experts made goes back to the tokens' rows and is added.",
    idea: "One sum over all experts of a token."},
  renormalize: {does: "Each row is divided by its sum, so that it sums to one."},
  pooling: {does: "The mean over the positions.", idea: "All tokens become one row."},
  matmul: {
    does: "Rows of the first times columns of the second: both are activations.",
    idea: "A linear layer has weights on one side. Here both sides depend on the input, so in the "
      + "sweep both have a claim on the relevance.",
  },
  softmax: {
    does: "Every row of scores becomes weights that are positive and sum to one.",
  },
  add: {
    does: "Two activations are added, number by number.",
  },
  multiply: {
    does: "Activations are multiplied, number by number.",
  },
  activation: {
    does: "The same curve is applied to every number alone.",
    idea: "Each output depends on one input only. It is what keeps the net from being one long "
      + "linear map.",
  },
};

// What an operation is for in this net: said in place of, or beside, what is above.
const ROLES = {
  "matmul attention.scores": {
    does: "Every query row meets every key row: their dot product is the score.",
  },
  "matmul attention.context": {
    does: "Every row is a mix of value rows, weighted by the probabilities.",
  },
  "embedding position": {
    does: "Every position, or distance between two, picks one row of a table of its own.",
    idea: "These rows say where a token stands, not which it is. What relevance reaches them in the "
      + "sweep is no token's, and is absorbed.",
  },
  "embedding token_type": {
    does: "The type of each token (which of two sentences it is in) picks one row of a table.",
    idea: "These rows do not say which token it is. What relevance reaches them in the sweep is no "
      + "token's, and is absorbed.",
  },
  "source pixels": {
    does: "The picture itself, as numbers.",
    idea: "In the sweep every one of them receives a relevance of its own.",
  },
  "softmax attention.probabilities": {
    idea: "Row by row, these are how much of each token's values a token will read. A masked place "
      + "gets a weight of exactly zero.",
  },
  "softmax router.probabilities": {
    idea: "Row by row, these are how far a router trusts each expert with a token.",
  },
  "add residual": {
    idea: "A residual add: what the layer made is added to the stream that went past it. The stream "
      + "is never replaced, only added to, so there is a way past every layer.",
  },
  "add attention.bias": {
    idea: "A number for each distance between two tokens is added to their score, whatever the tokens "
      + "are.",
  },
  "multiply mlp.product": {
    idea: "A gated feed-forward: one branch (the gate) decides how much of the other goes on.",
  },
  "multiply expert.weighted": {
    idea: "What an expert made of a token counts as much as the router weighted that expert.",
  },
  "multiply edit": {does: "An edit of this model: activations are multiplied by numbers set by hand."},
  "add edit": {does: "An edit of this model: numbers set by hand are added."},
  "source edit": {does: "Numbers set by hand, for an edit of this model."},
};

const RULES_SAID = {
  "linear.epsilon": {
    does: "Each input receives in proportion to what it contributed: W x out of z.",
    idea: "Contributions of both signs may cancel to a small z, and R / z would explode. So eps is "
      + "added to z, with z's own sign: the stabilizer. What it takes for itself is passed to nobody "
      + "and is entered as absorbed. A bias is a contribution like any other; what it receives is "
      + "absorbed too. Weights receive nothing: the input is what is explained.",
  },
  "linear.gradient": {
    does: "g goes back through the transposed weights; R = x g.",
    idea: "x g gives each input its W x out of z, as the epsilon rule with eps = 0 does, but no "
      + "division is ever made. What a bias contributed is absorbed.",
  },
  "add.epsilon": {
    does: "Each operand receives in proportion to what it put into the sum.",
    idea: "This is where relevance parts between the stream and the layer. Number by number one "
      + "operand may get more than all of R and the other a negative rest: they cancelled in the sum.",
  },
  "add.gradient": {
    does: "Both operands get the same g; R = x g then goes by what each put into the sum.",
    idea: "This is where relevance parts between the stream and the layer.",
  },
  "multiply.uniform": {
    does: "Every factor receives the same part: R / N of N factors.",
    idea: "No factor alone made the product, and without either it would be zero. To hand all of R "
      + "to both would count it twice; so it is halved.",
  },
  "multiply.uniform_gxi": {
    does: "Every factor gets 1 / N of the true derivative.",
    idea: "The true derivative hands the whole of R to each of the N factors; so it is divided by N.",
  },
  "multiply.second_gxi": {
    does: "The gate is read as a constant; the other factor receives everything.",
    idea: "A product with a constant is a linear map without a bias: all of R goes through it. How "
      + "the gate came to be is not explained.",
  },
  "multiply.gradient": {
    does: "The true derivative: each factor gets the whole of R.",
    idea: "With two factors that is R twice. The ledger shows what was created as a negative "
      + "product_offset.",
  },
  "matmul.uniform": {
    does: "Each operand receives half, in proportion to its products A V out of O.",
    idea: "O is linear in A and linear in V: by either alone all of R could be claimed. Each gets "
      + "half of it, hence the 2 in the denominator.",
  },
  "matmul.uniform_gxi": {does: "Each operand gets half of its true derivative."},
  "matmul.second_gxi": {
    does: "A is read as a constant: the values receive everything.",
    idea: "The attention weights count as weights of a linear map that happens to differ from input "
      + "to input. Queries and keys then receive nothing at all.",
  },
  "matmul.gradient": {
    does: "The true derivative: each operand gets the whole of R.",
    idea: "With two operands that is R twice. The ledger shows what was created as a negative "
      + "product_offset.",
  },
  "softmax.taylor": {
    does: "Each score receives x_i (R_i - p_i times the row's R): softmax's first-order expansion.",
    idea: "The expansion of softmax at x has a slope for every score and a constant part, the offset: "
      + "what would be there with no score's help (with all scores equal, the weights are not zero). "
      + "No score can claim the offset, so its part of R is absorbed as softmax_offset. It may have "
      + "either sign. The scores must be as they are: shifted by their maximum they give the same p "
      + "and the same sum, but other relevance.",
  },
  "softmax.gradient": {
    does: "The true derivative: g_i = p_i (g_i - sum_j p_j g_j).",
    idea: "x g sums to less or more than R: softmax is not linear. The rest is its offset, the "
      + "constant part of its expansion, which no score can claim.",
  },
  "softmax.constant": {does: "The weights are read as constants: nothing is passed on."},
  "softmax.constant_gxi": {does: "The weights are read as constants: nothing is passed on."},
  "rms_norm.identity": {
    does: "The norm passes relevance on unchanged.",
    idea: "The divisor is read as a constant. Then every output depends on one input alone, its "
      + "weight cancels, and that input receives all of R. The true derivative would differentiate "
      + "the divisor too: a norm undoes any change of a row's length, so almost nothing would come "
      + "through.",
  },
  "rms_norm.identity_gxi": {
    does: "The norm passes relevance on unchanged: g is scaled as x was.",
    idea: "The divisor is read as a constant, so g_x = w g / rms, and x times it is z g: every input "
      + "receives exactly what stood at its output.",
  },
  "rms_norm.gradient": {
    does: "The true derivative, that of the divisor included.",
    idea: "If a whole row grows, its norm grows with it and the output stays: to first order the "
      + "row's length has no effect. So x g sums to almost nothing, and the rest is entered as "
      + "absorbed: norm_offset. This is why gradient x input loses most of the logit at its norms.",
  },
  "layer_norm.epsilon": {
    does: "The standard deviation is a constant; centering is a linear map, and is swept as one.",
    idea: "Every output is made from all inputs of its row, since the mean is. What the norm's bias "
      + "contributed is absorbed as norm_bias.",
  },
  "layer_norm.epsilon_gxi": {
    does: "The standard deviation is a constant; g is centered as x was.",
    idea: "With the divisor constant the layer is a linear map and a bias. What the bias contributed "
      + "is absorbed as norm_bias.",
  },
  "layer_norm.identity": {does: "The norm passes relevance on unchanged."},
  "layer_norm.gradient": {
    does: "The true derivative, that of mean and standard deviation included.",
    idea: "If a whole row grows or is shifted, the output stays. So x g sums to almost nothing, and "
      + "the rest is absorbed as norm_offset.",
  },
  "activation.identity": {
    does: "Every input receives what stood at its output.",
    idea: "One number went in and one came out: there is nobody else to receive it.",
  },
  "activation.identity_gxi": {
    does: "g is multiplied by f(x) / x, so that x g stays the same.",
    idea: "One number went in and one came out: there is nobody else to receive it.",
  },
  "activation.gradient": {
    does: "The true derivative, the slope at x.",
    idea: "A slope line through (x, f(x)) does not go through zero: its part f(x) - x f'(x) is "
      + "absorbed as activation_offset.",
  },
  "rotary.epsilon": {
    does: "A linear map without a bias, swept as one.",
    idea: "A turned pair is made from two features, and each receives in proportion to what it "
      + "contributed. The angle receives nothing.",
  },
  "rotary.gradient": {does: "g is turned back by the same angle.",
    idea: "A turn is a linear map without a bias: x g keeps its sum."},
  "scale.pass_through": {does: "One input, one output, no bias: R passes unchanged.",
    idea: "A constant factor changes a number and its contribution alike; it cancels in R."},
  "scale.gradient": {does: "g is multiplied by the same constant.",
    idea: "x g stays: what x lost by the factor, g gains."},
  "movement.pass_through": {does: "Relevance goes back to the place the number came from.",
    idea: "Where a number was copied, its copies' relevance is added; where it was left behind, it "
      + "receives zero."},
  "gather.pass_through": {does: "Relevance goes back to the row it was picked from."},
  "top_k.pass_through": {does: "Relevance goes back to the chosen entries."},
  "combine.epsilon": {does: "Each expert receives in proportion to what it put into the sum."},
  "combine.gradient": {does: "Every expert's row gets the g of the row it was added to."},
  "pooling.epsilon": {does: "Each position receives in proportion to what it put into the mean."},
  "pooling.gradient": {does: "Every position that counted gets its part of g."},
};

const CONSTANTS = "A factor that is a constant receives nothing: all goes to what is left.";

const LEAVES = {
  tokens: "The way ends: what arrives on a token's row is summed, and that is the token's relevance.",
  pixels: "The way ends: what arrives at a pixel is its relevance.",
};
const LEAF_IDEA = "An id is not a number that could hold relevance: the rows that were looked up are "
  + "as far down as the sweep goes.";

// Ideas that belong to no single rule, each with the stops it is met at.
const IDEAS = {
  seed: "The sweep starts with the explained number alone: its own entry holds all relevance, every "
    + "other entry zero. From here it goes back through the stops, last one first, and every rule "
    + "must say where it all went.",
  gradient_x_input: "This method hands down a g in place of R. Relevance is R = x g wherever one "
    + "looks; the grids below show that product. No eps appears in this form.",
  fan_in: "Several stops read this value. Each handed back its own part, and the parts are added: "
    + "relevance of a value is the sum over all its readers.",
  nothing: "Nothing reached this stop: its output was read only by operands that the method counts "
    + "as constants.",
};

function roleKey(stop) {
  return `${stop.operation} ${stop.attributes.role || stop.role}`;
}

function saidForward(stop) {
  const said = FORWARD[stop.operation] ?? {does: `The operation ${stop.operation}.`};
  return {...said, ...ROLES[roleKey(stop)]};
}

function saidSweep(stop, rule) {
  if (!rule) return {does: IDEAS.nothing};
  if (rule.function.startsWith("leaf")) return saidLeaf(stop);
  if (stop.attributes.constant?.some(Boolean)) return {does: CONSTANTS};
  return RULES_SAID[rule.equation] ?? {does: `The rule ${rule.rule}.`};
}

function saidLeaf(stop) {
  const role = stop.attributes.role ?? "tokens";
  const absorbed = `The way ends: what arrives is absorbed (${causeSaid(role)}).`;
  return {does: LEAVES[role] ?? absorbed, idea: stop.operation === "embedding" ? LEAF_IDEA : null};
}

function causeSaid(cause) {
  return data.causes[cause] ?? cause.replaceAll("_", " ");
}

/* ---- operands ---------------------------------------------------------------------------- */

// The letters of the operands, as the equations have them.
const LETTERS = {
  linear: ["x", "W", "b"], add: ["a", "b"], matmul: ["A", "V"], rms_norm: ["x", "w"],
  layer_norm: ["x", "w", "b"], embedding: ["E"], learned: ["E", "x"],
};

function letter(stop, k) {
  if (stop.operation === "multiply") return `a_${k + 1}`;
  const inputs = stop.operands.filter(Boolean).length;
  return LETTERS[stop.operation]?.[k] ?? (inputs > 1 ? `x_${k + 1}` : "x");
}

function outputLetter(stop) {
  return {matmul: "O", softmax: "p"}[stop.operation] ?? "z";
}

/* ---- where an index is -------------------------------------------------------------------- */

function tokensOf(length) {
  if (data.tokens.length === length) return data.tokens;
  return data.decoder_tokens?.length === length ? data.decoder_tokens : null;
}

function rowTokens(value) {
  return value.tokens === null ? null : tokensOf(value.shape[value.tokens]);
}

// The pixels themselves, whose first axis is their channels.
function isPicture(value) {
  return value.made_by !== null && data.stops[value.made_by].operation === "source";
}

// An index of a value in words: head, token, feature.
function placeIn(value) {
  const tokens = rowTokens(value);
  const square = value.shape.length > 2 && tokens && tokensOf(value.shape.at(-1)) === tokens;
  return (index) => {
    if (isPicture(value)) return `[${index.join(", ")}] row ${index.at(-2)}, column ${index.at(-1)}`;
    const words = index.slice(0, -2).map((n) => `head ${n}`);
    const [row, column] = [index.at(-2), index.at(-1)];
    if (tokens) words.push(`${square ? "from" : "token"} ${visible(tokens[row])}`);
    else if (index.length > 1) words.push(`row ${row}`);
    words.push(square ? `to ${visible(tokens[column])}` : `${index.length > 1 ? "feature " : ""}${column}`);
    return `[${index.join(", ")}] ${words.join(", ")}`;
  };
}

function placeInWeight(index) {
  return `[${index.join(", ")}]`;
}
