// Requests to the server that the page came from.
const dialog = document.getElementById("ask");
const field = document.getElementById("token");
let asking = null;

// Asks for the token once, however many requests need it.
function askToken() {
  asking ??= new Promise((done) => {
    dialog.addEventListener("close", () => {
      sessionStorage.setItem("token", field.value);
      asking = null;
      done();
    }, { once: true });
    dialog.showModal();
  });
  return asking;
}

export async function request(path, options = {}) {
  const token = sessionStorage.getItem("token");
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const answer = await fetch(path, { ...options, headers });
  if (answer.status !== 401) return answer;
  await askToken();
  return request(path, options);
}

// The JSON of an answer. A decision that could not be recorded is an answer, too: it has both.
export async function ask(path, options) {
  const answer = await request(path, options);
  const said = await answer.json();
  if (answer.ok || said.decision) return said;
  throw Object.assign(new Error(said.error), { status: answer.status, after: answer.headers.get("Retry-After") });
}

export const get = (path) => ask(path);

// Tries again for as long as the server says that it is busy.
export async function waiting(attempt) {
  for (;;) {
    try {
      return await attempt();
    } catch (error) {
      if (error.status !== 429) throw error;
      await new Promise((done) => setTimeout(done, 1000 * (error.after ?? 1)));
    }
  }
}
