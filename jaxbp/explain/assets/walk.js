// Step by step: forward, then backward, then the update, with the numbers in the formulas.

const stages = [{ kind: "all" }];
data.columns.forEach((_, c) => stages.push({ kind: "forward", c }));
for (let c = data.columns.length - 2; c >= 0; c--) stages.push({ kind: "backward", c });
stages.push({ kind: "update" });

function stageTitle(stage) {
  if (stage.kind === "all") return "everything at once";
  if (stage.kind === "update") return "the update";
  const { name, kind } = data.columns[stage.c];
  if (stage.kind === "forward") return kind === "input" ? "the input" : `forward, ${name}`;
  return kind === "weights" && name.startsWith("a") ? `backward, ${name.replace("a", "δ")}` : `backward, ∂L/∂${name}`;
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
const product = (e) => {
  if (e.text === null) return `∂${neuron(e.to, e.j)}/∂${neuron(e.from, e.i)}`;
  const written = e.text.replaceAll("-", "−");
  return e.loose ? `(${written})` : written;
};

function showStage() {
  const stage = stages[state.stage];
  $("stage-name").textContent = stageTitle(stage);
  $("stage-text").textContent = stageText(stage);
  $("stage-count").textContent = `${state.stage} of ${stages.length - 1}`;
  $("stage-lines").replaceChildren(...stageLines(stage).map((line) => html("li", {}, line)));
  for (const id of ["first", "back"]) $(id).disabled = state.stage === 0;
  $("next").disabled = state.stage === stages.length - 1;
}
