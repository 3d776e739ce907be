// The inspection page: no library, no build step. Everything that comes from outside is set as text.
import { draw, hypothesis } from "./histogram.js";
import { ask, get, waiting } from "./api.js";
import { review } from "./review.js";

const KEPT = 60; // pictures in the strip
const WORDS = { good: "✓ Good", review: "? To review", defective: "✗ Defective" };
const $ = (id) => document.getElementById(id);
const state = { models: [], shown: null, results: [], recent: [], trial: null, last: 0 };

export function fail(error) {
  $("error").textContent = error ? error.message ?? String(error) : "";
  $("error").hidden = !error;
}

const model = () => state.models.find((one) => one.name === $("model").value);
const category = (name = $("category").value) => model()?.categories[name] ?? Object.values(model()?.categories ?? {})[0];

function option(text) {
  const made = document.createElement("option");
  made.textContent = text;
  return made;
}

async function chooseModel() {
  const names = Object.keys(model().categories);
  $("category").replaceChildren(...names.map(option));
  $("category-label").hidden = names.length < 2;
  await chooseCategory();
}

async function chooseCategory() {
  state.trial = null;
  state.recent = [];
  try {
    const query = new URLSearchParams({ model: $("model").value, category: $("category").value, limit: 500 });
    const { records } = await get(`/records?${query}`);
    const newer = state.recent.filter((one) => !records.some((row) => row.id === one.id)); // came meanwhile
    state.recent = [...newer, ...records];
  } catch (error) {
    if (error.status !== 404) fail(error); // 404: nothing is recorded here
  }
  score();
}

// One picture after the other is sent, so that the line's own requests are not crowded out.
let queue = Promise.resolve();
function inspect(files) {
  for (const file of files) queue = queue.then(() => send(file)).catch(fail);
  return queue;
}

async function send(file) {
  fail(null);
  const query = new URLSearchParams({ model: $("model").value, category: $("category").value,
    file: file.name.slice(0, 300), heatmap: "png", picture: "jpeg" });
  const found = await waiting(() => ask(`/predict?${query}`, { method: "POST", body: file }));
  add(found);
  if (found.error) fail({ message: found.error });
}

function add(found) {
  if (found.id && state.results.some((one) => one.id === found.id)) return; // sent from here, and followed, too
  state.results = [found, ...state.results].slice(0, KEPT);
  const others = state.recent.filter((one) => !found.id || one.id !== found.id); // the record may have told of it first
  state.recent = [found, ...others].slice(0, 500);
  if (found.id) state.last = Math.max(state.last, found.id);
  show(found);
}

function show(found) {
  state.shown = found;
  $("decision").textContent = WORDS[found.decision];
  $("decision").dataset.decision = found.decision;
  $("name").textContent = [found.part, found.file].filter(Boolean).join(" · ");
  const [plain, below] = [$("plain").querySelector("img"), $("mapped").querySelector("img")];
  for (const image of [plain, below]) place(image, found.picture);
  place($("heat"), found.heatmap);
  const [height, width] = found.size ?? [1, 1];
  for (const frame of [$("plain"), $("mapped")]) frame.style.aspectRatio = `${width} / ${height}`;
  boxes(found.regions, width, height);
  $("regions").replaceChildren(...found.regions.map((region, at) => row(region, at + 1)));
  $("strip").replaceChildren(...state.results.map(thumbnail));
  score();
}

function place(image, source) {
  image.hidden = !source;
  if (source) image.src = source;
}

function boxes(regions, width, height) {
  const svg = $("boxes");
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.replaceChildren(...regions.map(({ box: [left, top, right, bottom] }) => {
    const rectangle = document.createElementNS(svg.namespaceURI, "rect");
    const sides = { x: left, y: top, width: right - left, height: bottom - top };
    for (const [name, value] of Object.entries(sides)) rectangle.setAttribute(name, value);
    return rectangle;
  }));
}

