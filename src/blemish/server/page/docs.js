// The description in openapi.json, as something to read.
const made = (kind, ...children) => {
  const element = document.createElement(kind);
  element.append(...children);
  return element;
};
const rows = (heads, lines) => made("table",
  made("thead", made("tr", ...heads.map((head) => made("th", head)))),
  made("tbody", ...lines.map((line) => made("tr", ...line.map((cell) => made("td", cell))))));

const described = await (await fetch("/openapi.json")).json();
document.getElementById("docs").append(made("p", described.info.description));
for (const [path, methods] of Object.entries(described.paths)) {
  for (const [method, operation] of Object.entries(methods)) {
    const section = made("section", made("h2", made("code", `${method.toUpperCase()} ${path}`)), made("p", operation.summary));
    const inputs = (operation.parameters ?? []).map((one) => [made("code", one.name), one.description]);
    for (const kind of Object.keys(operation.requestBody?.content ?? {})) inputs.push(["body", `${kind}: ${operation.requestBody.description}`]);
    if (inputs.length) section.append(rows(["takes", ""], inputs));
    section.append(rows(["answers", ""], Object.entries(operation.responses).map(([status, one]) => [status, one.description])));
    document.getElementById("docs").append(section);
  }
}
