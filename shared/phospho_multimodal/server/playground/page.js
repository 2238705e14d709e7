// The page's own work. What comes from a server or a file is shown by textContent alone.

import { curl, langchain, llamaIndex } from "/playground/code.js";

const LIST_PRICE = 0.01; // dollars an answered image; this server bills nothing
const KEY = "phospho-key"; // in sessionStorage: it ends with the tab

const at = (id) => document.getElementById(id);
const state = { file: null, url: null, running: null, answered: 0 };

// ---- the picture

function choose(file) {
  if (!file) return;
  state.file = file;
  // Earlier addresses stay valid: the history shows them.
  state.url = URL.createObjectURL(file);
  at("preview").src = state.url;
  at("preview").alt = `The image ${file.name}`;
  at("preview").hidden = false;
  at("picture-facts").textContent = `${file.name}, ${bytes(file.size)}`;
  say("The image is ready. Nothing was sent yet.");
  showCode();
}

at("preview").addEventListener("load", () => {
  const { naturalWidth, naturalHeight } = at("preview");
  at("picture-facts").textContent =
    `${state.file.name}, ${bytes(state.file.size)}, ${naturalWidth} × ${naturalHeight} pixels`;
});
// A type that the browser does not know may still be one that the server does.
at("preview").addEventListener("error", () => { at("preview").hidden = true; });
at("picture").addEventListener("change", (event) => choose(event.target.files[0]));

// Over the whole page: a picture dropped beside the field must not replace the page.
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  at("drop").classList.add("over");
});
document.addEventListener("dragleave", () => at("drop").classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  at("drop").classList.remove("over");
  choose(event.dataTransfer.files[0]);
});
document.addEventListener("paste", (event) => choose(event.clipboardData.files[0]));

// ---- asking

at("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  if (state.running) return;
  if (!state.file) {
    say("Choose an image first.", true);
    at("picture").focus();
    return;
  }
  const asked = { file: state.file, url: state.url, text: at("prompt").value, parameters: parameters() };
  state.running = new AbortController();
  busy(true);
  at("answer").textContent = "";
  at("facts").hidden = true;
  say("Asking…");
  const started = performance.now();
  try {
    const data = await asked.file.arrayBuffer();
    const [base64, digest] = await Promise.all([base64Of(asked.file), sha256(data)]);
    const reply = await send(asked, base64, state.running.signal);
    const seconds = (performance.now() - started) / 1000;
    show(asked, reply, { digest, seconds });
  } catch (failure) {
    const cancelled = failure.name === "AbortError";
    say(cancelled ? "Cancelled." : `The server could not be reached: ${failure.message}`, !cancelled);
  } finally {
    state.running = null;
    busy(false);
  }
});
at("cancel").addEventListener("click", () => state.running?.abort());
at("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) at("form").requestSubmit();
});

async function send({ text, parameters: chosen }, base64, signal) {
  const headers = { "Content-Type": "application/json", Accept: "application/json" };
  if (at("key").value) headers.Authorization = `Bearer ${at("key").value}`;
  const body = { model: "phospho-multimodal", inputs: [{ text, ...chosen, image_url: base64 }] };
  const response = await fetch("/v2/predict", {
    method: "POST", headers, body: JSON.stringify(body), signal, credentials: "omit", redirect: "error",
  });
  const answer = await response.json().catch(() => ({}));
  return { status: response.status, answer };
}

function show(asked, { status, answer }, { digest, seconds }) {
  const good = status === 200;
  const text = good ? answer.predictions[0].description : problem(status, answer.detail);
  at("answer").textContent = text;
  at("answer").classList.toggle("failed", !good);
  say(good ? `Answered in ${seconds.toFixed(2)} s.` : `The server answered ${status}.`, !good);
  at("sent").textContent = `${asked.file.name}, ${bytes(asked.file.size)}, as it is`;
  at("sha256").textContent = digest;
  at("time").textContent = `${seconds.toFixed(2)} s`;
  at("price").textContent = good
    ? `$${LIST_PRICE.toFixed(2)} at the hosted endpoint; this server bills nothing` : "$0.00: not answered";
  at("facts").hidden = false;
  if (good) state.answered += 1;
  remember(asked, text, good, seconds);
  if (status === 401 || status === 403) {
    at("key").closest("details").open = true;
    at("key").focus();
  }
}

