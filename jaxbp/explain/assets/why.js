// Why: the sum over the paths of the chosen weight, as MathML and as numbers.

const slope = (of, by) => `<mfrac><mrow><mo>∂</mo>${of}</mrow><mrow><mo>∂</mo>${by}</mrow></mfrac>`;
const mathName = (c, i) => data.columns[c].neurons[i].math;
const targetMath = () => target().math ?? `<mtext>${target().name.replace(/[<>&]/g, "")}</mtext>`;
const MINUS = '<mo form="prefix" lspace="0" rspace="0">−</mo>';
const infix = (sign) => `<mo form="infix" lspace="0.22em" rspace="0.22em">${sign}</mo>`;
const dot = infix("⋅");
const braced = (inner) => `<mrow><mo>(</mo>${inner}<mo>)</mo></mrow>`;
const mathNumber = (v) => {
  const [head, tail] = num(Math.abs(v)).split("e");
  const size = tail === undefined ? `<mn>${head}</mn>` : `<mrow><mn>${head}</mn>${dot}<msup><mn>10</mn><mn>${tail}</mn></msup></mrow>`;
  return v < 0 ? braced(MINUS + size) : size;
};
const math = (inner) => `<math><mrow>${inner}</mrow></math>`;
function symbolsMath(path) {
  const nodes = nodesOf(path);
  return nodes.map(([c, i], k) => slope(mathName(c, i), k ? mathName(...nodes[k - 1]) : targetMath()));
}
function formulaMath(path) {
  const nodes = nodesOf(path), steps = [path.start, ...path.edges];
  return productMath(steps.map((step, k) => {
    if (step.math === null) return slope(mathName(...nodes[k]), k ? mathName(...nodes[k - 1]) : targetMath());
    return step.loose ? braced(step.math) : step.math;
  }));
}
const signed = (v) => (v < 0 ? MINUS : "") + mathNumber(Math.abs(v));
// One <math> a factor, so that a long product is broken between factors.
const productMath = (factors) => factors.map((f, k) => math(k ? dot + f : f)).join("\u200b");
const numbersMath = (path) => productMath(factorsOf(path).map(mathNumber)) + "\u200b" + math(infix("=") + signed(path.contribution));

function showWhy(paths) {
  const t = target(), gradient = frame().gradients[state.target];
  $("weight").value = String(state.target);
  $("gradient-name").textContent = `∂L/∂${t.name}`;
  exact($("gradient"), tidy(gradient), 11);
  const few = paths.slice(0, 4).map(symbolsMath);
  if (BigInt(t.count) > BigInt(few.length)) few.push(["<mi>⋯</mi>"]);
  const terms = few.map(([first, ...rest], k) => `<span>${productMath([infix(k ? "+" : "=") + first, ...rest])}</span>`);
  $("formula").innerHTML = [math(slope("<mi>L</mi>", targetMath())), ...terms].join(" ");
  const rest = BigInt(t.count) - BigInt(paths.length);
  const verb = t.count === "1" ? "path leads" : "paths lead";
  $("count").textContent = `${group(t.count)} ${verb} from ${t.name} to the loss` + (rest > 0n ? `; the ${paths.length} largest of those drawn:` : ":");
  $("count").dataset.value = t.count;
  $("paths").replaceChildren(...paths.map(pathRow));
  const long = paths.length * Math.max(0, ...paths.map((path) => path.edges.length)) > 60;
  $("paths").classList.toggle("long", long);
  $("paths-hint").hidden = !long;
  const steps = paths.flatMap((path) => [path.start, ...path.edges]);
  $("signs").hidden = !steps.some((step) => step.text?.includes("> 0]"));
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
  detail.innerHTML = formulaMath(path) + "<br>" + numbersMath(path);
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
