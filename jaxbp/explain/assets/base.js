// What is shown, what is chosen, and numbers as they are written.

const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const MOST_PATHS = 12;
const state = { frame: 0, target: 0, path: null, stage: 0, timer: null, pathTimer: null };

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
/** A number that fits into a neuron. */
const inside = (v) => (Math.abs(v) >= 1e-3 && (v < 0 ? v > -1 : v < 0.1) ? num(v, 2) : short(v));
// A gradient that is 0 but for rounding is written as 0.
const tidy = (v) => (Math.abs(v) < 1e-15 ? 0 : v);
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
  return kind === "weights" && own.startsWith("a") ? own.replace("a", "δ") : `∂L/∂${own}`;
};
