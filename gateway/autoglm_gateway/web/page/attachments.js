/** Images for the next question: chosen or pasted, kept as data URLs, shown small until they are sent. */

import { button, element } from "./elements.js";

const TYPES = ["image/png", "image/jpeg", "image/webp"];

export class Attachments {
  #list;
  #size;
  #urls = [];

  /** `size`: the field with the select of how large the model gets them. */
  constructor(list, size) {
    this.#list = list;
    this.#size = size;
  }

  /** As a request has them: `{ url }`, and `detail` where it is asked for. */
  get images() {
    const detail = this.#size.querySelector("select").value;
    return this.#urls.map((url) => (detail === "auto" ? { url } : { url, detail }));
  }

  /** Files of other kinds are left out; whether there was an image. */
  add(files) {
    const images = [...files].filter((file) => TYPES.includes(file.type));
    for (const file of images) this.#read(file);
    return images.length > 0;
  }

  /** Those of `images` have been sent. */
  remove(images) {
    const urls = images.map((image) => image.url);
    this.#urls = this.#urls.filter((url) => !urls.includes(url));
    this.#show();
  }

  async #read(file) {
    this.#urls.push(await dataUrl(file));
    this.#show();
  }

  #show() {
    this.#list.replaceChildren(...this.#urls.map((url, number) => this.#shown(url, number + 1)));
    this.#list.hidden = this.#size.hidden = this.#urls.length === 0;
  }

  #shown(url, number) {
    const remove = button("Remove", () => this.remove([{ url }]));
    remove.setAttribute("aria-label", `Remove image ${number}`);
    return element("li", {}, thumbnail(url, number), remove);
  }
}

export function thumbnail(url, number) {
  return element("img", { src: url, alt: `Image ${number}`, className: "thumbnail" });
}

function dataUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}