function row({ box: [left, top, right, bottom], peak }, number) {
  const made = document.createElement("tr");
  for (const text of [number, `${left}, ${top}`, `${right - left} × ${bottom - top}`, short(peak)]) {
    made.insertCell().textContent = text;
  }
  return made;
}

function thumbnail(found) {
  const item = document.createElement("li");
  const button = document.createElement("button");
  button.dataset.decision = found.decision;
  button.ariaLabel = `${found.file || "picture"}: ${found.decision}`;
  button.ariaCurrent = found === state.shown;
  if (found.picture) {
    const image = document.createElement("img");
    image.src = found.picture;
    image.alt = "";
    button.append(image);
  }
  button.append(WORDS[found.decision]);
  button.addEventListener("click", () => { show(found); $("strip").querySelector("[aria-current=true]").focus(); });
  item.append(button);
  return item;
}

const short = (value) => (value === null || value === undefined ? "not a number" : Number(value.toPrecision(4)).toString());

function score() {
  const known = category(state.shown?.model === $("model").value ? state.shown?.category || undefined : undefined);
  $("score").textContent = state.shown ? short(state.shown.image_score) : "–";
  if (!known) return;
  const trial = state.trial ?? known.threshold;
  draw($("histogram"), known, state.shown?.image_score, trial, (value) => { state.trial = value; score(); });
  $("trial").textContent = hypothesis(known, state.recent, state.shown, trial);
  $("reset").disabled = state.trial === null;
}

// Following: each new row of the record is shown as it comes.
async function follow() {
  if (!$("follow").checked || document.hidden) return;
  const { records } = await get(`/records?${new URLSearchParams({ after: state.last, order: "oldest", limit: 5 })}`);
  for (const record of records) {
    state.last = record.id;
    add(await get(`/records/${record.id}`));
  }
}

async function startFollowing() {
  const newest = (await get("/records?limit=1")).records[0];
  state.last = Math.max(state.last, (newest?.id ?? 1) - 1); // the newest is shown at once
}

async function health() {
  try {
    const answer = await fetch("/health");
    const said = await answer.json();
    $("health").textContent = answer.ok ? "● ready" : `▲ ${said.error}`;
  } catch {
    $("health").textContent = "▲ the server does not answer";
  }
}

function view(name) {
  for (const each of ["inspect", "review"]) {
    $(each).hidden = each !== name;
    $(`to-${each}`).ariaPressed = String(each === name);
  }
  if (name === "review") review(fail);
}

function listen() {
  const drop = $("drop");
  $("files").addEventListener("change", (event) => { inspect([...event.target.files]); event.target.value = ""; });
  for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
    document.addEventListener(kind, (event) => {
      event.preventDefault();
      drop.classList.toggle("over", kind === "dragenter" || kind === "dragover");
      if (kind === "drop") inspect([...event.dataTransfer.files]);
    });
  }
  document.addEventListener("paste", (event) => inspect([...event.clipboardData.files]));
  $("opacity").addEventListener("input", opacity);
  $("reset").addEventListener("click", () => { state.trial = null; score(); });
  $("model").addEventListener("change", () => chooseModel().catch(fail));
  $("category").addEventListener("change", () => chooseCategory().catch(fail));
  $("follow").addEventListener("change", () => { if ($("follow").checked) startFollowing().catch(stop); });
  $("to-inspect").addEventListener("click", () => view("inspect"));
  $("to-review").addEventListener("click", () => view("review"));
}

function stop(error) {
  $("follow").checked = false;
  fail(error);
}

function opacity() {
  $("heat").style.opacity = $("opacity").value / 100;
  $("opacity-value").textContent = `${$("opacity").value} %`;
}

async function start() {
  listen();
  opacity();
  health();
  setInterval(health, 5000);
  state.models = (await get("/model")).models;
  $("model").replaceChildren(...state.models.map((one) => option(one.name)));
  await chooseModel();
  for (;;) {
    await follow().catch(stop);
    await new Promise((done) => setTimeout(done, 1000));
  }
}

start().catch(fail);
