/** Elements are made here, from text alone: nothing that a model or server says is ever read as HTML. */

export function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key in made) made[key] = value;
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

export function button(text, onclick, className = "quiet") {
  return element("button", { type: "button", className, onclick }, text);
}

/** A button that copies what `text` returns and says so for a moment. */
export function copyButton(name, text) {
  const made = button(name, async () => {
    made.textContent = (await copied(text())) ? "Copied" : "Cannot copy here";
    announce(made.textContent);
    setTimeout(() => (made.textContent = name), 1500);
  });
  return made;
}

/** To those who hear the page. */
function announce(text) {
  document.getElementById("said").textContent = text;
}

async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copiedFromField(text); // pages that came over plain HTTP from another host have no clipboard
  }
}

function copiedFromField(text) {
  const focused = document.activeElement;
  const field = element("textarea", { value: text, className: "hidden" });
  document.body.append(field);
  field.select();
  const done = document.execCommand("copy");
  field.remove();
  focused?.focus();
  return done;
}
