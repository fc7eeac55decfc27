// The network as the notes draw it: columns of neurons, edges by weight.

const ROW = 88, TOP = 64, RADIUS = 24, WIDE = 900;
const drawn = { edges: [], neurons: [], factors: null };

function places() {
  const xs = [56];
  for (let c = 1; c < data.columns.length; c++) {
    const feeding = data.bundles.filter((b) => b.to === c);
    const diagonal = feeding.every((b) => b.edges.every((e) => e.a === e.b)) && data.columns[c].kind !== "loss";
    xs.push(xs[c - 1] + (data.columns[c].kind === "weights" ? 172 : diagonal ? 112 : 120));
  }
  const rows = Math.max(...data.columns.map((c) => c.neurons.length));
  return { xs, height: TOP + rows * ROW + (data.columns.some((_, c) => hidden(c)) ? 40 : 8), y: (c, i) => TOP + ROW * (i + 0.5 + (rows - data.columns[c].neurons.length) / 2) };
}

function draw() {
  const { xs, height, y } = places();
  const width = xs[xs.length - 1] + Math.max(56, 8 + 3.6 * brief(data.columns.at(-1)).length);
  const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": "The network" });
  root.style.width = "100%";
  root.style.maxWidth = `${1.2 * width}px`;
  root.style.setProperty("--least", `${Math.min(width, 620)}px`);
  if (width > WIDE) {  // many columns: over the whole page, and scrolled rather than shrunk
    document.querySelector("main").classList.add("wide");
    root.style.setProperty("--least", `${0.9 * width}px`);
  }
  data.bundles.forEach((bundle, b) => {
    drawn.edges[b] = bundle.edges.map((edge, e) => {
      const line = { x1: xs[bundle.from], y1: y(bundle.from, edge.a), x2: xs[bundle.to], y2: y(bundle.to, edge.b) };
      const g = svg("g", { class: "edge" }, svg("line", { class: "hit", ...line }), svg("line", { class: "line", ...line }));
      if (edge.weight !== null && byWeight.has(edge.weight)) {
        asButton(g, () => choose(byWeight.get(edge.weight)));
        g.dataset.weight = edge.weight;
      }
      g.dataset.from = neuron(bundle.from, edge.a);
      g.dataset.to = neuron(bundle.to, edge.b);
      hover(g, () => edgeText(bundle, edge, b, e));
      root.append(g);
      return g;
    });
  });
  data.columns.forEach((column, c) => {
    const heading = svg("text", { class: "column", x: xs[c], y: 22 });
    heading.append(column.kind === "loss" ? "L" : column.name);
    root.append(heading, svg("text", { class: "by", x: xs[c], y: 39 }, column.kind === "input" ? "input" : brief(column)));
    drawn.neurons[c] = column.neurons.map(({ name }, i) => {
      const g = svg("g", { class: "neuron", transform: `translate(${xs[c]} ${y(c, i)})` });
      g.append(svg("circle", { r: RADIUS }), svg("text", { class: "val", y: 4 }), svg("text", { class: "label", y: -RADIUS - 5 }, name),
        svg("text", { class: "err", y: RADIUS + 13 }));
      g.dataset.name = name;
      const own = column.kind === "input" ? byWeight.get(name) : biasOf.get(`${c},${i}`);
      if (own !== undefined) asButton(g, () => choose(own));
      else g.setAttribute("role", "img");
      hover(g, () => neuronText(c, i));
      root.append(g);
      return g;
    });
    if (!column.neurons.length) {
      root.append(svg("text", { class: "more", x: xs[c], y: height / 2 }, "whole numbers:"), svg("text", { class: "more", x: xs[c], y: height / 2 + 18 }, "no derivative"));
    }
    if (hidden(c)) {
      root.append(svg("text", { class: "more", x: xs[c], y: height - 16 }, `+ ${plural(hidden(c), "more", "more")}`));
    }
  });
  drawn.factors = svg("g", { "aria-hidden": "true" });
  root.append(drawn.factors);
  drawn.place = { xs, y };
  $("scroll").replaceChildren(root);
  new ResizeObserver(([{ target }]) => {  // is there more than can be seen?
    $("scrolls").hidden = target.scrollWidth <= target.clientWidth + 1 && target.scrollHeight <= target.clientHeight + 1;
  }).observe($("scroll"));
}
function brief(column) {
  const [, name, size] = column.by.match(/^(\w+)\(?(\d[^,)]*)?/) ?? [null, "sum"];
  const shown = size ? `${name}(${size})` : name;
  return shown.length > 20 ? `${shown.slice(0, 19)}…` : shown;
}
function asButton(g, act) {
  g.classList.add("button");
  g.setAttribute("tabindex", "0");
  g.setAttribute("role", "button");
  g.addEventListener("click", act);
  g.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      act();
    }
  });
}
function edgeText(bundle, edge, b, e) {
  const by = neuron(bundle.from, edge.a), of = neuron(bundle.to, edge.b), v = frame().factors[b][e];
  const lines = edge.weight ? [`${edge.weight} = ${num(v)}`] : [`∂${of}/∂${by} = ${edge.text ? `${edge.text} = ` : ""}${num(v)}`];
  if (edge.weight && byWeight.has(edge.weight)) {
    lines.push(`∂L/∂${edge.weight} = ${num(frame().gradients[byWeight.get(edge.weight)])}`);
  }
  return [...lines, `from ${by} to ${of}`].join("\n");
}
function neuronText(c, i) {
  const column = c === 0 ? data.example.columns[neuron(c, i)] : undefined;
  const lines = [...(column ? [column] : []), `${neuron(c, i)} = ${num(value(c, i))}`];
  if (data.columns[c].kind !== "loss") lines.push(`${deltaName(c, i)} = ${num(error(c, i))}`);
  const bias = biasOf.get(`${c},${i}`);
  if (bias !== undefined) lines.push(`${data.targets[bias].name} = ${num(frame().weights[bias])}`);
  return lines.join("\n");
}
function hover(g, text) {
  const tip = $("tip");
  const show = (x, y) => {
    tip.textContent = text();
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(4, Math.min(x + 14, innerWidth - box.width - 6))}px`;
    tip.style.top = `${Math.max(4, Math.min(y + 14, innerHeight - box.height - 6))}px`;
  };
  g.addEventListener("pointermove", (event) => show(event.clientX, event.clientY));
  g.addEventListener("focus", () => {
    if (!g.matches(":focus-visible")) return;
    const box = g.getBoundingClientRect();
    show(box.right, box.bottom);
  });
  for (const name of ["pointerleave", "blur"]) g.addEventListener(name, () => (tip.hidden = true));
  g.describe = text;
}

function showNetwork(paths) {
  exact($("loss"), frame().loss, 8);
  const chosen = target(), stage = stages[state.stage];
  const onPath = new Set(), onNow = new Set(), litNodes = new Set();
  const current = state.path === null ? paths : [paths[state.path]];
  for (const path of current) {
    for (const edge of path.edges) (state.path === null ? onPath : onNow).add(`${edge.k},${edge.e}`);
    for (const [c, i] of nodesOf(path)) litNodes.add(`${c},${i}`);
  }
  const biggest = Math.max(1e-12, ...data.bundles.flatMap((bundle, b) => bundle.edges.map((edge, e) => (edge.weight ? Math.abs(frame().factors[b][e]) : 0))));
  data.bundles.forEach((bundle, b) => bundle.edges.forEach((edge, e) => {
    const g = drawn.edges[b][e], v = frame().factors[b][e], key = `${b},${e}`;
    const mine = edge.weight !== null && edge.weight === chosen.name;
    g.setAttribute("class", ["edge",
      edge.weight !== null ? (v < 0 ? "neg" : "pos") : "",
      byWeight.has(edge.weight) ? "button" : "",
      stage.kind === "all" && (mine || (chosen.kind === "input" && startsWith(current, bundle, edge))) ? "chosen" : stage.kind !== "all" ? "" : onNow.has(key) ? "now" : onPath.has(key) ? "lit" : "",
      dimEdge(stage, bundle, mine || onNow.has(key) || onPath.has(key)) ? "dim" : ""].filter(Boolean).join(" "));
    const width = edge.weight === null ? 1.2 : 0.6 + (bundle.edges.length > 40 ? 2.4 : 5.2) * Math.abs(v) / biggest;
    g.querySelector(".line").style.strokeWidth = stage.kind === "all" && (mine || onNow.has(key)) ? "" : width;
    g.dataset.value = v;
    if (g.classList.contains("button")) {
      g.setAttribute("aria-label", g.describe().replaceAll("\n", ", "));
      g.setAttribute("aria-pressed", String(mine));
    }
  }));
  data.columns.forEach((column, c) => column.neurons.forEach((_, i) => {
    const g = drawn.neurons[c][i];
    const seen = { value: valueSeen(stage, c), error: errorSeen(stage, c) && column.kind !== "loss" };
    g.querySelector(".val").textContent = seen.value ? inside(value(c, i)) : "";
    g.querySelector(".err").textContent = seen.error ? short(error(c, i)) : "";
    g.dataset.value = value(c, i);
    g.dataset.error = error(c, i);
    g.classList.toggle("dim", !seen.value);
    g.classList.toggle("lit", stage.kind === "all" && (litNodes.has(`${c},${i}`) || chosen.name === neuron(c, i)));
    g.classList.toggle("arriving", stage.c === c);
    g.setAttribute("aria-label", g.describe().replaceAll("\n", ", "));
  }));
  showFactors(state.path === null ? null : paths[state.path]);
}
function startsWith(paths, bundle, edge) {
  return bundle.from === 0 && data.columns[0].neurons[edge.a].name === target().name
    && paths.some((p) => p.start.to === bundle.to && p.start.b === edge.b);
}
const valueSeen = (stage, c) => stage.kind !== "forward" || c <= stage.c;
const errorSeen = (stage, c) => stage.kind === "all" || stage.kind === "update" || (stage.kind === "backward" && c >= stage.c);
function dimEdge(stage, bundle, marked) {
  if (stage.kind === "forward") return bundle.to > stage.c;
  if (stage.kind === "backward") return bundle.from < stage.c;
  return stage.kind === "all" && state.path !== null && !marked;
}
function showFactors(path) {
  drawn.factors.replaceChildren();
  if (path === null) return;
  const { xs, y } = drawn.place;
  const middle = (edge) => ({ x: (xs[edge.from] + xs[edge.to]) / 2, y: (y(edge.from, edge.i) + y(edge.to, edge.j)) / 2 - 7 });
  const own = into[path.start.to][path.start.b].find((edge) => edge.weight === target().name);
  if (own) drawn.factors.append(svg("text", { class: "factor first", ...middle(own) }, short(path.first)));
  for (const edge of path.edges) {
    drawn.factors.append(svg("text", { class: "factor", ...middle(edge) }, `× ${short(factor(edge))}`));
  }
}
