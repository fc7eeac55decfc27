// While it learns: the slider, the loss curve, and the weights with their gradients.

function showTraining() {
  $("frame").value = String(state.frame);
  $("frame-label").textContent = `${frame().label}, L = ${num(frame().loss, 6)}`;
  $("frame").setAttribute("aria-valuetext", `step ${frame().label}, loss ${num(frame().loss, 4)}`);
  const { x, y } = curve;
  $("dot").setAttribute("cx", x(state.frame));
  $("dot").setAttribute("cy", y(frame().loss));
  const chosen = data.targets.map((t, k) => [t, k]).filter(([t, k]) => t.kind === "weight" && (data.targets.length <= 60 || k === state.target));
  $("now").replaceChildren(...chosen.map(([t, k]) => {
    const dd = html("dd", {}, num(frame().weights[k], 4)), slope = html("dd", { className: "slope" }, short(tidy(frame().gradients[k])));
    dd.dataset.value = frame().weights[k];
    slope.dataset.value = frame().gradients[k];
    return html("div", {}, html("dt", {}, t.name), dd, slope);
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
    svg("text", { x: L - 10, y: T + 5, style: "text-anchor:end" }, num(high, 3)), svg("text", { x: L - 10, y: H - B + 3, style: "text-anchor:end" }, num(low, 3)),
    svg("text", { x: L, y: H - 8 }, data.frames[0].label), svg("text", { x: W - R, y: H - 8, style: "text-anchor:end" }, `step ${end.label}`),
    svg("text", { x: W - R, y: T + 5, style: "text-anchor:end" }, "loss L over the steps"),
    svg("polyline", { points: losses.map((v, k) => `${curve.x(k)},${curve.y(v)}`).join(" ") }), svg("circle", { id: "dot", r: 6 }));
  $("curve").replaceChildren(root);
}