function problem(status, detail) {
  if (Array.isArray(detail)) return detail.map((item) => item.msg).join("\n");
  return typeof detail === "string" ? detail : `Status ${status}, and nothing more was said.`;
}

// ---- the visit

function remember(asked, text, good, seconds) {
  const entry = document.createElement("li");
  const image = document.createElement("img");
  image.src = asked.url;
  image.alt = asked.file.name;
  const words = document.createElement("div");
  const question = document.createElement("p");
  const strong = document.createElement("strong");
  strong.textContent = asked.text;
  question.append(strong, ` (${asked.file.name}, ${seconds.toFixed(2)} s)`);
  const answer = document.createElement("p");
  answer.className = good ? "answer" : "answer failed";
  answer.tabIndex = 0; // it may scroll
  answer.textContent = text;
  words.append(question, answer);
  const again = document.createElement("button");
  again.type = "button";
  again.className = "plain";
  again.textContent = "Take again";
  again.setAttribute("aria-label", `Take again: ${asked.text}`);
  again.addEventListener("click", () => {
    at("prompt").value = asked.text;
    for (const input of parameterInputs()) input.value = asked.parameters[input.name] ?? "";
    choose(asked.file);
    at("prompt").focus();
  });
  entry.append(image, words, again);
  at("history").prepend(entry);
  const total = (state.answered * LIST_PRICE).toFixed(2);
  at("total").textContent =
    `${state.answered} answered, $${total} at the hosted endpoint's list price. The history is gone when the page is closed.`;
}

// ---- code

function showCode() {
  const file = state.file?.name ?? "image.png";
  const call = {
    origin: location.origin, text: at("prompt").value, parameters: parameters(), file,
    type: state.file?.type || "image/png", needsKey: Boolean(at("key").value),
  };
  at("code-curl").textContent = curl(call);
  at("code-langchain").textContent = langchain(call);
  at("code-llama-index").textContent = llamaIndex(call);
}

for (const button of document.querySelectorAll("[data-copy]")) {
  button.addEventListener("click", async () => {
    const code = at(button.dataset.copy);
    let copied = false;
    try {
      await navigator.clipboard.writeText(code.textContent);
      copied = true;
    } catch {
      // No clipboard outside of a secure context: the old way, and the text stays selected.
      getSelection().selectAllChildren(code);
      copied = document.execCommand("copy");
    }
    at("copied").textContent = copied
      ? `Copied the ${button.dataset.name} code.` : "Copying is not allowed here; the code is selected: press Ctrl+C.";
  });
}

// ---- small things

const parameterInputs = () => document.querySelectorAll("input[type=number]");

function parameters() {
  const set = {};
  for (const input of parameterInputs()) {
    if (input.value !== "") set[input.name] = Number(input.value);
  }
  return set;
}

function say(text, failed = false) {
  at("status").textContent = text;
  at("status").classList.toggle("failed", failed);
}

function busy(is) {
  // aria-disabled: a button that is disabled would lose the focus.
  at("ask").setAttribute("aria-disabled", String(is));
  at("cancel").hidden = !is;
}

function bytes(count) {
  return `${count.toLocaleString("en")} bytes`;
}

function base64Of(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}

async function sha256(data) {
  if (!globalThis.crypto?.subtle) return "not computed: the browser does that over https or on localhost alone";
  const digest = await crypto.subtle.digest("SHA-256", data);
  return Array.from(new Uint8Array(digest), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

at("key").value = sessionStorage.getItem(KEY) ?? "";
at("key").addEventListener("input", () => {
  if (at("key").value) sessionStorage.setItem(KEY, at("key").value);
  else sessionStorage.removeItem(KEY);
});
at("form").addEventListener("input", showCode);
showCode();

fetch("/health", { credentials: "omit" })
  .then((response) => response.json())
  .then(({ engine }) => { at("engine").textContent = engine; })
  .catch(() => { at("engine").textContent = "that did not say its name"; });

fetch("/playground/about", { credentials: "omit" })
  .then((response) => response.json())
  .then(({ lines }) => {
    at("about").replaceChildren(...lines.map((line) => {
      const paragraph = document.createElement("p");
      paragraph.textContent = line;
      return paragraph;
    }));
  })
  .catch(() => {}); // the engine's name is shown above
