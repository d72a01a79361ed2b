/** Keeps the end of what grows in view, until its reader scrolls up, and again once they are back at the end. */

const NEAR = 48; // pixels from the end that count as the end

export class Follower {
  #box;
  #top = 0;
  #follows = true;
  #isDue = false;

  constructor(box) {
    this.#box = box;
    box.addEventListener("scroll", () => this.#scrolled());
  }

  /** Something was added. */
  grown() {
    if (!this.#follows || this.#isDue) return;
    this.#isDue = true;
    requestAnimationFrame(() => {
      this.#isDue = false;
      if (this.#follows) this.toEnd();
    });
  }

  toEnd() {
    this.#follows = true;
    this.#box.scrollTop = this.#box.scrollHeight;
  }

  /** What was added since the last frame may have moved the end away, so only upward counts as leaving it. */
  #scrolled() {
    const { scrollTop, scrollHeight, clientHeight } = this.#box;
    if (scrollTop < this.#top) this.#follows = false;
    if (scrollHeight - scrollTop - clientHeight < NEAR) this.#follows = true;
    this.#top = scrollTop;
  }
}
