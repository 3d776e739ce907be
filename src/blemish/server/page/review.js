// The review list: what was inspected, borderline first, and what a person says of it.
import { ask, get, request } from "./api.js";

const $ = (id) => document.getElementById(id);
const VERDICTS = [["good", "Really good"], ["defective", "Really bad"]];
let fail = () => {};
let latest = 0;

export async function review(failed) {
  fail = failed;
  const mine = ++latest;
  const query = new URLSearchParams({ order: $("order").value, verdict: $("judged").value, decision: $("decided").value, limit: 60 });
  try {
    const { records } = await get(`/records?${query}`);
    if (mine !== latest) return;
    $("list").replaceChildren(...records.map(card));
    if (!records.length) $("list").textContent = "Nothing here.";
    fail(null);
  } catch (error) {
    fail(error);
  }
}

function made(kind, text = "", name = "") {
  const element = document.createElement(kind);
  element.textContent = text;
  if (name) element.className = name;
  return element;
}

function card(record) {
  const item = made("li");
  const head = made("p");
  const decision = made("b", record.decision);
  decision.dataset.decision = record.decision;
  const score = record.calibrated_score === null ? "not a number" : record.calibrated_score.toFixed(3);
  head.append(decision, ` ${score} · ${record.model} ${record.category}`);
  const when = new Date(record.time).toLocaleString();
  if (record.part_decision) head.append(` · part: ${record.part_decision}`);
  item.append(head, made("p", [record.part, record.file].filter(Boolean).join(" · ") || `inspection ${record.id}`), made("p", when, "soft"));
  const said = made("p", "", "soft");
  said.setAttribute("role", "status");
  const buttons = made("div", "", "buttons");
  for (const [verdict, words] of VERDICTS) buttons.append(verdictButton(record, verdict, words, buttons, said));
  const look = made("button", "Show");
  look.addEventListener("click", () => pictures(record, item, look).catch(fail));
  buttons.append(look);
  item.append(buttons, said);
  return item;
}

function verdictButton(record, verdict, words, buttons, said) {
  const button = made("button", words);
  const tell = () => {
    for (const each of buttons.querySelectorAll("[data-verdict]")) each.ariaPressed = String(each.dataset.verdict === record.verdict);
  };
  button.dataset.verdict = verdict;
  button.ariaPressed = String(record.verdict === verdict);
  button.addEventListener("click", async () => {
    try {
      const wanted = record.verdict === verdict ? null : verdict; // pressed again: taken back
      const body = JSON.stringify({ verdict: wanted });
      record.verdict = (await ask(`/records/${record.id}/verdict`, { method: "POST", body })).verdict;
      said.textContent = record.verdict ? "Written down. Press again to take it back." : "Taken back.";
      tell();
    } catch (error) {
      fail(error);
    }
  });
  return button;
}

async function pictures(record, item, look) {
  const found = await get(`/records/${record.id}`);
  if (!found.picture) {
    look.replaceWith(made("span", "The picture was not kept (blemish serve --keep FOLDER).", "soft"));
    return;
  }
  const both = made("div", "", "pictures");
  for (const [source, words] of [[found.picture, "The picture"], [found.heatmap, "Its heatmap"]]) {
    const frame = made("div", "", "frame");
    frame.style.aspectRatio = `${found.size[1]} / ${found.size[0]}`;
    const image = made("img");
    image.src = source;
    image.alt = words;
    frame.append(image);
    both.append(frame);
  }
  item.prepend(both);
  look.remove();
  item.querySelector("button").focus();
}

async function save() {
  const answer = await request("/records?format=csv&limit=10000");
  if (!answer.ok) throw new Error((await answer.json()).error);
  const link = made("a");
  link.href = URL.createObjectURL(await answer.blob());
  link.download = "inspections.csv";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

for (const id of ["order", "judged", "decided"]) $(id).addEventListener("change", () => review(fail));
$("reload").addEventListener("click", () => review(fail));
$("export").addEventListener("click", () => save().catch(fail));
