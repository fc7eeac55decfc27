// The graph of what is drawn, and the largest paths through it.

const out = data.columns.map((column) => column.neurons.map(() => []));
const into = data.columns.map((column) => column.neurons.map(() => []));
data.bundles.forEach((bundle, b) =>
  bundle.edges.forEach((edge, e) => {
    const record = { ...edge, k: b, e, from: bundle.from, to: bundle.to, i: edge.a, j: edge.b };
    out[bundle.from][edge.a].push(record);
    into[bundle.to][edge.b].push(record);
  }));
const byWeight = new Map(data.targets.map((t, k) => [t.name, k]));
const biasOf = new Map();
data.targets.forEach((t, k) => {
  if (t.kind === "bias") t.start.forEach((s) => biasOf.set(`${s.to},${s.b}`, k));
});
const factor = (edge) => frame().factors[edge.k][edge.e];
const hidden = (c) => data.columns[c].total - data.columns[c].neurons.length;

/** The largest paths among the neurons shown: each neuron keeps its best few, from the loss back. */
function pathsOf(k) {
  const best = data.columns.map((column) => column.neurons.map(() => []));
  const last = data.columns.length - 1;
  best[last][0] = [{ product: 1, edges: [] }];
  for (let c = last - 1; c >= 0; c--) {
    data.columns[c].neurons.forEach((_, i) => {
      const all = out[c][i].flatMap((edge) =>
        best[edge.to][edge.j].map((p) => ({ product: p.product * factor(edge), edges: [edge, ...p.edges] })));
      best[c][i] = largest(all);
    });
  }
  const found = data.targets[k].start.flatMap((start, s) =>
    best[start.to][start.b].map((p) => ({
      start, first: frame().starts[k][s], edges: p.edges,
      contribution: p.product * frame().starts[k][s],
    })));
  return largest(found, (p) => p.contribution);
}
function largest(list, size = (p) => p.product) {
  return list
    .map((p, order) => ({ p, order, size: Number(Math.abs(size(p)).toPrecision(12)) }))
    .sort((a, b) => b.size - a.size || a.order - b.order)
    .slice(0, MOST_PATHS)
    .map(({ p }) => p);
}
const nodesOf = (path) => [[path.start.to, path.start.b], ...path.edges.map((e) => [e.to, e.j])];
const factorsOf = (path) => [path.first, ...path.edges.map(factor)];
