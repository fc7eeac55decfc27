"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const SVG = "http://www.w3.org/2000/svg";
  const MOST_PATHS = 12;
  const state = { frame: 0, target: 0, path: null, stage: 0, timer: null, pathTimer: null };

  // --- small helpers ---------------------------------------------------------------------------

  const num = (v, digits = 6) => {
    if (v === 0) return "0";
    const shown = v.toPrecision(digits);
    return (shown.includes("e") ? shown.replace(/\.?0+e/, "e") : shown.includes(".") ? shown.replace(/\.?0+$/, "") : shown)
      .replace("-", "−").replace("e-", "e−").replace("e+", "e");
  };
  const short = (v) => {
    const [head, tail] = v.toExponential(1).split("e");
    return v !== 0 && Math.abs(v) < 1e-3 ? `${head}e${tail}`.replaceAll("-", "−") : num(v, 3);
  };
  const bracket = (v) => (v < 0 ? `(${num(v)})` : num(v));
  const group = (digits) => digits.replace(/\B(?=(\d{3})+(?!\d))/g, "\u202f");
  const plural = (count, one, many = one + "s") => `${group(String(count))} ${String(count) === "1" ? one : many}`;
  const html = (tag, props = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [key, value] of Object.entries(props)) {
      if (key in node && key !== "list") node[key] = value;
      else node.setAttribute(key, value);
    }
    node.append(...children);
    return node;
  };
  const svg = (tag, props = {}, ...children) => {
    const node = document.createElementNS(SVG, tag);
    for (const [key, value] of Object.entries(props)) node.setAttribute(key, value);
    node.append(...children);
    return node;
  };
  const exact = (node, value, digits) => {
    node.textContent = num(value, digits);
    node.dataset.value = value;
  };
  const frame = () => data.frames[state.frame];
  const target = () => data.targets[state.target];
  const value = (c, i) => frame().values[c][i];
  const error = (c, i) => frame().errors[c][i];
  const neuron = (c, i) => data.columns[c].neurons[i].name;
  const deltaName = (c, i) => {
    const { kind } = data.columns[c];
    const own = neuron(c, i);
    return kind === "weights" ? own.replace(/^a/, "δ") : `∂L/∂${own}`;
  };

  // --- the graph -------------------------------------------------------------------------------

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

  // --- drawing ---------------------------------------------------------------------------------

  const ROW = 88, TOP = 60, RADIUS = 23;
  const drawn = { edges: [], neurons: [], factors: null };

  function places() {
    const xs = [56];
    for (let c = 1; c < data.columns.length; c++) {
      const feeding = data.bundles.filter((b) => b.to === c);
      const diagonal = feeding.every((b) => b.edges.every((e) => e.a === e.b)) && data.columns[c].kind !== "loss";
      xs.push(xs[c - 1] + (data.columns[c].kind === "weights" ? 190 : diagonal ? 112 : 132));
    }
    const rows = Math.max(...data.columns.map((c) => c.neurons.length));
    return { xs, height: TOP + rows * ROW + 46, y: (c, i) => TOP + ROW * (i + 0.5 + (rows - data.columns[c].neurons.length) / 2) };
  }

  function draw() {
    const { xs, height, y } = places();
    const width = xs[xs.length - 1] + 56;
    const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": "The network" });
    root.style.width = "100%";
    root.style.minWidth = `${Math.min(width, 620)}px`;
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
      if (hidden(c)) {
        root.append(svg("text", { class: "more", x: xs[c], y: height - 22 }, `+ ${plural(hidden(c), "more", "more")}`));
      }
    });
    drawn.factors = svg("g", { "aria-hidden": "true" });
    root.append(drawn.factors);
    drawn.place = { xs, y };
    $("scroll").replaceChildren(root);
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
    const lines = [`${neuron(c, i)} = ${num(value(c, i))}`];
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

  // --- stages of the walk ----------------------------------------------------------------------

  const stages = [{ kind: "all" }];
  data.columns.forEach((_, c) => stages.push({ kind: "forward", c }));
  for (let c = data.columns.length - 2; c >= 0; c--) stages.push({ kind: "backward", c });
  stages.push({ kind: "update" });

  function stageTitle(stage) {
    if (stage.kind === "all") return "everything at once";
    if (stage.kind === "update") return "the update";
    const { name, kind } = data.columns[stage.c];
    if (stage.kind === "forward") return kind === "input" ? "the input" : `forward, ${name}`;
    return kind === "weights" ? `backward, ${name.replace(/^a/, "δ")}` : `backward, ∂L/∂${name}`;
  }
  function stageText(stage) {
    if (stage.kind === "all") return "Press Next to walk through the network: forward to the loss, then back.";
    if (stage.kind === "update") return `Every weight moves against its gradient: w := w − η ∂L/∂w, with η = ${num(data.rate)}.`;
    const { kind, by } = data.columns[stage.c];
    if (stage.kind === "forward") {
      if (kind === "input") return "The example goes in.";
      if (kind === "loss") return "The prediction meets the target: one number, the loss.";
      return kind === "sum" ? "What came over parallel ways is added." : `${by} computes`;
    }
    return kind === "weights"
      ? "The error arrives at the pre-activations. Each of them adds what comes back over its edges; met with what the layer saw, this is the gradient of every weight into it."
      : "The error arrives: each neuron adds, over its edges, the error ahead times the derivative of the edge.";
  }
  function stageLines(stage) {
    if (stage.kind === "all") return [];
    if (stage.kind === "update") {
      return data.targets.flatMap((t, k) => t.kind === "input" ? [] : [
        `${t.name} := ${num(frame().weights[k])} − ${num(data.rate)} · ${bracket(frame().gradients[k])} = ${num(frame().weights[k] - data.rate * frame().gradients[k])}`]);
    }
    return data.columns[stage.c].neurons.map((_, i) => (stage.kind === "forward" ? forwardLine : backwardLine)(stage.c, i));
  }
  function forwardLine(c, i) {
    const column = data.columns[c], own = neuron(c, i), feeding = into[c][i];
    if (column.kind === "input") return `${own} = ${num(value(c, i))}`;
    const whole = feeding.length > 0 && feeding.every((e) => e.weight !== null && hidden(e.from) === 0);
    if (whole) {
      const bias = biasOf.get(`${c},${i}`);
      const names = feeding.map((e) => `${e.weight} ${neuron(e.from, e.i)}`);
      const numbers = feeding.map((e) => `${bracket(factor(e))} · ${bracket(value(e.from, e.i))}`);
      if (bias !== undefined) {
        names.push(data.targets[bias].name);
        numbers.push(bracket(frame().weights[bias]));
      }
      return `${own} = ${names.join(" + ")} = ${numbers.join(" + ")} = ${num(value(c, i))}`;
    }
    if (column.kind === "sum") return `${own} = ${feeding.map((e) => neuron(e.from, e.i)).join(" + ")} = ${num(value(c, i))}`;
    const parts = feeding.map((e) => neuron(e.from, e.i));
    const more = feeding.some((e) => hidden(e.from) > 0) ? ", …" : "";
    const target = column.kind === "loss" ? "; y" : "";
    return `${own} = ${column.by.replace(/\(.*$/s, "") || "sum"}(${parts.join(", ")}${more}${target}) = ${num(value(c, i), column.kind === "loss" ? 12 : 6)}`;
  }
  function backwardLine(c, i) {
    const edges = out[c][i];
    const names = edges.map((e) => `${isLoss(e.to) ? "" : `${deltaName(e.to, e.j)} · `}${product(e)}`);
    const numbers = edges.map((e) => (isLoss(e.to) ? num(factor(e)) : `${bracket(error(e.to, e.j))} · ${bracket(factor(e))}`));
    const more = edges.some((e) => hidden(e.to) > 0) ? ["…"] : [];
    const left = data.columns[c].kind === "weights" ? `${deltaName(c, i)} = ∂L/∂${neuron(c, i)}` : deltaName(c, i);
    const shown = [[...names, ...more].join(" + "), [...numbers, ...more].join(" + "), num(error(c, i))];
    return [left, ...shown.filter((s, k) => s && s !== shown[k - 1])].join(" = ");
  }
  const isLoss = (c) => data.columns[c].kind === "loss";
  const product = (e) => (e.text === null ? `∂${neuron(e.to, e.j)}/∂${neuron(e.from, e.i)}` : e.loose ? `(${e.text})` : e.text);

  // --- MathML ----------------------------------------------------------------------------------

  const slope = (of, by) => `<mfrac><mrow><mo>∂</mo>${of}</mrow><mrow><mo>∂</mo>${by}</mrow></mfrac>`;
  const mathName = (c, i) => data.columns[c].neurons[i].math;
  const targetMath = () => target().math ?? `<mtext>${target().name.replace(/[<>&]/g, "")}</mtext>`;
  const MINUS = '<mo form="prefix" lspace="0" rspace="0">−</mo>';
  const dot = "<mo>⋅</mo>";
  const braced = (inner) => `<mrow><mo>(</mo>${inner}<mo>)</mo></mrow>`;
  const mathNumber = (v) => {
    const [head, tail] = num(Math.abs(v)).split("e");
    const size = tail === undefined ? `<mn>${head}</mn>` : `<mrow><mn>${head}</mn>${dot}<msup><mn>10</mn><mn>${tail}</mn></msup></mrow>`;
    return v < 0 ? braced(MINUS + size) : size;
  };
  const math = (inner) => `<math><mrow>${inner}</mrow></math>`;
  function symbolsMath(path) {
    const nodes = nodesOf(path);
    return nodes.map(([c, i], k) => slope(mathName(c, i), k ? mathName(...nodes[k - 1]) : targetMath())).join(dot);
  }
  function formulaMath(path) {
    const nodes = nodesOf(path), steps = [path.start, ...path.edges];
    return steps.map((step, k) => {
      if (step.math === null) return slope(mathName(...nodes[k]), k ? mathName(...nodes[k - 1]) : targetMath());
      return step.loose ? braced(step.math) : step.math;
    }).join(dot);
  }
  const signed = (v) => (v < 0 ? MINUS : "") + mathNumber(Math.abs(v));
  const numbersMath = (path) => factorsOf(path).map(mathNumber).join(dot) + `<mo>=</mo>` + signed(path.contribution);

  // --- showing ---------------------------------------------------------------------------------

  function show(announce) {
    const paths = pathsOf(state.target);
    if (state.path !== null && state.path >= paths.length) state.path = null;
    showNetwork(paths);
    showWhy(paths);
    showStage();
    showTraining();
    if (announce) $("status").textContent = announce;
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
      g.querySelector(".val").textContent = seen.value ? short(value(c, i)) : "";
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
    for (const edge of path.edges) {
      const at = { x: (xs[edge.from] + xs[edge.to]) / 2, y: (y(edge.from, edge.i) + y(edge.to, edge.j)) / 2 - 5 };
      drawn.factors.append(svg("text", { class: "factor", ...at }, `× ${short(factor(edge))}`));
    }
  }

  function showWhy(paths) {
    const t = target(), gradient = frame().gradients[state.target];
    $("weight").value = String(state.target);
    $("gradient-name").textContent = `∂L/∂${t.name}`;
    exact($("gradient"), gradient, 11);
    const few = paths.slice(0, 4).map(symbolsMath);
    if (BigInt(t.count) > BigInt(few.length)) few.push("<mo>⋯</mo>");
    const terms = few.map((term, k) => math((k ? "<mo>+</mo>" : "<mo>=</mo>") + term));
    $("formula").innerHTML = [math(slope("<mi>L</mi>", targetMath())), ...terms].join(" ");
    const rest = BigInt(t.count) - BigInt(paths.length);
    const verb = t.count === "1" ? "path leads" : "paths lead";
    $("count").textContent = `${group(t.count)} ${verb} from ${t.name} to the loss` + (rest > 0n ? `; the ${paths.length} largest of those drawn:` : ":");
    $("count").dataset.value = t.count;
    $("paths").replaceChildren(...paths.map(pathRow));
    const sum = paths.reduce((total, p) => total + p.contribution, 0);
    $("rest-row").hidden = rest === 0n;
    $("rest-label").textContent = `${plural(rest, "other path")} together`;
    exact($("rest"), rest === 0n ? 0 : gradient - sum, 8);
    $("total-label").textContent = paths.length > 1 || rest > 0n ? `Sum: ∂L/∂${t.name}` : `∂L/∂${t.name}`;
    exact($("total"), rest === 0n ? sum : gradient, 11);
    showProduct(t, gradient);
    $("savings").textContent = `Path by path that takes ${plural(t.oneByOne, "multiplication")}; one backward pass takes ${group(t.onePass)}, and has then met every weight on its way.`;
  }
  function showProduct(t, gradient) {
    const single = t.kind !== "input" && t.touched === 1 && t.start.length === 1 && t.start[0].text !== null;
    $("product").hidden = !single;
    if (single) {
      const [s] = t.start, [v] = frame().starts[state.target];
      $("product").textContent = `The same as one product, error times what the weight met: ${deltaName(s.to, s.b)} · ${s.text} = ${bracket(error(s.to, s.b))} · ${bracket(v)}`;
    }
    $("step-line").hidden = t.kind === "input";
    const w = frame().weights[state.target], after = w - data.rate * gradient;
    $("step-line").textContent = `One step of descent: ${t.name} := ${num(w)} − ${num(data.rate)} · ${bracket(gradient)} = ${num(after, 11)}`;
    $("step-line").dataset.value = after;
  }
  function pathRow(path, k) {
    const names = nodesOf(path).map(([c, i]) => neuron(c, i));
    const button = html("button", { type: "button" });
    button.setAttribute("aria-pressed", String(state.path === k));
    button.dataset.nodes = names.join(" ");
    button.dataset.contribution = path.contribution;
    button.dataset.factors = factorsOf(path).join(" ");
    const detail = html("span", { className: "detail numbers" });
    detail.innerHTML = math(formulaMath(path)) + "<br>" + math(numbersMath(path));
    button.append(html("span", { className: "way" }, names.join(" → ")), html("span", { className: "part" }, num(path.contribution, 8)), detail);
    button.addEventListener("click", () => {
      stopPaths();
      state.path = state.path === k ? null : k;
      state.stage = 0;
      show(state.path === null ? "All paths" : `Path ${k + 1}: ${names.join(", ")}, contributes ${num(path.contribution)}`);
      $("paths").children[k]?.firstChild.focus();
    });
    return html("li", {}, button);
  }

  function showStage() {
    const stage = stages[state.stage];
    $("stage-name").textContent = stageTitle(stage);
    $("stage-text").textContent = stageText(stage);
    $("stage-count").textContent = `${state.stage} of ${stages.length - 1}`;
    $("stage-lines").replaceChildren(...stageLines(stage).map((line) => html("li", {}, line)));
    for (const id of ["first", "back"]) $(id).disabled = state.stage === 0;
    $("next").disabled = state.stage === stages.length - 1;
  }

  function showTraining() {
    $("frame").value = String(state.frame);
    $("frame-label").textContent = `${frame().label}, L = ${num(frame().loss, 6)}`;
    $("frame").setAttribute("aria-valuetext", `step ${frame().label}, loss ${num(frame().loss, 4)}`);
    const { x, y } = curve;
    $("dot").setAttribute("cx", x(state.frame));
    $("dot").setAttribute("cy", y(frame().loss));
    const chosen = data.targets.map((t, k) => [t, k]).filter(([t, k]) => t.kind === "weight" && (data.targets.length <= 60 || k === state.target));
    $("now").replaceChildren(...chosen.map(([t, k]) => {
      const dd = html("dd", {}, num(frame().weights[k], 4));
      dd.dataset.value = frame().weights[k];
      return html("div", {}, html("dt", {}, t.name), dd);
    }));
  }
  const curve = {};
  function drawCurve() {
    const losses = data.frames.map((f) => f.loss), high = Math.max(...losses), low = Math.min(0, ...losses);
    const W = 640, H = 170, L = 58, R = 12, T = 12, B = 26;
    curve.x = (k) => L + ((W - L - R) * k) / Math.max(1, losses.length - 1);
    curve.y = (v) => H - B - ((H - T - B) * (v - low)) / (high - low || 1);
    const end = data.frames[data.frames.length - 1];
    const root = svg("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": `Loss over training: from ${num(losses[0], 4)} to ${num(end.loss, 4)} in ${losses.length - 1} steps` });
    root.append(
      svg("line", { class: "axis", x1: L, y1: H - B, x2: W - R, y2: H - B }), svg("line", { class: "axis", x1: L, y1: T, x2: L, y2: H - B }),
      svg("text", { x: L - 6, y: T + 5, style: "text-anchor:end" }, num(high, 3)), svg("text", { x: L - 6, y: H - B + 3, style: "text-anchor:end" }, num(low, 3)),
      svg("text", { x: L, y: H - 8 }, data.frames[0].label), svg("text", { x: W - R, y: H - 8, style: "text-anchor:end" }, `step ${end.label}`),
      svg("text", { x: L + 10, y: T + 5, style: "text-anchor:start" }, "loss L"),
      svg("polyline", { points: losses.map((v, k) => `${curve.x(k)},${curve.y(v)}`).join(" ") }), svg("circle", { id: "dot", r: 6 }));
    $("curve").replaceChildren(root);
  }

  // --- controls --------------------------------------------------------------------------------

  function choose(k) {
    stopPaths();
    state.target = k;
    state.path = null;
    state.stage = 0;
    show(`${data.targets[k].name}: gradient ${num(frame().gradients[k])}, ${plural(data.targets[k].count, "path")}`);
  }
  function goto(stage) {
    state.stage = Math.max(0, Math.min(stages.length - 1, stage));
    state.path = null;
    show(`${stageTitle(stages[state.stage])}. ${stageLines(stages[state.stage]).slice(0, 6).join("; ")}`);
  }
  function pressed(id, on, label) {
    $(id).setAttribute("aria-pressed", String(on));
    $(id).textContent = label;
  }
  function stopPlay() {
    clearInterval(state.timer);
    state.timer = null;
    pressed("play", false, "Play");
  }
  function stopPaths() {
    clearInterval(state.pathTimer);
    state.pathTimer = null;
    pressed("play-paths", false, "Play the paths");
  }
  $("first").addEventListener("click", () => { stopPlay(); goto(0); });
  $("back").addEventListener("click", () => { stopPlay(); goto(state.stage - 1); });
  $("next").addEventListener("click", () => { stopPlay(); goto(state.stage + 1); });
  $("play").addEventListener("click", () => {
    if (state.timer) return stopPlay();
    stopPaths();
    if (state.stage === stages.length - 1) goto(0);
    pressed("play", true, "Pause");
    goto(state.stage + 1);
    state.timer = setInterval(() => {
      if (state.stage === stages.length - 1) stopPlay();
      else goto(state.stage + 1);
    }, 1800);
  });
  $("play-paths").addEventListener("click", () => {
    if (state.pathTimer) { stopPaths(); state.path = null; return show("All paths"); }
    stopPlay();
    const count = pathsOf(state.target).length;
    pressed("play-paths", true, "Stop");
    const light = (k) => { state.path = k; state.stage = 0; show(`Path ${k + 1} of ${count}`); };
    light(0);
    state.pathTimer = setInterval(() => {
      if (state.path === null || state.path + 1 >= count) { stopPaths(); state.path = null; show("All paths together"); }
      else light(state.path + 1);
    }, 1400);
  });
  $("frame").max = String(data.frames.length - 1);
  $("frame").addEventListener("input", () => { state.frame = Number($("frame").value); show(); });
  const groups = { weight: "Weights", bias: "Biases", input: "Inputs" };
  for (const [kind, label] of Object.entries(groups)) {
    const options = data.targets.flatMap((t, k) => (t.kind === kind ? [html("option", { value: String(k) }, t.name)] : []));
    if (options.length) $("weight").append(html("optgroup", { label }, ...options));
  }
  $("weight").addEventListener("change", () => choose(Number($("weight").value)));
  const themes = ["system", "light", "dark"];
  $("theme").addEventListener("click", () => {
    const now = document.documentElement.dataset.theme ?? "system";
    const next = themes[(themes.indexOf(now) + 1) % themes.length];
    if (next === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = next;
    $("theme").textContent = `Colours: ${next}`;
    $("theme").setAttribute("aria-label", `Colours: ${next === "system" ? "as the system says" : next}`);
  });

  state.frame = data.open;
  state.target = byWeight.get(data.selected) ?? 0;
  draw();
  drawCurve();
  show();
})();
