// The example as people see it: its picture, where the inputs drawn lie in it, its class and the answer.

const PIXEL = 10;
const picture = data.example.picture;

function drawExample() {
  if (!picture) return;
  const rows = picture.pixels.length, columns = picture.pixels[0].length;
  const root = svg("svg", { viewBox: `0 0 ${columns * PIXEL} ${rows * PIXEL}`, role: "group", "aria-label": "The input as a picture" });
  picture.pixels.forEach((row, r) => row.forEach((pixel, c) => {
    const place = { x: c * PIXEL, y: r * PIXEL, width: PIXEL, height: PIXEL };
    if (pixel.length >= 3) root.append(svg("rect", { ...place, fill: `rgb(${pixel.slice(0, 3).map((v) => Math.round(255 * v))})` }));
    else if (pixel[0] > 0) root.append(svg("rect", { ...place, class: "ink", opacity: pixel[0] }));
  }));
  for (const [name, [r, c]] of Object.entries(picture.inputs)) {
    const mark = svg("rect", { class: "mark", x: c * PIXEL + 0.5, y: r * PIXEL + 0.5, width: PIXEL - 1, height: PIXEL - 1 });
    mark.dataset.input = name;
    hover(mark, () => `${name}: row ${r + 1}, column ${c + 1}`);
    if (byWeight.has(name)) asButton(mark, () => choose(byWeight.get(name)));
    mark.setAttribute("aria-label", mark.describe());
    root.append(mark);
  }
  $("picture").replaceChildren(root);
}
/** The input that the chosen weight meets, or is. */
function inputOf() {
  const { kind, name } = target();
  if (kind === "input") return name;
  for (const [b, bundle] of data.bundles.entries()) {
    if (bundle.from !== 0) continue;
    const found = bundle.edges.filter((edge) => edge.weight === name).map((edge) => neuron(0, edge.a));
    if (found.length === 1) return found[0];
  }
  return null;
}
function showExample() {
  const { label } = data.example, { answer } = frame(), met = inputOf();
  const words = [];
  if (label !== null) words.push(`class ${label}`);
  if (answer) words.push(`predicted ${answer.label} (${num(100 * answer.share, 3)} %)`);
  $("answer").textContent = words.join(", ");
  $("answer").classList.toggle("wrong", Boolean(answer) && label !== null && answer.label !== label);
  const place = picture && met ? picture.inputs[met] : null;
  $("where").textContent = place ? `${met}: row ${place[0] + 1}, column ${place[1] + 1}`
    : met && data.example.columns[met] ? `${met}: ${data.example.columns[met]}` : "";
  $("example").hidden = !picture && !words.length && !$("where").textContent;
  for (const mark of document.querySelectorAll("#picture .mark")) {
    mark.classList.toggle("chosen", mark.dataset.input === met);
    if (mark.classList.contains("button")) mark.setAttribute("aria-pressed", String(mark.dataset.input === met));
  }
}
