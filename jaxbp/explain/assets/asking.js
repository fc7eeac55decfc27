// Any weight, by its name or its path: those of the neurons drawn are explained, of others there is the gradient.

const tokens = (path) => path.match(/[^\W\d]\w*|\d+/g) ?? [];
const sizes = (array) => array.shape.map(Number);
/** Numbers from 1, as names count: to, from, then where in a window; and back. */
const counted = (place) => [...place.slice(-2).reverse(), ...place.slice(0, -2)].map((k) => k + 1);
const placed = (numbers) => [...numbers.slice(2), ...numbers.slice(0, 2).reverse()].map((k) => k - 1);

function nameOf(array, place) {
  const inside = [...array.slices, ...place].join(", ");
  if (array.key === null || !place.length) return inside ? `${array.path}[${inside}]` : array.path;
  const numbers = [array.number, ...counted(place)].map(String);
  const between = numbers.length <= 3 && numbers.every((n) => n.length === 1) ? "" : "_";
  return array.key + (/[^\W\d_]$/u.test(array.key) && !array.key.includes("_") ? "" : "_") + numbers.join(between);
}
/** `[array, place]` of what was asked for, or words about why there is none. */
function look(asked) {
  const named = asked.match(/^([^\W\d_](?:\w*?[^\W\d_])?)_?(\d+(?:_\d+)*)$/u);
  for (const array of named ? data.arrays.filter((a) => a.key === named[1]) : []) {
    const [layer, ...rest] = (named[2].includes("_") ? named[2].split("_") : [...named[2]]).map(Number);
    if (layer !== array.number || rest.length !== array.shape.length || !rest.length) continue;
    const place = placed(rest);
    if (place.every((k, n) => 0 <= k && k < sizes(array)[n])) return [array, place];
    return `there is no ${asked}: in that layer ${array.key} goes up to ${nameOf(array, sizes(array).map((n) => n - 1))}`;
  }
  const wanted = tokens(asked);
  for (const array of named ? [] : data.arrays) {
    const own = [...tokens(array.path), ...array.slices.map(String)];
    if (own.some((t, k) => t !== wanted[k])) continue;
    const place = wanted.slice(own.length).map(Number);
    if (place.length === array.shape.length && place.every((k, n) => 0 <= k && k < sizes(array)[n])) return [array, place];
    return `${array.path} has shape [${array.shape.join(", ")}], so ${asked} names no entry of it`;
  }
  const last = data.arrays.slice(0, 4).map((a) => nameOf(a, sizes(a).map((n) => n - 1)));
  return `there is no ${asked}; the last entries are ${last.join(", ")}${data.arrays.length > 4 ? ", …" : ""}`;
}
function ask(asked) {
  if (byWeight.has(asked)) return choose(byWeight.get(asked));
  const found = look(asked);
  if (typeof found === "string") return answerWith(found);
  const [array, place] = found, name = nameOf(array, place);
  if (byWeight.has(name)) return choose(byWeight.get(name));
  const flat = place.reduce((at, k, n) => at * sizes(array)[n] + k, 0);
  const known = array.gradients ? `∂L/∂${name} = ${num(array.gradients[flat])} at ${moment(data.frames[data.open])}. ` : "";
  answerWith(`${known}The neurons that ${name} joins are not drawn; --weight ${name} draws them`);
}
function answerWith(words) {
  $("asked").textContent = words;
  $("asked").hidden = !words;
}
$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  answerWith("");
  const asked = $("name").value.trim();
  if (asked) ask(asked);
});
