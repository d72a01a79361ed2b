/** One question and its answer, as they are shown. */

import { curlCommand } from "./api.js";
import { thumbnail } from "./attachments.js";
import { copyButton, button, element } from "./elements.js";
import { Figures, Stopwatch, duration } from "./figures.js";

export class Turn {
  #text = document.createTextNode("");
  #answer = element("div", { className: "answer" }, this.#text);
  #thought = document.createTextNode("");
  #thinking = element("details", { className: "thinking", hidden: true }, element("summary", {}, "Thinking"), this.#thought);
  #figures = new Figures();
  #copy = copyButton("Copy answer", () => this.answer);
  #actions = element("div", { className: "actions", hidden: true });
  #watch = new Stopwatch();
  #last = {}; // what the last chunks said: usage, autoglm, reason
  failed = false;

  /** `images`: as `Attachments.images`; `again`: called where the question shall be asked once more. */
  constructor(question, images, request, hasKey, again) {
    this.question = question;
    this.images = images;
    this.element = element("article", { className: "turn streaming", "aria-busy": "true" });
    this.#actions.append(
      this.#copy,
      copyButton("Copy as curl", () => curlCommand(request, hasKey)),
      button("Ask again", () => again(this), "quiet again"),
    );
    const asked = element("h2", { className: "question" }, element("span", { className: "hidden" }, "You: "), question);
    if (images.length) this.element.append(element("div", { className: "shown" }, ...images.map(({ url }, at) => thumbnail(url, at + 1))));
    this.element.append(asked, this.#thinking, this.#answer, this.#figures.element, this.#actions);
  }

  get answer() {
    return this.#text.data;
  }

  /** Whether the model may be told of it with the next question. */
  get counts() {
    return !this.failed && this.answer !== "";
  }

  take(chunk) {
    const [choice] = chunk.choices;
    if (choice?.delta.reasoning_content) this.#think(choice.delta.reasoning_content);
    if (choice?.delta.content) this.#piece(choice.delta.content);
    if (choice?.finish_reason) this.#last.reason = choice.finish_reason;
    if (chunk.usage) this.#last.usage = chunk.usage;
    if (chunk.autoglm) this.#last.about = chunk.autoglm;
  }

  complete() {
    this.#figures.complete(this.#watch, this.#last.usage, this.#last.about, this.#last.reason);
    if (!this.answer) this.#remark("The answer is empty.");
    this.#end();
  }

  stop() {
    this.#figures.complete(this.#watch, null, null, "stopped by you");
    this.#end();
  }

  fail(sentence) {
    this.failed = true;
    this.#answer.after(element("p", { className: "error", role: "alert" }, sentence));
    this.#end();
  }

  #think(text) {
    this.#thinking.hidden = false;
    this.#lap();
    this.#thought.appendData(text);
  }

  #piece(text) {
    this.#lap();
    this.#text.appendData(text);
  }

  #lap() {
    const isFirst = this.#watch.toFirst === null;
    this.#watch.lap();
    if (isFirst) this.#figures.show("First token", duration(this.#watch.toFirst));
  }

  #remark(sentence) {
    this.#answer.after(element("p", { className: "note" }, sentence));
  }

  #end() {
    this.element.classList.remove("streaming");
    this.element.setAttribute("aria-busy", "false");
    this.#copy.hidden = !this.answer;
    this.#actions.hidden = false;
  }
}
