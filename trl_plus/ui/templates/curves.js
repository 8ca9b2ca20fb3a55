// Curves over other axes, smoothed, on a log axis, closer, and as CSV. Without this script they stay as they were drawn.
(function () {
  const root = document.getElementById("curves");
  const controls = document.getElementById("curve-controls");
  if (!root || !controls) return;
  const data = JSON.parse(root.dataset.curves);
  const { width, height } = data;
  for (const line of data.plots.flatMap((plot) => plot.lines)) line.steps = data.steps[line.steps];
  const places = data.runs.map((run) => new Map(run.steps.map((step, place) => [step, place])));
  const [by, smooth, log, whole, reading] = ["curve-by", "curve-smooth", "curve-log", "curve-whole", "reading"].map((id) => document.getElementById(id));
  const boxes = Array.from(document.querySelectorAll(".curve-run"));
  const figures = Array.from(root.querySelectorAll("figure.curve")).map((node) => ({
    node,
    plot: data.plots[Number(node.dataset.plot)],
    first: node.querySelector("svg.plot"), // as it was drawn without this script
    svg: node.querySelector("svg.plot"),
    notes: Array.from(node.querySelectorAll(".note")),
  }));
  let view = null; // [from, to] on the axis; null for the whole run

  function element(name, attributes, text) {
    const made = document.createElementNS(root.querySelector("svg").namespaceURI, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== undefined) made.textContent = text;
    return made;
  }

  // -- axes ------------------------------------------------------------------------------------------------------

  function place(run, step) {
    const column = data.runs[run][by.value];
    if (!column) return NaN;
    const { steps } = data.runs[run];
    if (places[run].has(step)) return column[places[run].get(step)];
    const after = steps.findIndex((known) => known > step); // between two logs: a moment
    if (after < 1) return after === 0 ? column[0] : column[column.length - 1];
    const share = (step - steps[after - 1]) / (steps[after] - steps[after - 1]);
    return column[after - 1] + share * (column[after] - column[after - 1]);
  }

  function figure(value) {
    if (!isFinite(value)) return String(value);
    if (value && (Math.abs(value) >= 1e9 || Math.abs(value) < 1e-4)) return value.toExponential(3).replace(/\.?0+e/, "e").replace("e+", "e");
    return Math.abs(value) >= 10000 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(4)));
  }

  function ticks(low, high, count) {
    const raw = (high - low) / count;
    const power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].find((factor) => factor * power >= raw * 0.999) * power;
    const found = [];
    for (let index = Math.floor(low / step + 1e-9); index <= Math.ceil(high / step - 1e-9); index += 1) found.push(Number((index * step).toPrecision(12)));
    return found;
  }

  // Values above 0 that reach over [low, high]: round ones within a decade, 1, 2 and 5 or powers of ten over more
  function logTicks(low, high) {
    if (high / low < 8) return ticks(low, high, 4).filter((value) => value > 0);
    const factors = high / low < 300 ? [1, 2, 5] : [1];
    const found = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1) for (const factor of factors) found.push(Number((factor * 10 ** power).toPrecision(12)));
    const first = found.findLastIndex((value) => value <= low * 1.001);
    const last = found.findIndex((value) => value >= high * 0.999);
    const held = found.slice(Math.max(first, 0), last < 0 ? found.length : last + 1);
    const every = Math.ceil(held.length / 8);
    return held.filter((value, index) => index % every === 0 || index === held.length - 1);
  }

  function short(value) {
    const [size, unit] = Math.abs(value) >= 1e9 ? [1e9, "G"] : Math.abs(value) >= 1e6 ? [1e6, "M"] : Math.abs(value) >= 1e4 ? [1e3, "k"] : [1, ""];
    return Number((value / size).toPrecision(6)) + unit;
  }

  // The scale of the axis below: how many of its units are one of the axis, and the unit's name
  function scale(most) {
    if (by.value !== "seconds") return [1, by.value === "steps" ? "step" : "tokens"];
    return most >= 7200 ? [3600, "hours"] : most >= 120 ? [60, "minutes"] : [1, "seconds"];
  }

  // -- lines -----------------------------------------------------------------------------------------------------

  // An exponential mean, without the pull of its first value; what is not finite is left as it is
  function smoothed(points, weight) {
    let sum = 0;
    let total = 0;
    return points.map((point) => {
      if (!isFinite(point.y)) return point;
      sum = weight * sum + (1 - weight) * point.y;
      total = weight * total + (1 - weight);
      return { ...point, y: sum / total };
    });
  }

  function thinned(points) {
    const size = Math.ceil(points.length / data.points);
    if (size <= 1) return points;
    const mean = (group, key) => group.reduce((sum, point) => sum + point[key], 0) / group.length;
    const found = [];
    for (let start = 0; start < points.length; start += size) {
      const group = points.slice(start, start + size);
      found.push({ x: mean(group, "x"), y: mean(group, "y"), step: mean(group, "step") });
    }
    return found;
  }

  function lines(plot) {
    const hidden = new Set(boxes.filter((box) => !box.checked).map((box) => Number(box.value)));
    const weight = Number(smooth.value);
    const found = [];
    for (const line of plot.lines) {
      if (hidden.has(line.run)) continue;
      const points = line.steps.map((step, index) => ({ x: place(line.run, step), y: Number(line.values[index]), step })).filter((point) => isFinite(point.x));
      const inside = (point) => !view || (point.x >= view[0] && point.x <= view[1]);
      if (weight && !line.dots) {
        found.push({ ...line, raw: true, points: thinned(points.filter(inside)) });
        found.push({ ...line, points: thinned(smoothed(points, weight).filter(inside)) });
      } else found.push({ ...line, points: thinned(points.filter(inside)) });
      found[found.length - 1].size = Math.ceil(points.filter(inside).length / data.points);
    }
    return found;
  }

  // -- a plot ----------------------------------------------------------------------------------------------------

  function vertical(plot, drawn, notes) {
    const values = drawn.flatMap((line) => line.points.map((point) => point.y)).filter(isFinite);
    const above = values.filter((value) => value > 0);
    const logged = log.checked && above.length > 0 && (above.length === values.length || plot.bounds[0] === 0);
    if (log.checked && !logged) notes.push("not all values are above 0: the axis is not a log axis");
    if (logged && above.length < values.length) notes.push("values of 0 are not on the log axis");
    const held = logged ? above : values.concat(view ? [] : plot.bounds.filter((bound) => bound !== null));
    let low = held.length ? held.reduce((a, b) => Math.min(a, b)) : 0;
    let high = held.length ? held.reduce((a, b) => Math.max(a, b)) : 1;
    if (high - low <= 1e-9 * Math.max(Math.abs(low), Math.abs(high))) {
      const room = Math.abs(high) / 2 || 1;
      [low, high] = [low === plot.bounds[0] && !logged ? low : low - room, high === plot.bounds[1] && !logged ? high : high + room];
    }
    const marks = logged ? logTicks(low, high) : ticks(low, high, 4);
    if (marks.length) [low, high] = [Math.min(low, marks[0]), Math.max(high, marks[marks.length - 1])];
    const share = logged ? (value) => Math.log(value / low) / Math.log(high / low) : (value) => (value - low) / (high - low);
    const y = (value) => Number((height * (1 - share(value))).toFixed(2));
    const shown = (value) => isFinite(value) && (!logged || value > 0);
    return { y, shown, marks, level: plot.level !== null && plot.level >= low && plot.level <= high ? plot.level : null };
  }

  function draw(item) {
    const { plot } = item;
    const drawn = lines(plot);
    const notes = [];
    const axis = vertical(plot, drawn, notes);
    const [from, to] = view || [0, span()];
    const x = (value) => Number(((width * (value - from)) / (to - from)).toFixed(2));
    const svg = element("svg", { class: "plot", viewBox: item.first.getAttribute("viewBox"), role: "img", "aria-label": item.first.getAttribute("aria-label") });
    for (const value of axis.marks) {
      svg.append(element("line", { class: "grid", x1: 0, y1: axis.y(value), x2: width, y2: axis.y(value) }));
      svg.append(element("text", { x: -7, y: axis.y(value) + 3.5, "text-anchor": "end" }, Math.abs(value) >= 1000 && Math.abs(value) < 1e9 ? value.toLocaleString("en") : figure(value)));
    }
    svg.append(element("line", { class: "axis", x1: 0, y1: height, x2: width, y2: height }));
    const [size, unit] = scale(to);
    const below = ticks(from / size, to / size, 5).filter((value) => value * size >= from && value * size <= to * (1 + 1e-9));
    below.forEach((value, index) => {
      svg.append(element("line", { class: "axis", x1: x(value * size), y1: height, x2: x(value * size), y2: height + 4 }));
      svg.append(element("text", { x: x(value * size), y: height + 17, "text-anchor": "middle" }, (index ? "" : unit + " ") + short(value)));
    });
    if (axis.level !== null) svg.append(element("line", { class: "level", x1: 0, y1: axis.y(axis.level), x2: width, y2: axis.y(axis.level) }));
    data.runs.forEach((run, index) => run.resumed.forEach((step) => {
      const at = place(index, step);
      if (at >= from && at <= to) svg.append(element("line", { class: "moment", x1: x(at), y1: 0, x2: x(at), y2: height }));
    }));
    for (const line of drawn) {
      const stretches = [[]];
      for (const point of line.points) {
        if (axis.shown(point.y)) stretches[stretches.length - 1].push(point);
        else if (stretches[stretches.length - 1].length) stretches.push([]);
      }
      const apart = line.dots && line.steps.length === 2; // nothing is known between two evaluations
      for (const stretch of stretches) {
        const joined = stretch.length > 1 && !apart;
        const points = stretch.map((point) => x(point.x) + "," + axis.y(point.y)).join(" ");
        if (joined) svg.append(element("polyline", { class: "line " + line.look + (line.raw ? " raw" : ""), points }));
        if (line.dots || !joined) for (const point of stretch) svg.append(element("circle", { class: "dot " + line.look, cx: x(point.x), cy: axis.y(point.y), r: 2.75 }));
      }
    }
    for (const size of new Set(drawn.map((line) => line.size))) {
      const names = drawn.filter((line) => line.size === size).map((line) => line.name || "the line");
      if (size > 1) notes.push((names.length > 2 ? names.length + " lines" : names.join(", ")) + ": each point is the mean of " + size + " logs");
    }
    svg.append(...stripes(drawn.filter((line) => !line.raw), x));
    return { svg, notes };
  }

  // What a pointer reads, at each place that has a point
  function stripes(drawn, x) {
    const at = new Map();
    for (const line of drawn) {
      for (const point of line.points) {
        const key = x(point.x);
        if (!at.has(key)) at.set(key, { step: point.step, x: point.x, texts: [] });
        at.get(key).texts.push((line.name + " " + figure(point.y)).trim());
      }
    }
    const keys = Array.from(at.keys()).sort((a, b) => a - b);
    return keys.map((key, index) => {
      const left = index ? (keys[index - 1] + key) / 2 : 0;
      const right = index < keys.length - 1 ? (key + keys[index + 1]) / 2 : width;
      const [size, unit] = scale(at.get(key).x);
      const where = by.value === "steps" ? "" : ", " + short(at.get(key).x / size) + " " + unit;
      const group = element("g", { class: "stripe" });
      group.append(element("rect", { x: left, y: -4, width: Math.max(right - left, 0.5), height: height + 8 }), element("line", { x1: key, y1: 0, x2: key, y2: height }));
      group.append(element("title", {}, ["step " + figure(at.get(key).step) + where, ...at.get(key).texts].join("\n")));
      return group;
    });
  }

  // The end of the axis: the furthest log of the runs that are shown
  function span() {
    const shown = data.runs.filter((run, index) => !boxes.length || boxes[index].checked);
    return Math.max(1e-9, ...shown.map((run) => (run[by.value] && run.steps.length ? run[by.value][run.steps.length - 1] : 0)), by.value === "steps" ? 1 : 0);
  }

  function apply() {
    const plain = by.value === "steps" && Number(smooth.value) === 0 && !log.checked && !view && boxes.every((box) => box.checked);
    for (const item of figures) {
      const { svg, notes } = plain ? { svg: item.first, notes: [] } : draw(item);
      item.svg.replaceWith(svg);
      item.svg = svg;
      item.notes.forEach((note) => (note.hidden = !plain && /each point is/.test(note.textContent)));
      item.node.querySelectorAll(".now").forEach((note) => note.remove());
      for (const note of new Set(notes)) {
        const shown = document.createElement("p");
        shown.className = "aside now";
        shown.textContent = note + ".";
        item.node.append(shown);
      }
    }
    whole.disabled = !view;
    reading.hidden = true;
    keep();
  }

  // -- closer, and reading ---------------------------------------------------------------------------------------

  let drag = null;

  function axisAt(svg, event) {
    const box = svg.getBoundingClientRect();
    const at = ((event.clientX - box.left) / box.width) * (width + 64) - 50; // as the viewBox has it
    return Math.min(Math.max(at, 0), width);
  }

  root.addEventListener("pointerdown", (event) => {
    const svg = event.target.closest("svg.plot");
    if (!svg || event.button) return;
    drag = { svg, start: axisAt(svg, event), box: element("rect", { class: "chosen", y: 0, height, x: 0, width: 0 }) };
    svg.append(drag.box);
  });
  function drop() {
    if (drag) drag.box.remove();
    drag = null;
  }
  document.addEventListener("pointermove", (event) => {
    if (event.buttons === 0) drop(); // let go outside of the window
    if (!drag) return;
    const now = axisAt(drag.svg, event);
    drag.box.setAttribute("x", Math.min(now, drag.start));
    drag.box.setAttribute("width", Math.abs(now - drag.start));
  });
  document.addEventListener("pointerup", (event) => {
    if (!drag) return;
    const [from, to] = view || [0, span()];
    const ends = [drag.start, axisAt(drag.svg, event)].sort((a, b) => a - b).map((at) => from + (at / width) * (to - from));
    const far = Math.abs(axisAt(drag.svg, event) - drag.start) > 8;
    drop();
    if (far) {
      view = ends;
      apply();
    }
  });
  document.addEventListener("pointercancel", drop);

  function read(event) {
    const stripe = event.target.closest && event.target.closest(".stripe");
    reading.hidden = !stripe;
    if (!stripe) return;
    const title = stripe.querySelector("title");
    if (title) {
      stripe.dataset.text = title.textContent; // or the browser would show it, too, a second later
      title.remove();
    }
    reading.textContent = stripe.dataset.text;
    const room = document.documentElement.clientWidth - reading.offsetWidth - 8;
    reading.style.left = Math.max(8, Math.min(event.clientX + 14, room)) + "px";
    reading.style.top = Math.max(8, event.clientY - reading.offsetHeight - 12) + "px";
  }
  root.addEventListener("pointermove", read);
  root.addEventListener("pointerdown", read);
  root.addEventListener("pointerleave", () => (reading.hidden = true));

  // -- CSV -------------------------------------------------------------------------------------------------------

  // A text that a spreadsheet would take for a formula gets a quotation mark before it
  function field(value) {
    const text = /^[=+\-@\t\r]/.test(value) ? "'" + value : value;
    return /[",\n\r]/.test(text) ? '"' + text.replaceAll('"', '""') + '"' : text;
  }

  function csv(plot) {
    const many = data.runs.length > 1;
    const metrics = Array.from(new Set(plot.lines.map((line) => line.metric)));
    const rows = [[...(many ? ["run"] : []), "step", ...metrics]];
    data.runs.forEach((run, index) => {
      const found = new Map();
      for (const line of plot.lines.filter((each) => each.run === index)) {
        line.steps.forEach((step, at) => {
          if (!found.has(step)) found.set(step, new Map());
          found.get(step).set(line.metric, String(line.values[at]));
        });
      }
      for (const step of Array.from(found.keys()).sort((a, b) => a - b)) {
        rows.push([...(many ? [field(run.name)] : []), String(step), ...metrics.map((metric) => found.get(step).get(metric) || "")]);
      }
    });
    return rows.map((row) => row.join(",") + "\n").join("");
  }

  root.addEventListener("click", (event) => {
    const button = event.target.closest("button.csv");
    if (!button) return;
    const plot = data.plots[Number(button.closest("figure").dataset.plot)];
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([csv(plot)], { type: "text/csv" }));
    link.download = (data.runs.map((run) => run.name).slice(0, 3).join("-") + "-" + plot.title).replace(/[^\w.-]+/g, "_") + ".csv";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  });

  // -- settings --------------------------------------------------------------------------------------------------

  // A page that loads itself again keeps them
  const reloads = document.querySelector("meta[http-equiv=refresh]");
  const name = "trl-plus " + location.pathname;

  function keep() {
    if (!reloads) return;
    const off = boxes.filter((box) => !box.checked).map((box) => box.value);
    try {
      sessionStorage.setItem(name, JSON.stringify({ by: by.value, smooth: smooth.value, log: log.checked, view, off }));
    } catch (error) {
      // no storage: the settings start anew
    }
  }

  function recall() {
    try {
      const kept = reloads && JSON.parse(sessionStorage.getItem(name));
      if (!kept) return;
      if (Array.from(by.options).some((option) => option.value === kept.by)) by.value = kept.by;
      [smooth.value, log.checked, view] = [kept.smooth, kept.log, kept.view];
      boxes.forEach((box) => (box.checked = !kept.off.includes(box.value)));
    } catch (error) {
      // as above
    }
  }

  controls.addEventListener("input", (event) => {
    if (event.target === by) view = null;
    apply();
  });
  boxes.forEach((box) => box.addEventListener("input", apply));
  whole.addEventListener("click", () => {
    view = null;
    apply();
  });
  root.querySelectorAll("#curve-hint, button.csv, .curve-run").forEach((part) => (part.hidden = false));
  controls.hidden = false;
  recall();
  apply();
})();
