// A line chart of up to an hour, readable with the pointer and with the arrow keys.

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 720;
const HEIGHT = 100;
const HOUR = 3600_000;
// The shortest span shown: an agent that has just started has few points.
const NARROWEST = 5 * 60_000;

const number = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });
const short = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
const clock = new Intl.DateTimeFormat("en", { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
const minute = new Intl.DateTimeFormat("en", { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });

function make(parent, name, attributes = {}) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  parent.append(element);
  return element;
}

export class Chart {
  /** Appends itself to `place`. `lines` are the curves, [{ name, style }]; the first one's area is filled. */
  constructor(place, label, lines, unit, tall = false) {
    this.label = label;
    this.lines = lines;
    this.unit = unit;
    this.at = [];
    this.gap = Infinity;
    this.values = lines.map(() => []);
    this.cursor = null;
    this.figure = document.createElement("figure");
    this.figure.className = tall ? "chart tall" : "chart";
    const plot = document.createElement("div");
    plot.className = "plot";
    plot.tabIndex = 0;
    plot.setAttribute("role", "img");
    const svg = make(plot, "svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" });
    this.area = make(svg, "path", { class: "area" });
    this.paths = lines.map((line) => make(svg, "path", { class: line.style }));
    this.rule = make(svg, "line", { y1: 0, y2: HEIGHT, visibility: "hidden" });
    this.most = document.createElement("span");
    this.most.className = "most";
    plot.append(this.most);
    const caption = document.createElement("figcaption");
    this.left = document.createElement("span");
    this.right = document.createElement("span");
    caption.append(this.left, this.right);
    this.figure.append(plot, caption);
    this.plot = plot;
    place.append(this.figure);
    plot.addEventListener("pointermove", (event) => {
      const box = plot.getBoundingClientRect();
      this.point(this.nearest(this.from() + ((event.clientX - box.left) / box.width) * this.span()));
    });
    plot.addEventListener("pointerleave", () => this.point(null));
    plot.addEventListener("blur", () => this.point(null));
    plot.addEventListener("keydown", (event) => this.key(event));
  }

  key(event) {
    const last = this.at.length - 1;
    const step = { ArrowLeft: -1, ArrowRight: 1, PageUp: -60, PageDown: 60, Home: -Infinity, End: Infinity }[event.key];
    if (step === undefined || last < 0) return;
    event.preventDefault();
    this.point(Math.min(last, Math.max(0, (this.cursor ?? last) + step)));
  }

  /** The time shown, in milliseconds: up to an hour. */
  span() {
    return Math.min(HOUR, Math.max(NARROWEST, (this.at.at(-1) ?? 0) - (this.at[0] ?? 0)));
  }

  from() {
    return (this.at.at(-1) ?? Date.now()) - this.span();
  }

  nearest(time) {
    let best = null;
    for (let n = 0; n < this.at.length; n += 1) {
      if (best === null || Math.abs(this.at[n] - time) < Math.abs(this.at[best] - time)) best = n;
    }
    return best;
  }

  /** Number of points. */
  get length() {
    return this.at.length;
  }

  /** Draws these points. Points further apart than `gap` milliseconds are not joined. */
  set(at, values, gap) {
    this.at = at;
    this.gap = gap;
    this.values = values;
    this.draw();
  }

  draw() {
    const from = this.from();
    const most = Math.max(1, ...this.values.flat());
    const span = this.span();
    const x = (n) => (((this.at[n] - from) / span) * WIDTH).toFixed(1);
    const y = (value) => (HEIGHT - (value / most) * (HEIGHT - 4)).toFixed(1);
    const stretches = this.stretches();
    this.values.forEach((values, line) => {
      const paths = stretches.map(([first, last]) => {
        const points = values.slice(first, last + 1).map((value, n) => `${x(first + n)} ${y(value)}`);
        return `M${points.join("L")}`;
      });
      this.paths[line].setAttribute("d", paths.join(""));
      if (line === 0) {
        const closed = paths.map((path, n) => `${path}L${x(stretches[n][1])} ${HEIGHT}L${x(stretches[n][0])} ${HEIGHT}Z`);
        this.area.setAttribute("d", closed.join(""));
      }
    });
    this.most.textContent = `${short.format(most)}${this.unit}`;
    this.plot.dataset.points = String(this.at.length);
    this.caption();
  }

  /** First and last point of each stretch without a gap. */
  stretches() {
    const stretches = [];
    this.at.forEach((at, n) => {
      if (n && at - this.at[n - 1] <= this.gap) stretches.at(-1)[1] = n;
      else stretches.push([n, n]);
    });
    return stretches;
  }

  point(index) {
    this.cursor = index;
    this.caption();
  }

  caption() {
    const n = this.cursor;
    this.rule.setAttribute("visibility", n === null ? "hidden" : "visible");
    const now = this.lines.map((line, l) => `${line.name} ${number.format(this.values[l].at(-1) ?? 0)}`).join(", ");
    if (n === null) {
      const span = `${Math.round(this.span() / 60_000)} min`;
      this.left.textContent = `${span} ago, ${minute.format(this.from())}`;
      this.right.textContent = "now";
      this.plot.setAttribute("aria-label", `${this.label}, the last ${span}; now ${now}${this.unit}. Use the arrow keys to read values.`);
      return;
    }
    const x = ((this.at[n] - this.from()) / this.span()) * WIDTH;
    this.rule.setAttribute("x1", x);
    this.rule.setAttribute("x2", x);
    const then = this.lines.map((line, l) => `${line.name} ${number.format(this.values[l][n])}`).join("  ");
    this.left.textContent = clock.format(this.at[n]);
    this.right.textContent = `${then}${this.unit}`;
    this.plot.setAttribute("aria-label", `${this.left.textContent}: ${this.right.textContent}`);
  }
}
