/** What one answer took: measured here, and as the server says it. */

import { element } from "./elements.js";

// In the order in which a request passes them; the last is what the others leave of the time.
const STAGES = ["queue", "tokenize", "embed", "prefill", "decode", "detokenize", "network"];

/** From sending to the last piece of text, by this page's clock. Milliseconds. */
export class Stopwatch {
  #sent = performance.now();
  #first = null;
  #last = null;

  lap() {
    this.#last = performance.now();
    this.#first ??= this.#last;
  }

  get toFirst() {
    return this.#first === null ? null : this.#first - this.#sent;
  }

  get total() {
    return performance.now() - this.#sent;
  }

  /** Of the tokens after the first. Pieces that were held up on the way arrive together, so they count as no faster than
   * they were decoded, which took `decodeMs`. Null where all came at once and nothing was decoded. */
  speed(tokens, decodeMs) {
    const seconds = Math.max(this.#last - this.#first, decodeMs) / 1000;
    return tokens > 1 && seconds > 0 ? (tokens - 1) / seconds : null;
  }
}

export class Figures {
  element = element("div", { className: "figures", hidden: true });
  #list = element("dl");

  constructor() {
    this.element.append(this.#list);
  }

  show(name, value) {
    if (value === null) return;
    this.element.hidden = false;
    this.#list.append(element("div", {}, element("dt", {}, name), element("dd", {}, value)));
  }

  /** `usage` and `about` are those of the last chunks; either may be missing. */
  complete(watch, usage, about, reason) {
    if (usage) {
      const speed = watch.speed(usage.completion_tokens, about?.stages.decode_ms ?? 0);
      this.show("Speed", speed === null ? "in one piece" : `${speed.toFixed(1)} tokens/s`);
      this.show("Prompt", promptTokens(usage));
      this.show("Answer", counted(usage.completion_tokens, "token"));
    }
    this.show("Total", duration(watch.total));
    if (reason) this.show("End", reason);
    if (about) {
      this.show("Cache", about.cache_hit === "none" ? "no hit" : kept(about));
      this.element.append(...stages(about.stages));
    }
  }
}

export function duration(ms) {
  if (ms >= 1000) return `${(ms / 1000).toFixed(2)} s`;
  return `${ms.toFixed(ms < 9.95 ? 1 : 0)} ms`;
}

function age(ms) {
  const minutes = ms / 60_000;
  if (minutes < 1) return `${(ms / 1000).toFixed(1)} s`;
  return minutes < 60 ? `${minutes.toFixed(0)} min` : `${(minutes / 60).toFixed(1)} h`;
}

function counted(number, thing) {
  return `${number} ${thing}${number === 1 ? "" : "s"}`;
}

function promptTokens(usage) {
  const cached = usage.prompt_tokens_details?.cached_tokens ?? 0;
  return `${counted(usage.prompt_tokens, "token")}, ${cached} cached`;
}

function kept(about) {
  const since = about.cache_age_ms > 0 ? `, ${age(about.cache_age_ms)} old` : "";
  return `${about.cache_hit}${since}`;
}

/** A bar, and a legend that has all of its figures as text. */
function stages(times) {
  const spent = STAGES.map((name) => [name, times[`${name}_ms`] ?? 0]).filter(([, ms]) => ms >= 0.05);
  const bar = element("div", { className: "bar", "aria-hidden": "true" });
  const legend = element("ul", { className: "legend", "aria-label": "Where the time went" });
  for (const [name, ms] of spent) {
    const part = element("span", { className: `stage ${name}`, title: `${name}: ${duration(ms)}` });
    part.style.flexGrow = ms;
    bar.append(part);
    const swatch = element("span", { className: `swatch stage ${name}`, "aria-hidden": "true" });
    legend.append(element("li", {}, swatch, `${name} `, element("b", {}, duration(ms))));
  }
  return spent.length ? [bar, legend] : [];
}
