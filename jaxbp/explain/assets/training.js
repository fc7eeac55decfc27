// While it learns: the slider, the loss curve, and the weights with their gradients.

const moment = ({ label }) => (/^\d/.test(label) ? `step ${label}` : label);

function showTraining() {
  $("frame").value = String(state.frame);
  $("frame-label").textContent = `${moment(frame())}, L = ${num(frame().loss, 6)}`;
  $("frame").setAttribute("aria-valuetext", `${moment(frame())}, loss ${num(frame().loss, 4)}`);
  const { x, y } = curve;
  $("dot").setAttribute("cx", x(state.frame));
  $("dot").setAttribute("cy", y(frame().loss));
  const chosen = data.targets.map((t, k) => [t, k]).filter(([t, k]) => k === state.target ? t.kind !== "input" : t.kind === "weight" && data.targets.length <= 60);
  $("now").replaceChildren(...chosen.map(([t, k]) => {
    const dd = html("dd", {}, num(frame().weights[k], 4)), slope = html("dd", { className: "slope" }, short(tidy(frame().gradients[k])));
    dd.dataset.value = frame().weights[k];
    slope.dataset.value = frame().gradients[k];
    return html("div", {}, html("dt", {}, t.name), dd, slope);
  }));
}
const curve = {};
function drawCurve() {
  const losses = data.frames.map((f) => f.loss), high = Math.max(...losses), least = Math.min(...losses);
  const decades = least > 0 && high / least > 30;  // a loss that falls so far is drawn by its logarithm
  const low = decades ? least : Math.min(0, least);
  const scale = decades ? Math.log10 : (v) => v;
  const W = 640, H = 170, L = 58, R = 12, T = 12, B = 26;
  curve.x = (k) => L + ((W - L - R) * k) / Math.max(1, losses.length - 1);
  curve.y = (v) => H - B - ((H - T - B) * (scale(v) - scale(low))) / (scale(high) - scale(low) || 1);
  const end = data.frames[data.frames.length - 1];
  const root = svg("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": `Loss over training: from ${num(losses[0], 4)} to ${num(end.loss, 4)} in ${losses.length - 1} steps` });
  root.append(
    svg("line", { class: "axis", x1: L, y1: H - B, x2: W - R, y2: H - B }), svg("line", { class: "axis", x1: L, y1: T, x2: L, y2: H - B }),
    svg("text", { x: L - 10, y: T + 5, style: "text-anchor:end" }, short(high)), svg("text", { x: L - 10, y: H - B + 3, style: "text-anchor:end" }, short(low)),
    svg("text", { x: L, y: H - 8 }, moment(data.frames[0])), svg("text", { x: W - R, y: H - 8, style: "text-anchor:end" }, moment(end)),
    svg("text", { x: W - R, y: T + 5, style: "text-anchor:end" }, decades ? "loss L, logarithmic" : "loss L"),
    svg("polyline", { points: losses.map((v, k) => `${curve.x(k)},${curve.y(v)}`).join(" ") }), svg("circle", { id: "dot", r: 6 }));
  $("curve").replaceChildren(root);
}
