/** From the fields of the page to the body of a request. A field that is empty is left out: the server has its own default. */

const NUMBERS = ["temperature", "top_p", "max_tokens", "seed"];
const MOST_STOPS = 16;

/** `form`: the options; `turns`: what was asked and answered before; `images`: as `Attachments.images`. */
export function requestOf(form, turns, question, images) {
  const fields = form.elements;
  const body = { model: fields.model.value, messages: messagesOf(fields.system.value, turns, question, images) };
  for (const name of NUMBERS) if (fields[name].value !== "") body[name] = fields[name].valueAsNumber;
  const stops = stopsOf(fields.stop.value);
  if (stops.length) body.stop = stops;
  if (fields.cache.value !== "default") body.cache = fields.cache.value;
  return { ...body, stream: true, stream_options: { include_usage: true } };
}

/** Says in the browser's own way what is wrong with the list of stops. */
export function checkStops(field) {
  const count = stopsOf(field.value).length;
  field.setCustomValidity(count > MOST_STOPS ? `There are ${count} texts: up to ${MOST_STOPS} can be given.` : "");
}

function messagesOf(system, turns, question, images) {
  const before = turns.flatMap((turn) => [
    { role: "user", content: contentOf(turn.question, turn.images) },
    { role: "assistant", content: turn.answer },
  ]);
  const opening = system.trim() ? [{ role: "system", content: system }] : [];
  return [...opening, ...before, { role: "user", content: contentOf(question, images) }];
}

/** Images come before the text. */
function contentOf(question, images) {
  if (!images.length) return question;
  return [...images.map((image) => ({ type: "image_url", image_url: image })), { type: "text", text: question }];
}

function stopsOf(text) {
  return text.split("\n").filter(Boolean).map((line) => line.replaceAll("\\n", "\n"));
}
