// The histogram of good pictures, with the threshold as a line that can be dragged, or moved with the arrow keys.
const [WIDTH, BOTTOM, TOP, BINS] = [600, 165, 24, 40];

function element(svg, kind, attributes, text) {
  const made = document.createElementNS(svg.namespaceURI, kind);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

export function draw(svg, known, score, threshold, changed) {
  const good = known.good_scores;
  const seen = [...good, known.threshold, ...(Number.isFinite(score) ? [score] : [])];
  const [least, most] = [Math.min(...seen), Math.max(...seen)];
  const span = most - least || Math.abs(most) || 1;
  const [low, high] = [least - 0.08 * span, most + 0.12 * span];
  const x = (value) => ((Math.min(Math.max(value, low), high) - low) / (high - low)) * WIDTH;

  const counts = new Array(BINS).fill(0);
  for (const value of good) counts[Math.min(BINS - 1, Math.floor((x(value) / WIDTH) * BINS))] += 1;
  const tallest = Math.max(...counts);
  const bars = counts.flatMap((count, at) => {
    if (!count) return [];
    const height = Math.max(2, (count / tallest) * (BOTTOM - TOP));
    return [element(svg, "rect", { class: "bar", x: (at * WIDTH) / BINS + 1, y: BOTTOM - height, width: WIDTH / BINS - 2, height })];
  });
  const mark = Number.isFinite(score) ? [
    element(svg, "line", { class: "mark", x1: x(score), x2: x(score), y1: TOP, y2: BOTTOM + 8 }),
    element(svg, "text", { x: x(score), y: BOTTOM + 28, "text-anchor": anchor(x(score)) }, "this picture"),
  ] : [];
  const axis = element(svg, "line", { class: "axis", x1: 0, x2: WIDTH, y1: BOTTOM, y2: BOTTOM });
  const handle = threshold_line(svg, x(threshold), threshold, { low, high, changed });
  const had = svg.contains(document.activeElement);
  svg.replaceChildren(axis, ...bars, ...mark, handle);
  if (had) handle.focus();
  svg.onpointermove = svg.dataset.dragging ? (event) => changed(at(svg, event, low, high)) : null;
}

function threshold_line(svg, place, threshold, { low, high, changed }) {
  const group = element(svg, "g", { id: "threshold", tabindex: 0, role: "slider", "aria-label": "Threshold, to try out",
    "aria-valuemin": low, "aria-valuemax": high, "aria-valuenow": threshold, "aria-valuetext": threshold.toPrecision(4) });
  group.append(
    element(svg, "rect", { x: place - 20, y: 0, width: 40, height: BOTTOM }),
    element(svg, "line", { x1: place, x2: place, y1: TOP, y2: BOTTOM }),
    element(svg, "circle", { cx: place, cy: TOP, r: 8 }),
    element(svg, "text", { x: place + (place < WIDTH / 2 ? 12 : -12), y: 18, "text-anchor": place < WIDTH / 2 ? "start" : "end" },
      `threshold ${threshold.toPrecision(4)}`),
  );
  const step = (high - low) / 200;
  const moves = { ArrowLeft: -step, ArrowDown: -step, ArrowRight: step, ArrowUp: step, PageDown: -10 * step, PageUp: 10 * step };
  group.addEventListener("keydown", (event) => {
    const wanted = { Home: low, End: high }[event.key] ?? (event.key in moves ? threshold + moves[event.key] : null);
    if (wanted === null) return;
    event.preventDefault();
    changed(Math.min(Math.max(wanted, low), high));
  });
  group.addEventListener("pointerdown", (event) => {
    svg.dataset.dragging = "yes";
    svg.setPointerCapture(event.pointerId); // the line itself is drawn anew while it moves
    svg.onpointermove = (moved) => changed(at(svg, moved, low, high));
    svg.onpointerup = svg.onpointercancel = () => { delete svg.dataset.dragging; svg.onpointermove = null; };
    event.preventDefault();
    group.focus();
  });
  return group;
}

function at(svg, event, low, high) {
  const frame = svg.getBoundingClientRect();
  const share = Math.min(Math.max((event.clientX - frame.left) / frame.width, 0), 1);
  return low + share * (high - low);
}

const anchor = (place) => (place < 70 ? "start" : place > WIDTH - 70 ? "end" : "middle");

// What a threshold would do, in words.
export function hypothesis(known, recent, shown, threshold) {
  const good = known.good_scores;
  const stopped = good.filter((score) => score > threshold).length;
  const calls = (row) => !(row.image_score <= threshold);
  const now = (row) => !(row.image_score <= known.threshold);
  const changed = recent.filter((row) => calls(row) !== now(row)).length;
  const sentences = [`Above ${threshold.toPrecision(4)}: ${stopped} of ${good.length} good calibration pictures.`];
  if (threshold === known.threshold) return `${sentences[0]} Drag the line, or move it with the arrow keys, to see what another threshold would do.`;
  if (recent.length) sentences.push(`${changed} of the last ${recent.length} inspections would be decided otherwise.`);
  if (shown) sentences.push(`This picture would ${calls(shown) ? "be rejected" : "not be rejected"}.`);
  const judged = recent.filter((row) => row.verdict);
  if (judged.length) {
    const wrong = judged.filter((row) => calls(row) !== (row.verdict === "defective")).length;
    sentences.push(`Of ${judged.length} judged by a person, it would get ${wrong} wrong.`);
  }
  return sentences.join(" ");
}
