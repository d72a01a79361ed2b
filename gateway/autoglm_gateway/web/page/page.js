/** Puts the page together: its fields, its keys, and the conversation. */

import { chat, models } from "./api.js";
import { Attachments } from "./attachments.js";
import { element } from "./elements.js";
import { Follower } from "./following.js";
import { checkStops, requestOf } from "./request.js";
import { Turn } from "./turn.js";

const KEY = "autoglm-api-key"; // in sessionStorage

const at = (id) => document.getElementById(id);
const [conversation, welcome, message, send, settings] = ["conversation", "welcome", "message", "send", "settings"].map(at);

const attachments = new Attachments(at("images"), at("size"));
const follower = new Follower(conversation);
let turns = [];
let running = null; // the AbortController of the answer that streams

at("key").value = sessionStorage.getItem(KEY) ?? "";
at("composer").addEventListener("submit", submit);
at("restart").addEventListener("click", restart);
at("toggle").addEventListener("click", () => showOptions(!optionsAreShown()));
at("key").addEventListener("change", keyChanged);
at("stop").addEventListener("input", (event) => checkStops(event.target));
at("examples").addEventListener("click", (event) => event.target.closest("button") && ask(event.target.textContent));
settings.addEventListener("submit", (event) => event.preventDefault());
at("attach").addEventListener("click", () => at("file").click());
at("file").addEventListener("change", attachChosen);
message.addEventListener("paste", attachPasted);
message.addEventListener("input", fit);
message.addEventListener("keydown", sendOnEnter);
document.addEventListener("keydown", leaveOnEscape);
showModels();

function submit(event) {
  event.preventDefault();
  if (running) running.abort();
  else if (message.value.trim()) ask(message.value);
}

function sendOnEnter(event) {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  if (!running && message.value.trim()) ask(message.value);
}

function leaveOnEscape(event) {
  if (event.key !== "Escape" || event.isComposing) return;
  if (running) running.abort();
  else if (optionsAreShown()) {
    showOptions(false);
    at("toggle").focus();
  }
}

function attachChosen(event) {
  attachments.add(event.target.files);
  event.target.value = "";
  message.focus();
}

function attachPasted(event) {
  if (attachments.add(event.clipboardData.files)) event.preventDefault();
}

async function ask(question, images = attachments.images) {
  if (running || !settingsAreRight()) return;
  running = new AbortController();
  if (!at("model").value) await showModels();
  const key = at("key").value.trim();
  const request = requestOf(settings, turns.filter((turn) => turn.counts), question, images);
  const turn = new Turn(question, images, request, key !== "", again);
  begin(turn);
  await stream(turn, chat(request, key, running.signal), running.signal);
  finish();
}

async function stream(turn, chunks, signal) {
  try {
    for await (const chunk of chunks) {
      turn.take(chunk);
      follower.grown();
    }
    turn.complete();
  } catch (error) {
    if (signal.aborted) turn.stop();
    else turn.fail(error.message);
  }
}

function begin(turn) {
  welcome.hidden = true;
  turns.push(turn);
  conversation.append(turn.element);
  follower.toEnd();
  if (message.value === turn.question) message.value = "";
  attachments.remove(turn.images);
  fit();
  message.focus();
  send.textContent = "Stop";
  send.setAttribute("aria-keyshortcuts", "Escape");
}

function finish() {
  running = null;
  send.textContent = "Send";
  send.setAttribute("aria-keyshortcuts", "Enter");
  follower.grown();
}

function again(turn) {
  if (running || !settingsAreRight()) return;
  forget([turn]);
  ask(turn.question, turn.images);
}

function restart() {
  running?.abort();
  forget(turns);
  welcome.hidden = false;
  message.focus();
}

function forget(gone) {
  for (const turn of gone) turn.element.remove();
  turns = turns.filter((turn) => !gone.includes(turn));
}

function fit() {
  message.style.height = "auto";
  message.style.height = `${message.scrollHeight}px`;
}

async function showModels() {
  const chosen = at("model").value;
  try {
    const names = await models(at("key").value.trim());
    at("model").replaceChildren(...names.map((name) => element("option", { selected: name === chosen }, name)));
    at("model-note").textContent = "";
  } catch (error) {
    at("model").replaceChildren();
    at("model-note").textContent = error.message;
  }
}

function keyChanged() {
  const key = at("key").value.trim();
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
  if (settings.checkValidity()) showModels();
}

/** Where a field is not, the browser says what is wrong with it, and it gets the focus. */
function settingsAreRight() {
  if (settings.checkValidity()) return true;
  showOptions(true);
  settings.reportValidity();
  return false;
}

function optionsAreShown() {
  return document.body.classList.contains("options-shown"); // matters on narrow screens alone
}

function showOptions(shown) {
  document.body.classList.toggle("options-shown", shown);
  at("toggle").setAttribute("aria-expanded", shown);
  at("toggle").textContent = shown ? "Done" : "Options";
}
