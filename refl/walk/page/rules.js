// The arithmetic of the walk in float64: forward, rules, ledger, worked elements. It follows
// refl/rules/*.py, file by file, and knows nothing of the page.
//
//   const c = Rules.load(data, buffer)          what Python told of one run, arrays unpacked
//   Rules.forward(c, stop)                      the output, from the operands
//   Rules.relevance(c, stop, m, how)            what each operand receives by method m
//   Rules.audit(c, stop, m, how)                received = passed on + absorbed + error, judged
//   Rules.worked_forward(c, stop, j)            one output element, term by term
//   Rules.worked_relevance(c, stop, m, k, i, how)   what one element of operand k receives
//
// how = {eps, mistake}: another eps for this stop, or one of Rules.MISTAKES planted in it.
// A rule hands down R, or in gradient x input form the g of R = x g; "amount" is R or x g.

const Rules = (() => {
  const U = 2 ** -53; // the unit roundoff
  const ALLOWED = 8; // roundings of the sum of |terms| that an error may be made of
  const LEAST = -Number.MAX_VALUE / 2; // a logit of so much or less is none: a mask made it

  // -- arrays -------------------------------------------------------------------------------------

  // Kind -> bytes that are stored of a number, bytes that it has, how it is read.
  const KINDS = {
    f8: [8, 8, "getFloat64"],
    f6: [6, 8, "getFloat64"],
    f5: [5, 8, "getFloat64"],
    f4: [4, 4, "getFloat32"],
    i4: [4, 4, "getInt32"],
    u1: [1, 1, "getUint8"],
  };

  // First the first bytes of all numbers, then the second bytes, and so on.
  function unpack(bytes, { offset, count, kind }) {
    const [stored, size, read] = KINDS[kind];
    const view = new DataView(new ArrayBuffer(size * count));
    for (let plane = 0; plane < stored; plane++) {
      const start = offset + plane * count;
      for (let n = 0; n < count; n++) view.setUint8(n * size + plane, bytes[start + n]);
    }
    const numbers = new Float64Array(count);
    for (let n = 0; n < count; n++) numbers[n] = view[read](n * size);
    return numbers;
  }

  function load(data, buffer) {
    const bytes = new Uint8Array(buffer);
    const arrays = new Map();
    const sites = new Map();
    const array = (id) => kept(arrays, id, () => unpack(bytes, data.arrays[id]));
    const context = {
      data,
      array,
      value: (id) => array(data.values[id].array),
      weight: (id) => array(data.weights[id].array),
      propagated: (id, m) => {
        const number = data.values[id].propagated[m];
        return number === null ? null : array(number);
      },
    };
    context.operation = (stop) => kept(sites, stop.index, () => gathered(context, stop));
    return context;
  }

  function kept(known, key, make) {
    if (!known.has(key)) known.set(key, make());
    return known.get(key);
  }

  // An operation with its operands at hand: x and shapes, one each (null for none), its attributes,
  // the shape of its output, and z, the output formed anew.
  function gathered(c, stop) {
    const value = c.data.values[stop.output];
    const o = {
      name: stop.operation,
      x: stop.operands.map((operand) => numbers(c, operand)),
      shapes: stop.operands.map((operand) => shape_of(c, operand)),
      received_by: stop.operands.map((operand) => operand !== null && "value" in operand),
      shape: value.shape,
      size: product(value.shape),
      ...stop.attributes,
    };
    for (const name of ["mask", "cos", "sin", "from", "counted"]) {
      if (typeof o[name] === "number") o[name] = c.array(o[name]);
    }
    if (o.ids) o.ids = o.ids.flat(Infinity);
    o.places = o.shapes.map((shape) => (shape === null ? null : places(shape, o.shape)));
    o.z = stop.operation === "source" ? c.value(stop.output) : OPERATIONS[o.name].forward(o);
    return o;
  }

  function numbers(c, operand) {
    if (operand === null) return null;
    return "value" in operand ? c.value(operand.value) : c.weight(operand.weight);
  }

  function shape_of(c, operand) {
    if (operand === null) return null;
    return ("value" in operand ? c.data.values[operand.value] : c.data.weights[operand.weight])
      .shape;
  }

  const product = (shape) => shape.reduce((a, b) => a * b, 1);
  const last = (shape) => shape[shape.length - 1];
  const made = (count, each) => Float64Array.from({ length: count }, (_, n) => each(n));
  const absolute = (a) => (a === null ? null : a.map(Math.abs));

  // The sum with the rounding error of every addition kept beside it (Neumaier 1974), so that what
  // an audit is left with is the rule's and not of the summing.
  function total(count, each) {
    let sum = 0;
    let rest = 0;
    for (let n = 0; n < count; n++) {
      const term = each(n);
      const next = sum + term;
      rest += Math.abs(sum) >= Math.abs(term) ? sum - next + term : term - next + sum;
      sum = next;
    }
    return Number.isFinite(sum) ? sum + rest : sum;
  }

  const sum_of = (a) => total(a.length, (n) => a[n]);
  const sum_of_products = (a, b) => total(a.length, (n) => a[n] * b[n]);
  const size_of = (a) => total(a.length, (n) => Math.abs(a[n]));

  // Flat index -> index along each axis.
  function unravel(index, shape) {
    const found = [];
    for (let axis = shape.length - 1; axis >= 0; axis--) {
      found.unshift(index % shape[axis]);
      index = Math.floor(index / shape[axis]);
    }
    return found;
  }

  // For each entry of the output, the entry of an operand that was broadcast to it; null where the
  // two have one shape, or where the operand is no part of an element-by-element operation.
  function places(shape, onto) {
    const own = shape.slice(Math.max(0, shape.length - onto.length));
    const same = own.length === onto.length && own.every((n, axis) => n === onto[axis]);
    const offset = onto.length - own.length;
    if (same || !own.every((n, axis) => n === 1 || n === onto[axis + offset])) return null;
    return made(product(onto), (j) => {
      const where = unravel(j, onto).slice(offset);
      return own.reduce((flat, n, axis) => flat * n + (n === 1 ? 0 : where[axis]), 0);
    });
  }

  // Operand k's entry that stands in entry j of an element-by-element output.
  const place = (o, k, j) => (o.places[k] === null ? j : o.places[k][j]);
  const operand_at = (o, k, j) => o.x[k][place(o, k, j)];

  // The sum over the copies that broadcasting made of each entry of operand k.
  function fold(o, k, r) {
    const folded = new Float64Array(o.x[k].length);
    for (let j = 0; j < r.length; j++) folded[place(o, k, j)] += r[j];
    return folded;
  }

  // The entries of the output in which operand k's entry i stands.
  function copies(o, k, i) {
    if (o.places[k] === null) return [i];
    return Array.from(o.places[k].keys()).filter((j) => o.places[k][j] === i);
  }

  // -- worked elements ----------------------------------------------------------------------------

  const piece = (symbol, value) => ({ symbol, value });
  const over = (symbol, value) => ({ symbol, value, divides: true });

  function term(at, pieces) {
    const times = (a, one) => (one.divides ? a / one.value : a * one.value);
    return { at, pieces, value: pieces.reduce(times, 1) };
  }

  function worked(symbol, index, factor, terms, note) {
    const sum = terms.reduce((a, one) => a + one.value, 0);
    const found = {
      symbol,
      index,
      factor,
      terms,
      total: factor === null ? sum : factor.value * sum,
    };
    return note ? { ...found, note } : found;
  }

  // -- conservation.py ----------------------------------------------------------------------------

  // s_j = R_j / (z_j + eps s(z_j)); the stabilizer absorbs sum_j eps s(z_j) s_j.
  // sign: s(z) = +1 for z >= 0, else -1 (AttnLRP eq. 5). plain: always +1. none: eps is 0. Where
  // the ratio is no finite number, s is 0 and R is absorbed.
  function stabilized(z, r, { eps, stabilizer }) {
    const e = (z_j) => (stabilizer === "none" ? 0 : stabilizer === "sign" && z_j < 0 ? -eps : eps);
    const d = z.map((z_j) => z_j + e(z_j));
    const dead = (j) => !(Math.abs(d[j]) > Math.abs(r[j]) / Number.MAX_VALUE);
    const s = made(z.length, (j) => (dead(j) ? 0 : r[j] / d[j]));
    const absorbed = total(z.length, (j) => (dead(j) ? r[j] : e(z[j]) * s[j]));
    return { s, d, absorbed };
  }

  const denominator = (z, stabilizer) =>
    stabilizer === "none" ? z : stabilizer === "plain" ? `${z} + eps` : `${z} + eps s(${z})`;

  // The epsilon rule of an operation whose Jacobian J (with what is held constant) has J x + b = z:
  //     R_i = x_i sum_j J_ji s_j,   s = R / (z + eps s(z))                         (AttnLRP eq. 8)
  // absorbs  stabilizer sum eps s(z) s,  and for b  sum_j b_j s_j
  function epsilon_rule(jacobian) {
    const ratio = (o, r, how) => stabilized((jacobian.whole || ((one) => one.z))(o), r, how);
    return {
      relevance(o, r, how) {
        const { s, absorbed } = ratio(o, r, how);
        const back = jacobian.back(o, s, how);
        return {
          inputs: back.map((b, k) => b && b.map((b_i, i) => b_i * o.x[k][i])),
          absorbed: { ...jacobian.bias(o, s), stabilizer: absorbed },
          scale: jacobian.scale(o, s) + size_of(r),
        };
      },
      worked(o, r, how, k, i) {
        const { s, d } = ratio(o, r, how);
        const below = denominator(jacobian.symbols.z, how.stabilizer);
        const ends = (j) =>
          s[j] === 0 && r[j] !== 0
            ? [piece("s_j", 0)]
            : [piece(jacobian.symbols.r, r[j]), over(below, d[j])];
        const terms = jacobian
          .column(o, k, i, how)
          .map(({ j, at, pieces }) => term(at, [...pieces, ...ends(j)]));
        return { factor: piece(jacobian.symbols.x[k], o.x[k][i]), terms };
      },
    };
  }

  // The gradient of the same:  g_i = part * sum_j J_ji g_j
  // in gradient x input form the epsilon rule, and for part 1/N a product's uniform rule.
  function gradient_rule(jacobian, part = () => 1, absorbs = jacobian.bias) {
    return {
      relevance(o, g, how) {
        const n = part(o, how);
        const h = n === 1 ? g : g.map((g_j) => g_j / n);
        return {
          inputs: jacobian.back(o, h, how),
          absorbed: absorbs(o, g, how),
          scale: jacobian.scale(o, g) * 2,
        };
      },
      worked(o, g, how, k, i) {
        const n = part(o, how);
        const shared = n === 1 ? [] : [over("N", n)];
        const terms = jacobian
          .column(o, k, i, how)
          .map(({ j, at, pieces }) =>
            term(at, [...pieces, piece(jacobian.symbols.g, g[j]), ...shared]),
          );
        return { factor: null, terms };
      },
    };
  }

  // R_i = R_i: one input, one output.
  const identity_rule = {
    relevance: (o, r) => ({ inputs: one_input(o, r.slice()), absorbed: {}, scale: size_of(r) }),
    worked: (o, r, how, k, i) => ({
      factor: null,
      terms: [term(entry(o, i), [piece("R_i", r[i])])],
    }),
  };

  // Nothing is handed on: all of it is absorbed under one name.
  function end_rule(form, cause) {
    return {
      relevance(o, r) {
        const amount = form === "g" ? sum_of_products(o.z, r) : sum_of(r);
        const scale = form === "g" ? sum_of_products(absolute(o.z), absolute(r)) : size_of(r);
        return { inputs: o.x.map(() => null), absorbed: { [cause(o)]: amount }, scale };
      },
      worked: () => ({ factor: null, terms: [] }),
    };
  }

  const one_input = (o, r) => o.x.map((_, k) => (k === 0 ? r : null));
  const none_absorbed = () => ({});

  // z and g of a rule in gradient x input form: amounts are z g.
  const amounts_of = (o, g) => sum_of_products(absolute(o.z), absolute(g));

  // -- linear.py ----------------------------------------------------------------------------------

  // z_j = sum_i W_ji x_i + b_j
  const linear = {
    forward: (o) => linear.product(o.x, linear.sizes(o)),
    sizes: (o) => ({ inputs: last(o.shapes[0]), outputs: last(o.shape) }),
    product([x, w, b], { inputs, outputs }) {
      return made((x.length / inputs) * outputs, (j) => {
        const row = Math.floor(j / outputs) * inputs;
        const line = (j % outputs) * inputs;
        let sum = 0;
        for (let i = 0; i < inputs; i++) sum += w[line + i] * x[row + i];
        return b === null ? sum : sum + b[j % outputs];
      });
    },
    back: (o, s) => [linear.transposed(o.x[1], s, linear.sizes(o)), null, null],
    transposed(w, s, { inputs, outputs }) {
      const found = new Float64Array((s.length / outputs) * inputs);
      for (let j = 0; j < s.length; j++) {
        const row = Math.floor(j / outputs) * inputs;
        const line = (j % outputs) * inputs;
        for (let i = 0; i < inputs; i++) found[row + i] += w[line + i] * s[j];
      }
      return found;
    },
    bias(o, s) {
      const [, , b] = o.x;
      return b === null ? {} : { bias: total(s.length, (j) => b[j % b.length] * s[j]) };
    },
    // sum_ij |x_i W_ji s_j| + sum_j |b_j s_j|, as messages and in the z they are divided by
    scale: (o, s) =>
      2 * sum_of_products(linear.product(o.x.map(absolute), linear.sizes(o)), absolute(s)),
    column(o, k, i) {
      const { inputs, outputs } = linear.sizes(o);
      const row = Math.floor(i / inputs);
      return Array.from({ length: outputs }, (_, j) => ({
        j: row * outputs + j,
        at: `j = ${j}`,
        pieces: [piece("W_ji", o.x[1][j * inputs + (i % inputs)])],
      }));
    },
    worked(o, j) {
      const [x, w, b] = o.x;
      const { inputs, outputs } = linear.sizes(o);
      const row = Math.floor(j / outputs) * inputs;
      const line = (j % outputs) * inputs;
      const terms = Array.from({ length: inputs }, (_, i) =>
        term(`i = ${i}`, [piece("W_ji", w[line + i]), piece("x_i", x[row + i])]),
      );
      return b === null ? terms : [...terms, term("bias", [piece("b_j", b[j % outputs])])];
    },
    symbols: { x: ["x_i"], z: "z_j", r: "R_j", g: "g_j" },
  };

  // -- add.py -------------------------------------------------------------------------------------

  // z = a + b
  const add = {
    forward: (o) => made(o.size, (j) => operand_at(o, 0, j) + operand_at(o, 1, j)),
    back: (o, s) => [fold(o, 0, s), fold(o, 1, s)],
    bias: none_absorbed,
    scale: (o, s) =>
      2 *
      total(
        o.size,
        (j) => (Math.abs(operand_at(o, 0, j)) + Math.abs(operand_at(o, 1, j))) * Math.abs(s[j]),
      ),
    column: (o, k, i) => copies(o, k, i).map((j) => ({ j, at: entry(o, j), pieces: [] })),
    worked: (o, j) => [
      term("a", [piece("a_j", operand_at(o, 0, j))]),
      term("b", [piece("b_j", operand_at(o, 1, j))]),
    ],
    symbols: { x: ["a_i", "b_i"], z: "z_j", r: "R_j", g: "g_j" },
  };

  const entry = (o, j) => `j = ${unravel(j, o.shape).join(", ")}`;

  // -- multiply.py --------------------------------------------------------------------------------

  // z = a_1 a_2 ... a_N
  const multiply = {
    forward: (o) => made(o.size, (j) => o.x.reduce((z, _, k) => z * operand_at(o, k, j), 1)),
    split_by: (o) => o.constant.filter((is_constant) => !is_constant).length,
    // dz_j/da_k: the product of the other operands, without dividing by one that may be zero
    others: (o, k, j) => o.x.reduce((a, _, n) => (n === k ? a : a * operand_at(o, n, j)), 1),
    back: (o, g) =>
      o.x.map((_, k) =>
        o.constant[k]
          ? null
          : fold(
              o,
              k,
              made(o.size, (j) => multiply.others(o, k, j) * g[j]),
            ),
      ),
    bias: none_absorbed,
    scale: (o, g) => multiply.split_by(o) * amounts_of(o, g),
    column: (o, k, i) =>
      copies(o, k, i).map((j) => ({
        j,
        at: entry(o, j),
        pieces: o.x.flatMap((_, n) => (n === k ? [] : [piece(`a${n + 1}_j`, operand_at(o, n, j))])),
      })),
    worked: (o, j) => [
      term(
        "",
        o.x.map((_, k) => piece(`a${k + 1}_j`, operand_at(o, k, j))),
      ),
    ],
    symbols: { x: ["a1_i", "a2_i", "a3_i"], z: "z_j", r: "R_j", g: "g_j" },
  };

  // The first operand is a gate, taken as constant: g_2 = a_1 g (Ali et al. 2022).
  const only_second = (jacobian) => ({
    ...jacobian,
    back: (o, g) => jacobian.back(o, g).map((g_k, k) => (k === 1 ? g_k : null)),
  });

  // N, over which a product's relevance is divided (AttnLRP prop. 3.2)
  const halves = (count) => (o, how) => (how.mistake === "no_halving" ? 1 : count(o));

  // R_k = R / N
  const multiply_uniform = {
    relevance(o, r, how) {
      const n = halves(multiply.split_by)(o, how);
      const each = r.map((r_j) => r_j / n);
      const inputs = o.x.map((_, k) => (o.constant[k] ? null : fold(o, k, each)));
      return { inputs, absorbed: {}, scale: 2 * size_of(r) };
    },
    worked(o, r, how, k, i) {
      const n = halves(multiply.split_by)(o, how);
      const ends = n === 1 ? [] : [over("N", n)];
      const terms = copies(o, k, i).map((j) => term(entry(o, j), [piece("R_j", r[j]), ...ends]));
      return { factor: null, terms };
    },
  };

  // The whole of R to every operand: absorbs -(N - 1) sum R.
  const product_offset = (count) => (o, g) => ({
    product_offset: -(count(o) - 1) * sum_of_products(o.z, g),
  });

  // -- matmul.py ----------------------------------------------------------------------------------

  // O_jp = sum_i A_ji V_ip
  const matmul = {
    sizes(o) {
      const [a, v] = o.shapes;
      return { J: a[a.length - 2], I: last(a), P: last(v) };
    },
    forward: (o) => matmul.product(o.x, matmul.sizes(o)),
    product([a, v], { J, I, P }) {
      return made((a.length / I) * P, (jp) => {
        const [line, p] = [Math.floor(jp / P), jp % P];
        const start = Math.floor(line / J) * I;
        let sum = 0;
        for (let i = 0; i < I; i++) sum += a[line * I + i] * v[(start + i) * P + p];
        return sum;
      });
    },
    // J^T s to A: s V^T; to V: A^T s
    back(o, s) {
      const [a, v] = o.x;
      const { J, I, P } = matmul.sizes(o);
      const to_a = new Float64Array(a.length);
      const to_v = new Float64Array(v.length);
      for (let jp = 0; jp < s.length; jp++) {
        const [line, p] = [Math.floor(jp / P), jp % P];
        const start = Math.floor(line / J) * I;
        for (let i = 0; i < I; i++) {
          to_a[line * I + i] += s[jp] * v[(start + i) * P + p];
          to_v[(start + i) * P + p] += a[line * I + i] * s[jp];
        }
      }
      return [to_a, to_v];
    },
    bias: none_absorbed,
    scale: (o, s) =>
      4 * sum_of_products(matmul.product(o.x.map(absolute), matmul.sizes(o)), absolute(s)),
    column(o, k, index) {
      const { J, I, P } = matmul.sizes(o);
      const [a, v] = o.x;
      if (k === 0) {
        const [line, i] = [Math.floor(index / I), index % I];
        const start = (Math.floor(line / J) * I + i) * P;
        return Array.from({ length: P }, (_, p) => ({
          j: line * P + p,
          at: `p = ${p}`,
          pieces: [piece("V_ip", v[start + p])],
        }));
      }
      const [row, p] = [Math.floor(index / P), index % P];
      const start = Math.floor(row / I) * J;
      return Array.from({ length: J }, (_, j) => ({
        j: (start + j) * P + p,
        at: `j = ${j}`,
        pieces: [piece("A_ji", a[(start + j) * I + (row % I)])],
      }));
    },
    worked(o, jp) {
      const { J, I, P } = matmul.sizes(o);
      const [line, p] = [Math.floor(jp / P), jp % P];
      const start = Math.floor(line / J) * I;
      return Array.from({ length: I }, (_, i) =>
        term(`i = ${i}`, [
          piece("A_ji", o.x[0][line * I + i]),
          piece("V_ip", o.x[1][(start + i) * P + p]),
        ]),
      );
    },
    symbols: { x: ["A_ji", "V_ip"], z: "O_jp", r: "R_jp", g: "g_jp" },
  };

  // s = R / (2 O + eps s(O)), or for the denominator "2(z+eps)" R / (2 (O + eps s(O)))
  //                                                               (AttnLRP prop. 3.3, eq. 15)
  const matmul_uniform = {
    rule: (how) =>
      epsilon_rule({
        ...matmul,
        whole: how.mistake === "no_halving" ? (o) => o.z : (o) => o.z.map((z) => 2 * z),
        symbols: { ...matmul.symbols, z: how.mistake === "no_halving" ? "O_jp" : "2 O_jp" },
      }),
    options: (how) => ({ ...how, eps: how.denominator === "2(z+eps)" ? 2 * how.eps : how.eps }),
    relevance: (o, r, how) => matmul_uniform.rule(how).relevance(o, r, matmul_uniform.options(how)),
    worked: (o, r, how, k, i) =>
      matmul_uniform.rule(how).worked(o, r, matmul_uniform.options(how), k, i),
  };

  // -- softmax.py ---------------------------------------------------------------------------------

  // p_i = exp(x_i) / sum_k exp(x_k) over the last axis
  const softmax = {
    visible: (o, i) => (!o.mask || o.mask[i] !== 0) && o.x[0][i] > LEAST,
    forward: (o) => {
      const [x] = o.x;
      const p = new Float64Array(x.length);
      for_rows(o, (row) => {
        const top = softmax.top(o, row);
        for (const i of row) p[i] = softmax.visible(o, i) ? Math.exp(x[i] - top) : 0;
        const sum = sum_row(row, (i) => p[i]);
        for (const i of row) p[i] = sum === 0 ? 0 : p[i] / sum;
      });
      return p;
    },
    top: (o, row) =>
      Math.max(LEAST, ...row.filter((i) => softmax.visible(o, i)).map((i) => o.x[0][i])),
    worked(o, i) {
      const row = row_of(o, i);
      if (!softmax.visible(o, i)) return [];
      const top = softmax.top(o, row);
      const raised = (k) => (softmax.visible(o, k) ? Math.exp(o.x[0][k] - top) : 0);
      return [
        term("", [
          piece("exp(x_i - max)", raised(i)),
          over("sum_k exp(x_k - max)", sum_row(row, raised)),
        ]),
      ];
    },
  };

  // The flat indices of each row of the output.
  function for_rows(o, each) {
    const width = last(o.shape);
    for (let start = 0; start < o.size; start += width) {
      each(Array.from({ length: width }, (_, i) => start + i));
    }
  }

  function row_of(o, i) {
    const width = last(o.shape);
    const start = Math.floor(i / width) * width;
    return Array.from({ length: width }, (_, k) => start + k);
  }

  const sum_row = (row, each) => row.reduce((sum, i) => sum + each(i), 0);

  // R_i = x_i (R_i - p_i sum_j R_j)                                           (AttnLRP prop. 3.1)
  // g_i = p_i (g_i - sum_j p_j g_j)              in gradient x input form: the true derivative
  // absorbs  softmax_offset sum_j R_j (1 - x_j + sum_i p_i x_i),  and mask: what stood at masked
  // entries
  // x are the logits as they are, never shifted by their maximum.
  function softmax_rule(form) {
    const amount = (o, r, i) => (form === "g" ? o.z[i] * r[i] : r[i]);
    const logits = (o, how, row) => {
      const top = how.mistake === "shifted_logits" ? softmax.top(o, row) : 0;
      return (i) => (softmax.visible(o, i) ? o.x[0][i] - top : 0);
    };
    const visible_amount = (o, r) => (i) => (softmax.visible(o, i) ? amount(o, r, i) : 0);
    return {
      relevance(o, r, how) {
        const input = new Float64Array(o.size);
        const at = visible_amount(o, r);
        const offsets = [];
        const sizes = [];
        for_rows(o, (row) => {
          const x = logits(o, how, row);
          const sum = sum_row(row, at);
          const size = sum_row(row, (i) => Math.abs(at(i)));
          const px = sum_row(row, (i) => o.z[i] * x(i));
          for (const i of row) {
            input[i] = (form === "g" ? 1 : x(i)) * (at(i) - o.z[i] * sum);
            offsets.push(at(i) * (1 - x(i) + px));
            sizes.push(
              Math.abs(x(i)) * (2 * Math.abs(at(i)) + 2 * o.z[i] * size) + Math.abs(at(i)),
            );
          }
        });
        return {
          inputs: [input],
          absorbed: { softmax_offset: sum_of(offsets), ...hidden(o, r, amount) },
          scale: 3 * sum_of(sizes),
        };
      },
      worked(o, r, how, k, i) {
        if (!softmax.visible(o, i)) return { factor: null, terms: [], note: "masked" };
        const row = row_of(o, i);
        const x = logits(o, how, row);
        const terms = row
          .filter((j) => softmax.visible(o, j))
          .map((j) =>
            term(`j = ${j - row[0]}`, [
              ...(form === "g" ? [piece("p_j", o.z[j]), piece("g_j", r[j])] : [piece("R_j", r[j])]),
              piece("delta_ij - p_i", (i === j ? 1 : 0) - o.z[i]),
            ]),
          );
        const symbol = how.mistake === "shifted_logits" ? "x_i - max" : "x_i";
        return { factor: form === "g" ? null : piece(symbol, x(i)), terms };
      },
    };
  }

  // What stood at masked entries.
  function hidden(o, r, amount) {
    const some = made(o.size, (i) => (softmax.visible(o, i) ? 0 : amount(o, r, i)));
    return o.mask || some.some((r_i) => r_i !== 0) ? { mask: sum_of(some) } : {};
  }

  // -- rms_norm.py --------------------------------------------------------------------------------

  // z = w x / rms,  rms^2 = mean(x^2) + norm_eps,  w: offset + the stored weight
  const rms_norm = {
    weight: (o, i) => o.offset + o.x[1][i % last(o.shape)],
    // 1 / rms and mean(x^2) / rms^2 of the row of an entry
    row(o, i) {
      const row = row_of(o, i);
      const mean = sum_row(row, (k) => o.x[0][k] ** 2) / row.length;
      return { row, rms: Math.sqrt(mean + o.norm_eps), part: mean / (mean + o.norm_eps) };
    },
    forward: (o) =>
      by_row(
        o,
        (i) => rms_norm.row(o, i),
        (i, { rms }) => (o.x[0][i] / rms) * rms_norm.weight(o, i),
      ),
    // g_x = (w g - x mean(w g x) / rms^2) / rms: the full Jacobian
    back: (o, g) => {
      const state = (i) => {
        const { row, rms } = rms_norm.row(o, i);
        return {
          rms,
          along: sum_row(row, (k) => rms_norm.weight(o, k) * g[k] * o.x[0][k]) / row.length,
        };
      };
      const each = (i, { rms, along }) =>
        (rms_norm.weight(o, i) * g[i] - (o.x[0][i] * along) / rms ** 2) / rms;
      return [by_row(o, state, each), null];
    },
    // norm_offset: sum R mean(x^2) / rms^2
    bias: (o, g) => ({
      norm_offset: sum_of(
        by_row(
          o,
          (i) => rms_norm.row(o, i),
          (i, { part }) => o.z[i] * g[i] * part,
        ),
      ),
    }),
    scale: (o, g) => 4 * amounts_of(o, g),
    column(o, k, i) {
      const { row, rms } = rms_norm.row(o, i);
      const x = o.x[0];
      const moves = (j) => (i === j ? 1 : 0) - (x[i] * x[j]) / (row.length * rms ** 2);
      return row.map((j) => ({
        j,
        at: `j = ${j - row[0]}`,
        pieces: [
          piece("delta_ij - x_i x_j / (N rms^2)", moves(j)),
          piece("w_j", rms_norm.weight(o, j)),
          over("rms", rms),
        ],
      }));
    },
    worked(o, i) {
      const { rms } = rms_norm.row(o, i);
      return [
        term("", [piece("x_i", o.x[0][i]), over("rms", rms), piece("w_i", rms_norm.weight(o, i))]),
      ];
    },
    symbols: { x: ["x_i"], z: "z_j", r: "R_j", g: "g_j" },
  };

  // For each entry, from what is worked out once for its row.
  function by_row(o, state, each) {
    const found = new Float64Array(o.size);
    for_rows(o, (row) => {
      const of_row = state(row[0]);
      for (const i of row) found[i] = each(i, of_row);
    });
    return found;
  }

  // g_x = w g / rms: the scale 1 / rms is no function of the input (AttnLRP prop. 3.4)
  const rms_identity = {
    relevance(o, g) {
      const each = (i, { rms }) => (g[i] * rms_norm.weight(o, i)) / rms;
      const input = by_row(o, (i) => rms_norm.row(o, i), each);
      return { inputs: [input, null], absorbed: {}, scale: 4 * amounts_of(o, g) };
    },
    worked(o, g, how, k, i) {
      const { rms } = rms_norm.row(o, i);
      const pieces = [piece("w_i", rms_norm.weight(o, i)), piece("g_i", g[i]), over("rms", rms)];
      return { factor: null, terms: [term("j = i", pieces)] };
    },
  };

  // -- layer_norm.py ------------------------------------------------------------------------------

  // z = w (x - mean(x)) / std + b,  std^2 = var(x) + norm_eps
  const layer_norm = {
    row(o, i) {
      const row = row_of(o, i);
      const mean = sum_row(row, (k) => o.x[0][k]) / row.length;
      const variance = sum_row(row, (k) => (o.x[0][k] - mean) ** 2) / row.length;
      const std = Math.sqrt(variance + o.norm_eps);
      return { row, mean, std, part: variance / (variance + o.norm_eps) };
    },
    weight: (o, i) => o.x[1][i % o.x[1].length], // of each head, where there is one of each
    forward: (o) =>
      by_row(
        o,
        (i) => layer_norm.row(o, i),
        (i, { mean, std }) => {
          const z = ((o.x[0][i] - mean) / std) * layer_norm.weight(o, i);
          return o.x[2] === null ? z : z + o.x[2][i % last(o.shape)];
        },
      ),
    // J^T s with std constant: c - mean(c),  c = w s / std
    // differentiated:  - x_hat mean(w s x_hat) / std,  x_hat = (x - mean(x)) / std
    back(o, s, how) {
      const state = (i) => {
        const { row, mean, std } = layer_norm.row(o, i);
        const c = (k) => (layer_norm.weight(o, k) * s[k]) / std;
        const hat = (k) => (o.x[0][k] - mean) / std;
        const along = sum_row(row, (k) => c(k) * hat(k)) / row.length;
        return { c, hat, along, center: sum_row(row, c) / row.length };
      };
      const each = (i, { c, hat, along, center }) =>
        c(i) - (how.uncentered ? 0 : center) - (how.differentiated ? hat(i) * along : 0);
      return [by_row(o, state, each), null, null];
    },
    // norm_bias: sum b s
    bias(o, s) {
      const [, , b] = o.x;
      return b === null ? {} : { norm_bias: total(s.length, (j) => b[j % b.length] * s[j]) };
    },
    // norm_offset: sum w g x_hat times var / std^2
    whole_bias(o, g) {
      const offset = (i, { mean, std, part }) =>
        layer_norm.weight(o, i) * g[i] * ((o.x[0][i] - mean) / std) * part;
      const offsets = by_row(o, (i) => layer_norm.row(o, i), offset);
      return { ...layer_norm.bias(o, g), norm_offset: sum_of(offsets) };
    },
    // the mean is taken of x and of c, so each term is in a row's sum twice
    scale(o, s) {
      const [x, , b] = o.x;
      const state = (i) => {
        const { row, std } = layer_norm.row(o, i);
        return { std, mean: sum_row(row, (k) => Math.abs(x[k])) / row.length };
      };
      const each = (i, { std, mean }) =>
        (Math.abs(layer_norm.weight(o, i) * s[i]) / std) * (Math.abs(x[i]) + mean);
      const terms = 8 * sum_of(by_row(o, state, each));
      return b === null
        ? terms
        : terms + 2 * total(s.length, (j) => Math.abs(b[j % b.length] * s[j]));
    },
    column(o, k, i, how) {
      const { row, mean, std } = layer_norm.row(o, i);
      const hat = (n) => (o.x[0][n] - mean) / std;
      const moves = (j) =>
        (i === j ? 1 : 0) -
        (how.uncentered ? 0 : 1 / row.length) -
        (how.differentiated ? (hat(i) * hat(j)) / row.length : 0);
      const symbol = [
        "delta_ij",
        how.uncentered ? "" : " - 1/N",
        how.differentiated ? " - xhat_i xhat_j / N" : "",
      ].join("");
      const some = how.uncentered ? [i] : row;
      return some.map((j) => ({
        j,
        at: `j = ${j - row[0]}`,
        pieces: [piece(symbol, moves(j)), piece("w_j", layer_norm.weight(o, j)), over("std", std)],
      }));
    },
    worked(o, i) {
      const { mean, std } = layer_norm.row(o, i);
      const own = term("", [
        piece("x_i - mean", o.x[0][i] - mean),
        over("std", std),
        piece("w_i", layer_norm.weight(o, i)),
      ]);
      return o.x[2] === null
        ? [own]
        : [own, term("bias", [piece("b_i", o.x[2][i % last(o.shape)])])];
    },
    symbols: { x: ["x_i"], z: "z_j", r: "R_j", g: "g_j" },
  };

  const full_layer_norm = {
    ...layer_norm,
    back: (o, g, how) => layer_norm.back(o, g, { ...how, differentiated: true }),
    column: (o, k, i, how) => layer_norm.column(o, k, i, { ...how, differentiated: true }),
    bias: layer_norm.whole_bias,
  };

  // -- activation.py ------------------------------------------------------------------------------

  const SATURATED = 100; // beyond this both gelu gates are 0 or 1 to the last bit
  const clipped = (x) => Math.min(Math.max(x, -SATURATED), SATURATED);

  // 1 / (1 + exp(-x)), never exponentiating a positive number
  function sigmoid(x) {
    const e = Math.exp(-Math.abs(x));
    return (x >= 0 ? 1 : e) / (1 + e);
  }

  // The coefficients of refl.arrays.erfc, made by refl/verification/quality/erfc_coefficients.py.
  const ERFC = [
    1.095995661000491, -0.9765487290808824, 0.7732087022652306, -0.5408538313131976,
    0.33085158787831587, -0.1740109372408923, 0.07638151490371081, -0.026370053329181024,
    0.006112055708386392, -0.0002809589359391201, -0.00045505297165692805, 0.0001768130806560407,
    -3.6342038149469713e-6, -1.8861473378981353e-5, 4.692383913754639e-6, 1.4249464173304702e-6,
    -8.436516120561793e-7, -7.596899328669503e-8, 1.225288207064525e-7, 8.238240856147602e-10,
    -1.527528889990648e-8, 2.654454508348017e-10, 1.2073816594065525e-9,
  ];

  // erfc(x) = exp(-x^2) P(t) / (x + 4),  t = (x - 4) / (x + 4) for x >= 0, and 2 - erfc(-x) below.
  // exp(-x^2) in two factors, so that x^2 does not round in the exponent (the device of W. J. Cody,
  // Math. Comp. 23, 1969).
  function erfc(x) {
    const a = Math.abs(x);
    const t = (a - 4) / (a + 4);
    const p = ERFC.reduceRight((sum, coefficient) => sum * t + coefficient, 0);
    const head = Math.round(a * 16) / 16; // few enough bits that head * head is exact
    const tail = (Math.exp(-head * head) * Math.exp(-(a - head) * (a + head)) * p) / (a + 4);
    return x < 0 ? 2 - tail : tail;
  }

  const normal_cdf = (x) => erfc(-clipped(x) * Math.SQRT1_2) / 2;
  const tanh_argument = (x, a) => a * x * (1 + 0.044715 * x * x); // 2u
  const TWICE = Math.sqrt(8 / Math.PI); // of gelu_tanh
  const TWICE_FAST = 2 * 0.7978845608; // of gelu_fast
  const step = (x) => (x > 0 ? 1 : 0);

  // f(x) = x gate(x), but for tanh
  const GATES = {
    gelu: normal_cdf, // Phi(x)
    gelu_tanh: (x) => sigmoid(tanh_argument(clipped(x), TWICE)),
    gelu_fast: (x) => sigmoid(tanh_argument(clipped(x), TWICE_FAST)),
    silu: sigmoid,
    quick_gelu: (x) => sigmoid(1.702 * x),
    relu: step,
    relu2: (x) => x * step(x),
  };

  function gelu_tanh_slope(x, a) {
    const c = clipped(x);
    const gate = sigmoid(tanh_argument(c, a));
    return gate + c * gate * sigmoid(-tanh_argument(c, a)) * a * (1 + 3 * 0.044715 * c * c);
  }

  // f'(x)
  const SLOPES = {
    gelu(x) {
      const c = clipped(x);
      return normal_cdf(c) + c * Math.exp((-c * c) / 2) * Math.sqrt(0.5 / Math.PI);
    },
    gelu_tanh: (x) => gelu_tanh_slope(x, TWICE),
    gelu_fast: (x) => gelu_tanh_slope(x, TWICE_FAST),
    silu: (x) => sigmoid(x) * (1 + x * sigmoid(-x)),
    quick_gelu: (x) => sigmoid(1.702 * x) * (1 + 1.702 * x * sigmoid(-1.702 * x)),
    relu: step,
    relu2: (x) => 2 * x * step(x),
    // 1 - tanh(x)^2 has no digits left where tanh is near 1
    tanh(x) {
      const e = Math.exp(-2 * Math.abs(x));
      return (4 * e) / (1 + e) ** 2;
    },
  };
  // f'(0), the limit of f(x) / x
  const AT_ZERO = {
    gelu: 0.5,
    gelu_tanh: 0.5,
    gelu_fast: 0.5,
    silu: 0.5,
    quick_gelu: 0.5,
    relu: 0,
    relu2: 0,
    tanh: 1,
  };

  const activation = {
    forward: (o) => o.x[0].map(o.kind === "tanh" ? Math.tanh : (x) => x * GATES[o.kind](x)),
    // f(x) / x, at x = 0 its limit f'(0)
    ratio: (o, i) => (o.x[0][i] === 0 ? AT_ZERO[o.kind] : o.z[i] / o.x[0][i]),
    slope: (o, i) => SLOPES[o.kind](o.x[0][i]),
    worked: (o, i) =>
      o.kind === "tanh"
        ? [term("", [piece("tanh(x_i)", o.z[i])])]
        : [
            term("", [
              piece("x_i", o.x[0][i]),
              piece(`gate(x_i), ${o.kind}`, GATES[o.kind](o.x[0][i])),
            ]),
          ],
  };

  // g_x = g f(x) / x  (AttnLRP eq. 9 in gradient x input form), or g f'(x)
  function entry_rule(symbol, coefficient, absorbs = none_absorbed, times = 1) {
    return {
      relevance: (o, g) => ({
        inputs: [made(o.size, (i) => g[i] * coefficient(o, i))],
        absorbed: absorbs(o, g),
        scale:
          times *
          (amounts_of(o, g) + total(o.size, (i) => Math.abs(o.x[0][i] * coefficient(o, i) * g[i]))),
      }),
      worked: (o, g, how, k, i) => ({
        factor: null,
        terms: [term("j = i", [piece("g_i", g[i]), piece(symbol, coefficient(o, i))])],
      }),
    };
  }

  // activation_offset: sum g (f(x) - x f'(x))
  const activation_offset = (o, g) => ({
    activation_offset: total(o.size, (i) => g[i] * (o.z[i] - o.x[0][i] * activation.slope(o, i))),
  });

  // -- scale.py -----------------------------------------------------------------------------------

  // z = c x
  const scale = {
    forward: (o) => o.x[0].map((x) => x * o.factor),
    worked: (o, i) => [term("", [piece("c", o.factor), piece("x_i", o.x[0][i])])],
  };

  // -- rotary.py ----------------------------------------------------------------------------------

  // z = x cos + rot(x) sin,  rot([x1, x2]) = [-x2, x1]
  const rotary = {
    // The entry of the other half, and the sign with which rot puts it at j.
    partner(o, j) {
      const width = last(o.shape);
      const first = j % width < width / 2;
      return { other: first ? j + width / 2 : j - width / 2, sign: first ? -1 : 1 };
    },
    forward: (o) =>
      made(o.size, (j) => {
        const { other, sign } = rotary.partner(o, j);
        return o.x[0][j] * o.cos[j] + sign * o.x[0][other] * o.sin[j];
      }),
    // J^T s = s cos + rot^T(s sin)
    back: (o, s) => [
      made(o.size, (i) => {
        const { other, sign } = rotary.partner(o, i);
        return s[i] * o.cos[i] - sign * s[other] * o.sin[other];
      }),
    ],
    bias: none_absorbed,
    scale: (o, s) =>
      2 *
      total(o.size, (j) => {
        const { other } = rotary.partner(o, j);
        const terms = Math.abs(o.x[0][j] * o.cos[j]) + Math.abs(o.x[0][other] * o.sin[j]);
        return terms * Math.abs(s[j]);
      }),
    column(o, k, i) {
      const { other, sign } = rotary.partner(o, i);
      const width = last(o.shape);
      return [
        { j: i, at: `j = ${i % width}`, pieces: [piece("cos_j", o.cos[i])] },
        {
          j: other,
          at: `j = ${other % width}`,
          pieces: [piece(sign < 0 ? "sin_j" : "-sin_j", -sign * o.sin[other])],
        },
      ];
    },
    worked(o, j) {
      const { other, sign } = rotary.partner(o, j);
      return [
        term("x", [piece("x_j", o.x[0][j]), piece("cos_j", o.cos[j])]),
        term("rot(x)", [
          piece(sign < 0 ? "-x_k" : "x_k", sign * o.x[0][other]),
          piece("sin_j", o.sin[j]),
        ]),
      ];
    },
    symbols: { x: ["x_i"], z: "z_j", r: "R_j", g: "g_j" },
  };

  // -- movement.py --------------------------------------------------------------------------------

  // z_k = x_from(k), the inputs laid end to end
  const movement = {
    starts(o) {
      let start = 0;
      return o.x.map((x) => (start += x.length) - x.length);
    },
    forward(o) {
      const whole = o.x.flatMap((x) => Array.from(x));
      return made(o.size, (k) => (o.from[k] < 0 ? 0 : whole[o.from[k]]));
    },
    worked(o, k) {
      return o.from[k] < 0 ? [] : [term("", [piece("x_from(k)", o.z[k])])];
    },
  };

  // R_x = sum over the copies of R_k; the same for gradients
  const pass_through = (symbol, form) => ({
    relevance(o, r) {
      const whole = new Float64Array(o.x.reduce((count, x) => count + x.length, 0));
      for (let k = 0; k < o.size; k++) if (o.from[k] >= 0) whole[o.from[k]] += r[k];
      const inputs = movement
        .starts(o)
        .map((start, n) => whole.slice(start, start + o.x[n].length));
      return { inputs, absorbed: {}, scale: form(o, r) };
    },
    worked(o, r, how, n, i) {
      const flat = movement.starts(o)[n] + i;
      const some = Array.from(o.from.keys()).filter((k) => o.from[k] === flat);
      return {
        factor: null,
        terms: some.map((k) => term(entry(o, k).replace("j", "k"), [piece(symbol, r[k])])),
      };
    },
  });

  // -- embedding.py, learned.py -------------------------------------------------------------------

  // z_t = E[id_t]
  const embedding = {
    forward: (o) => made(o.size, (j) => o.x[0][embedding.cell(o, j)]),
    cell: (o, j) => o.ids[Math.floor(j / last(o.shape))] * last(o.shape) + (j % last(o.shape)),
    worked: (o, j) => {
      const id = o.ids[Math.floor(j / last(o.shape))];
      return [term(`row ${id} of the table`, [piece("E_id", o.z[j])])];
    },
  };

  // z = E: a tensor of the checkpoint
  const learned = {
    forward: (o) => made(o.size, (j) => o.x[0][j % o.x[0].length]),
    worked: (o, j) => [term("", [piece("E_j", o.z[j])])],
  };

  // z = x: numbers from the start
  const source = {
    forward: (o) => o.z,
    worked: (o, j) => [term("", [piece("x_j", o.z[j])])],
  };

  // -- pooling.py ---------------------------------------------------------------------------------

  // z_d = sum_t m_t x_td / sum_t m_t
  const pooling = {
    width: (o) => last(o.shape),
    counts: (o, t) => (o.counted ? o.counted[t] : 1),
    rows: (o) => Array.from({ length: o.x[0].length / pooling.width(o) }, (_, t) => t),
    count: (o) => sum_row(pooling.rows(o), (t) => pooling.counts(o, t)),
    // Z_d = sum_t m_t x_td
    whole: (o, x = o.x[0]) =>
      made(o.size, (d) =>
        sum_row(pooling.rows(o), (t) => pooling.counts(o, t) * x[t * o.size + d]),
      ),
    forward: (o) => pooling.whole(o).map((sum) => sum / pooling.count(o)),
    back: (o, s) => [
      made(o.x[0].length, (i) => pooling.counts(o, Math.floor(i / o.size)) * s[i % o.size]),
    ],
    bias: none_absorbed,
    scale: (o, s) => 2 * sum_of_products(pooling.whole(o, absolute(o.x[0])), absolute(s)),
    column: (o, k, i) => [
      {
        j: i % o.size,
        at: `d = ${i % o.size}`,
        pieces: [piece("m_t", pooling.counts(o, Math.floor(i / o.size)))],
      },
    ],
    worked: (o, d) =>
      pooling
        .rows(o)
        .map((t) =>
          term(`t = ${t}`, [
            piece("m_t", pooling.counts(o, t)),
            piece("x_td", o.x[0][t * o.size + d]),
            over("sum_t m_t", pooling.count(o)),
          ]),
        ),
    symbols: { x: ["x_td"], z: "Z_d", r: "R_d", g: "g_d" },
  };

  // -- tables -------------------------------------------------------------------------------------

  const OPERATIONS = {
    linear,
    add,
    multiply,
    matmul,
    softmax,
    rms_norm,
    layer_norm,
    activation,
    scale,
    rotary,
    movement,
    embedding,
    learned,
    source,
    pooling,
  };

  const two = () => 2;
  const role = (o) => o.role;

  // operation.function, as the files of rules/ name them
  const RULES = {
    "linear.epsilon": epsilon_rule(linear),
    "linear.gradient": gradient_rule(linear),
    "add.epsilon": epsilon_rule(add),
    "add.gradient": gradient_rule(add),
    "multiply.uniform": multiply_uniform,
    "multiply.uniform_gxi": gradient_rule(multiply, halves(multiply.split_by)),
    "multiply.second_gxi": gradient_rule(only_second(multiply)),
    "multiply.gradient": gradient_rule(multiply, () => 1, product_offset(multiply.split_by)),
    "matmul.uniform": matmul_uniform,
    "matmul.uniform_gxi": gradient_rule(matmul, halves(two)),
    "matmul.second_gxi": gradient_rule(only_second(matmul)),
    "matmul.gradient": gradient_rule(matmul, () => 1, product_offset(two)),
    "softmax.taylor": softmax_rule("R"),
    "softmax.gradient": softmax_rule("g"),
    "softmax.constant": end_rule("R", () => "constant"),
    "softmax.constant_gxi": end_rule("g", () => "constant"),
    "rms_norm.identity": identity_rule,
    "rms_norm.identity_gxi": rms_identity,
    "rms_norm.gradient": gradient_rule(rms_norm),
    "layer_norm.epsilon": epsilon_rule(layer_norm),
    "layer_norm.epsilon_gxi": gradient_rule(layer_norm),
    "layer_norm.gradient": gradient_rule(full_layer_norm),
    "activation.identity": identity_rule,
    "activation.identity_gxi": entry_rule("f(x_i) / x_i", activation.ratio),
    "activation.gradient": entry_rule("f'(x_i)", activation.slope, activation_offset, 3),
    "scale.pass_through": identity_rule,
    "scale.gradient": entry_rule("c", (o) => o.factor),
    "rotary.epsilon": epsilon_rule(rotary),
    "rotary.gradient": gradient_rule(rotary),
    "movement.pass_through": pass_through("R_k", (o, r) => size_of(r)),
    "embedding.leaf": end_rule("R", role),
    "embedding.leaf_gxi": end_rule("g", role),
    "learned.leaf": end_rule("R", role),
    "learned.leaf_gxi": end_rule("g", role),
    "source.leaf": end_rule("R", role),
    "source.leaf_gxi": end_rule("g", role),
    "pooling.epsilon": epsilon_rule(pooling),
    "pooling.gradient": gradient_rule(pooling, pooling.count),
  };

  // The full derivative of a norm where its rule was asked for: in relevance form over z.
  const NORMS = { rms_norm, layer_norm: full_layer_norm };
  const UNSTABILIZED = { eps: 0, stabilizer: "none" };
  const differentiated = (name) => {
    const jacobian = { ...NORMS[name], bias: none_absorbed };
    const over_z = epsilon_rule(jacobian);
    return {
      R: {
        relevance: (o, r, how) => over_z.relevance(o, r, { ...UNSTABILIZED, ...how }),
        worked: (o, r, how, k, i) => over_z.worked(o, r, { ...UNSTABILIZED, ...how }, k, i),
      },
      g: gradient_rule(jacobian),
    };
  };
  const DIFFERENTIATED = {
    rms_norm: differentiated("rms_norm"),
    layer_norm: differentiated("layer_norm"),
  };

  // -- mistakes -----------------------------------------------------------------------------------

  const named = (stop, m) =>
    stop.rules[m] === null ? "" : `${stop.operation}.${stop.rules[m].function}`;
  const one_of =
    (...names) =>
    (stop, m) =>
      names.includes(named(stop, m));

  const MISTAKES = [
    {
      id: "eps_without_sign",
      title: "eps without the sign of z",
      says: "the denominator is z + eps, which for z < 0 brings it nearer to zero",
      applies: (stop, m) => stop.rules[m] !== null && stop.rules[m].options.stabilizer === "sign",
    },
    {
      id: "no_halving",
      title: "products not divided by N",
      says: "every factor of a product receives all of its relevance",
      applies: (stop, m) =>
        one_of("matmul.uniform", "matmul.uniform_gxi")(stop, m) ||
        (one_of("multiply.uniform", "multiply.uniform_gxi")(stop, m) &&
          multiply.split_by(stop.attributes) > 1),
    },
    {
      id: "shifted_logits",
      title: "softmax of logits less their maximum",
      says: "for x_i stands x_i - max: the same p, the same sum, and other elements",
      applies: one_of("softmax.taylor"),
    },
    {
      id: "layer_norm_constant",
      title: "LayerNorm's mean and std read as constants",
      says: "on the way back x is not centered: what the mean carried is lost",
      applies: one_of("layer_norm.epsilon", "layer_norm.epsilon_gxi"),
    },
    {
      id: "norm_differentiated",
      title: "the norm's full derivative in place of its rule",
      says: "1 / rms, or 1 / std, is differentiated too, which annuls almost all of R",
      applies: one_of(
        "layer_norm.epsilon",
        "layer_norm.epsilon_gxi",
        "rms_norm.identity",
        "rms_norm.identity_gxi",
      ),
    },
  ];

  const planted = (stop, m, { mistake }) =>
    Boolean(mistake) && MISTAKES.find(({ id }) => id === mistake).applies(stop, m);

  // The options of a stop's rule: its own, another eps, and what a mistake changes.
  function options(stop, m, how) {
    const own = { ...stop.rules[m].options };
    if (how.eps !== undefined && "eps" in own) own.eps = how.eps;
    if (!planted(stop, m, how)) return own;
    if (how.mistake === "eps_without_sign") own.stabilizer = "plain";
    if (how.mistake === "layer_norm_constant") own.uncentered = true;
    return { ...own, mistake: how.mistake };
  }

  function chosen(c, stop, m, how) {
    const wrong = planted(stop, m, how) && how.mistake === "norm_differentiated";
    return wrong ? DIFFERENTIATED[stop.operation][form(c, m)] : RULES[named(stop, m)];
  }

  const form = (c, m) => (c.data.methods[m].formulation === "gradient_x_input" ? "g" : "R");

  // -- what the page asks -------------------------------------------------------------------------

  function works(stop, m) {
    if (!(stop.operation in OPERATIONS)) return false;
    return m === undefined || (stop.rules[m] !== null && named(stop, m) in RULES);
  }

  const forward = (c, stop) => c.operation(stop).z;

  const arrived = (c, stop, m) =>
    c.propagated(stop.output, m) || new Float64Array(c.operation(stop).size);

  // What the operands receive. Under a mistake: by the wrong rule, with what the right one absorbs.
  function relevance(c, stop, m, how = {}) {
    const o = c.operation(stop);
    const apply = (way) =>
      chosen(c, stop, m, way).relevance(o, arrived(c, stop, m), options(stop, m, way));
    const found = apply(how);
    const right = planted(stop, m, how) ? apply({ eps: how.eps }) : found;
    return {
      inputs: found.inputs.map((r, k) => (o.received_by[k] ? r : null)),
      absorbed: right.absorbed,
      z: o.z,
      scale: Math.max(found.scale, right.scale),
    };
  }

  // sum R, or sum x g
  function sum(c, value, propagated, m) {
    if (propagated === null) return 0;
    return form(c, m) === "g" ? sum_of_products(c.value(value), propagated) : sum_of(propagated);
  }

  const SILENT = {
    received: 0,
    passed: [],
    absorbed: {},
    error: 0,
    bound: 0,
    closed: true,
    worst: null,
    bound_of_elements: 0,
    agrees: true,
    ok: true,
  };

  function audit(c, stop, m, how = {}) {
    if (stop.rules[m] === null) return { ...SILENT, passed: stop.operands.map(() => null) };
    const found = relevance(c, stop, m, how);
    const passed = found.inputs.map((r, k) => (r === null ? null : amount(c, stop, m, k, r)));
    const received = amount(c, stop, m, null, arrived(c, stop, m));
    const out = [...passed.filter((p) => p !== null), ...Object.values(found.absorbed)];
    const error = total(out.length + 1, (n) => (n === 0 ? received : -out[n - 1]));
    const bound = ALLOWED * U * found.scale;
    const elements = compared(c, stop, m, how, found.inputs);
    const closed = Math.abs(error) <= bound;
    return {
      received,
      passed,
      absorbed: found.absorbed,
      error,
      bound,
      closed,
      ...elements,
      ok: closed && elements.agrees,
    };
  }

  // The amount of relevance at operand k, or at the output for null.
  function amount(c, stop, m, k, r) {
    if (form(c, m) === "R") return sum_of(r);
    const o = c.operation(stop);
    return sum_of_products(k === null ? o.z : o.x[k], r);
  }

  // Element by element against the right rule, whose own rounding is all that may differ.
  function compared(c, stop, m, how, inputs) {
    if (!planted(stop, m, how)) return { worst: null, bound_of_elements: 0, agrees: true };
    const right = relevance(c, stop, m, { eps: how.eps }).inputs;
    let worst = null;
    let largest = 0;
    inputs.forEach((r, operand) => {
      if (r === null) return;
      r.forEach((r_i, index) => {
        const difference = r_i - right[operand][index];
        largest = Math.max(largest, Math.abs(right[operand][index]));
        if (difference !== 0 && !(worst && Math.abs(difference) <= Math.abs(worst.difference))) {
          worst = { operand, index, difference };
        }
      });
    });
    const bound_of_elements = ALLOWED * U * largest;
    const agrees = worst === null || Math.abs(worst.difference) <= bound_of_elements;
    return { worst, bound_of_elements, agrees };
  }

  function worked_forward(c, stop, j) {
    const o = c.operation(stop);
    const symbol = {
      matmul: "O_jp",
      softmax: "p_i",
      movement: "z_k",
      embedding: "z_td",
      pooling: "z_d",
    };
    const note = stop.operation === "softmax" && !softmax.visible(o, j) ? "masked" : undefined;
    return worked(
      symbol[stop.operation] || "z_j",
      unravel(j, o.shape),
      null,
      OPERATIONS[stop.operation].worked(o, j),
      note,
    );
  }

  function worked_relevance(c, stop, m, k, i, how = {}) {
    const o = c.operation(stop);
    if (relevance(c, stop, m, how).inputs[k] === null) {
      const none = "a constant here: it receives nothing";
      return worked(`${form(c, m)}_i`, unravel(i, o.shapes[k]), null, [], none);
    }
    const { factor, terms, note } = chosen(c, stop, m, how).worked(
      o,
      arrived(c, stop, m),
      options(stop, m, how),
      k,
      i,
    );
    const letter = form(c, m);
    const of = {
      matmul: k === 0 ? "A_ji" : "V_ip",
      add: k === 0 ? "a_i" : "b_i",
      multiply: `a${k + 1}_i`,
    };
    const symbol = of[stop.operation] ? `${letter}(${of[stop.operation]})` : `${letter}_i`;
    return worked(symbol, unravel(i, o.shapes[k]), factor, terms, note);
  }

  // What each reader of a value passes on to it, in the sweep's order; [] where one of them is an
  // operation that is not implemented here, so that what is there is always the whole sum.
  function fan_in(c, value, m) {
    const readers = c.data.values[value].read_by.map((reader) => c.data.stops[reader]);
    const reached = readers.filter((stop) => stop.rules[m] !== null);
    if (!reached.every((stop) => works(stop, m))) return [];
    const in_order = reached.sort((a, b) => b.index - a.index);
    return in_order.flatMap((stop) => passed_to(c, stop, m, value));
  }

  function passed_to(c, stop, m, value) {
    const { inputs } = relevance(c, stop, m);
    const reads = (operand, k) => operand !== null && operand.value === value && inputs[k] !== null;
    return stop.operands.flatMap((operand, k) =>
      reads(operand, k) ? [{ stop: stop.index, operand: k, amounts: inputs[k] }] : [],
    );
  }

  // Rules that are the derivative of what they undo: epsilon's gradient x input form is gradient.
  const DERIVATIVES = ["linear", "add", "rotary", "pooling", "softmax", "combine"];
  // A product with a constant is linear in what is left, and is so by every rule.
  const meaning = (stop, m) =>
    (DERIVATIVES.includes(stop.operation) && ["epsilon", "taylor"].includes(stop.rules[m].rule)) ||
    (stop.operation === "multiply" && stop.attributes.constant.filter((fixed) => !fixed).length < 2)
      ? "gradient"
      : stop.rules[m].rule;

  // The stops, in the sweep's order, where two methods take different rules on what reached both.
  function parts(c, data, m1, m2) {
    return data.stops
      .filter((stop) => stop.rules[m1] !== null && stop.rules[m2] !== null)
      .filter((stop) => meaning(stop, m1) !== meaning(stop, m2))
      .map((stop) => stop.index)
      .reverse();
  }

  return {
    load,
    works,
    forward,
    relevance,
    sum,
    audit,
    worked_forward,
    worked_relevance,
    fan_in,
    parts,
    MISTAKES,
    erfc,
    unravel,
  };
})();
