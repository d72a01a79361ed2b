/** Server-sent events as the HTML standard reads them (9.2.6), however the bytes are cut. Only `data` is of use here. */

export class EventParser {
  #line = "";
  #data = [];
  #afterReturn = false; // "\r\n" is one end of a line, also where it is cut in two

  /** The data of each event that `text` completes. */
  push(text) {
    const fresh = this.#afterReturn && text.startsWith("\n") ? text.slice(1) : text;
    if (text) this.#afterReturn = fresh.endsWith("\r");
    const lines = (this.#line + fresh).split(/\r\n|\r|\n/);
    this.#line = lines.pop();
    return lines.flatMap((line) => this.#take(line));
  }

  #take(line) {
    if (line === "") {
      const complete = this.#data.length ? [this.#data.join("\n")] : [];
      this.#data = [];
      return complete;
    }
    if (line === "data") this.#data.push("");
    else if (line.startsWith("data:")) this.#data.push(line.slice(line[5] === " " ? 6 : 5));
    return [];
  }
}

/** Of a ReadableStream of bytes. */
export async function* eventData(stream) {
  const reader = stream.getReader();
  const decoder = new TextDecoder();
  const parser = new EventParser();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield* parser.push(decoder.decode(value, { stream: true }));
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
