// What refl/walk/page/rules.js makes of one walk, all of it: run by tests/support/rules_page.py.

function everything(Rules, data, buffer) {
  const c = Rules.load(data, buffer);
  const list = (a) => (a === null ? null : Array.from(a));
  const some = (count) => [...new Set([0, 1, count >> 1, count - 1])].filter((i) => i >= 0 && i < count);

  function at_rule(stop, m) {
    if (!Rules.works(stop, m)) return null;
    const { inputs, absorbed } = Rules.relevance(c, stop, m);
    return {
      inputs: inputs.map(list),
      absorbed,
      audit: Rules.audit(c, stop, m),
      worked: inputs.map((r, k) => r && some(r.length).map((i) => [i, Rules.worked_relevance(c, stop, m, k, i)])),
      mistakes: Rules.MISTAKES.map((mistake) => at_mistake(stop, m, mistake)),
      eps: Rules.relevance(c, stop, m, { eps: 0.25 }).inputs.map(list),
    };
  }

  function at_mistake(stop, m, { id, applies }) {
    const how = { mistake: id };
    const { inputs } = Rules.relevance(c, stop, m, how);
    const asked = applies(stop, m, data);
    return {
      id,
      applies: asked,
      audit: Rules.audit(c, stop, m, how),
      inputs: asked ? inputs.map(list) : null,
      worked: asked
        ? inputs.map((r, k) => r && some(r.length).map((i) => [i, Rules.worked_relevance(c, stop, m, k, i, how)]))
        : null,
    };
  }

  const stops = data.stops.map((stop) => {
    if (!Rules.works(stop)) return null;
    const z = Rules.forward(c, stop);
    return {
      z: list(z),
      worked: some(z.length).map((j) => [j, Rules.worked_forward(c, stop, j)]),
      rules: data.methods.map((_, m) => at_rule(stop, m)),
    };
  });
  const fan_in = data.values.map(({ id }) =>
    data.methods.map((_, m) =>
      Rules.fan_in(c, id, m).map(({ stop, operand, amounts }) => ({ stop, operand, amounts: list(amounts) }))));
  const sums = data.values.map(({ id }) =>
    data.methods.map((_, m) => Rules.sum(c, id, c.propagated(id, m), m)));
  const parts = data.methods.map((_, m) => Rules.parts(c, data, 0, m));
  return { stops, fan_in, sums, parts };
}
