// What happens when something is pressed, and the start.

function show(announce) {
  const paths = pathsOf(state.target);
  if (state.path !== null && state.path >= paths.length) state.path = null;
  showNetwork(paths);
  showWhy(paths);
  showStage();
  showTraining();
  showExample();
  if (announce) $("status").textContent = announce;
}

function choose(k) {
  stopPaths();
  state.target = k;
  state.path = null;
  state.stage = 0;
  answerWith("");
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
drawExample();
drawCurve();
show();
