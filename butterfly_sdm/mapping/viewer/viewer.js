"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const get = (id) => document.getElementById(id);
const served = !data.packed,
  NOTHING = "nothing predicted";
const say = (v) =>
  v === null || Number.isNaN(v)
    ? "–"
    : Math.abs(v) >= 100
      ? v.toFixed(0)
      : Math.abs(v) >= 10
        ? v.toFixed(1)
        : v.toFixed(3);
const make = (tag, text, ...children) => {
  const e = document.createElement(tag);
  if (text) e.textContent = text;
  e.append(...children);
  return e;
};

// Values: blocks of at most data.tile cells a side, at zooms from the whole map (0) to the map itself.
const factor = data.factor || 1; // pixels of the map in a cell of the page
const zooms = served ? data.zooms : data.zooms - Math.log2(factor);
const kept = new Map();
function once(key, ask) {
  if (!kept.has(key)) {
    if (kept.size > 600) kept.delete(kept.keys().next().value);
    const asked = ask();
    kept.set(key, asked);
    asked.catch(() => kept.delete(key));
  }
  return kept.get(key);
}
const unpacked = new Map();
function whole(band) {
  if (!unpacked.has(band))
    unpacked.set(
      band,
      (async () => {
        const bytes = Uint8Array.from(atob(data.packed[band].data), (c) => c.charCodeAt(0));
        const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
        return new Uint8Array(await new Response(stream).arrayBuffer());
      })(),
    );
  return unpacked.get(band);
}
const number = (pack, stored) => (stored === 255 ? NaN : pack.low + pack.step * stored);
async function cut(band, zoom, across, down) {
  const pack = data.packed[band],
    stored = await whole(band),
    step = 2 ** (zooms - zoom);
  const left = (length, first) =>
    Math.max(0, Math.min(data.tile, Math.ceil(length / step) - first * data.tile));
  const rows = left(pack.rows, down),
    cols = left(pack.cols, across),
    values = new Float32Array(rows * cols);
  for (let r = 0; r < rows; r++)
    for (let c = 0; c < cols; c++) {
      let sum = 0,
        count = 0;
      const y = (down * data.tile + r) * step,
        x = (across * data.tile + c) * step;
      for (let i = y; i < Math.min(y + step, pack.rows); i++)
        for (let j = x; j < Math.min(x + step, pack.cols); j++) {
          const s = stored[i * pack.cols + j];
          if (s !== 255) {
            sum += s;
            count++;
          }
        }
      values[r * cols + c] = count ? pack.low + (pack.step * sum) / count : NaN;
    }
  return { rows, cols, values };
}
async function ask(band, zoom, across, down) {
  const answer = await fetch(`block/${band}/${zoom}/${across}/${down}`);
  if (!answer.ok) throw new Error(`no block ${band} ${zoom} ${across} ${down}`);
  const buffer = await answer.arrayBuffer(),
    [rows, cols] = new Uint32Array(buffer, 0, 2);
  return { rows, cols, values: new Float32Array(buffer, 8) };
}
const block = (...at) => once(at.join("/"), () => (served ? ask : cut)(...at));
async function place(row, col) {
  if (served) {
    const answer = await fetch(`place/${row}/${col}`);
    return answer.ok ? answer.json() : null;
  }
  const all = await Promise.all(data.bands.map((_, i) => whole(i)));
  return all.map((stored, i) =>
    number(
      data.packed[i],
      stored[Math.floor(row / factor) * data.packed[i].cols + Math.floor(col / factor)],
    ),
  );
}

// Colours, and patterns that need none.
const scale = () => document.querySelector("input[name=scale]:checked").value;
function lookup(ramp) {
  const rgb = ramp.map((c) => [1, 3, 5].map((i) => parseInt(c.slice(i, i + 2), 16)));
  return Array.from({ length: 256 }, (_, k) => {
    const x = (k / 255) * (rgb.length - 1),
      i = Math.min(Math.floor(x), rgb.length - 2);
    return rgb[i].map((v, c) => Math.round(v + (rgb[i + 1][c] - v) * (x - i)));
  });
}
function pattern(side, draw) {
  const tile = make("canvas");
  tile.width = tile.height = side;
  draw(tile.getContext("2d"));
  return tile;
}
const lines = (c, color, width, ...pairs) => {
  c.strokeStyle = color;
  c.lineWidth = width;
  c.beginPath();
  for (const [a, b, x, y] of pairs) {
    c.moveTo(a, b);
    c.lineTo(x, y);
  }
  c.stroke();
};
const patterns = {
  nothing: pattern(8, (c) => {
    c.fillStyle = "#fff";
    c.fillRect(0, 0, 8, 8);
    lines(c, "#8d9892", 1, [-2, 10, 10, -2], [-2, 2, 2, -2], [6, 10, 10, 6]);
  }),
  unlike: pattern(8, (c) => {
    for (const [color, width] of [
      ["#fff", 2.2],
      ["#5b0b4a", 1.1],
    ])
      lines(c, color, width, [-2, -2, 10, 10], [6, -2, 10, 2], [-2, 6, 2, 10]);
  }),
};
function fill(c, name, where) {
  c.save();
  c.clip(where);
  c.fillStyle = c.createPattern(patterns[name], "repeat");
  c.fillRect(0, 0, c.canvas.width, c.canvas.height);
  c.restore();
}
function paint(canvas, shown, beyond) {
  const c = canvas.getContext("2d"),
    band = data.bands[chosen],
    colors = lookup(band.ramp),
    [low, high] = band[scale()];
  const off = make("canvas"),
    side = canvas.width / (shown.side || data.tile),
    none = new Path2D(),
    unlike = new Path2D();
  if (!shown.rows || !shown.cols) return;
  off.width = shown.cols;
  off.height = shown.rows;
  const image = new ImageData(shown.cols, shown.rows);
  const run = (path, test) => {
    for (let r = 0; r < shown.rows; r++)
      for (let k = 0; k < shown.cols; k++) {
        // one rectangle for cells side by side
        let end = k;
        while (end < shown.cols && test(r * shown.cols + end)) end++;
        if (end > k) {
          path.rect(k * side, r * side, (end - k) * side, side);
          k = end;
        }
      }
  };
  shown.values.forEach((v, k) => {
    if (!Number.isNaN(v))
      image.data.set(
        [...colors[Math.round(255 * Math.min(1, Math.max(0, (v - low) / (high - low))))], 255],
        4 * k,
      );
  });
  off.getContext("2d").putImageData(image, 0, 0);
  c.imageSmoothingEnabled = false;
  c.drawImage(off, 0, 0, shown.cols * side, shown.rows * side);
  const out = (k) => beyond.some(([part, limit]) => part.values[k] > limit);
  run(none, (k) => Number.isNaN(shown.values[k]) && !out(k));
  fill(c, "nothing", none);
  if (beyond.length) {
    run(unlike, out);
    fill(c, "unlike", unlike);
  }
}

// The map: pixels of its own CRS, so nothing is warped.
const width = data.cols * data.dx,
  height = data.rows * data.dy,
  cell = factor * 2 ** zooms;
const crs = L.extend({}, L.CRS.Simple, {
  transformation: new L.Transformation(
    1 / (data.dx * cell),
    -data.left / (data.dx * cell),
    -1 / (data.dy * cell),
    data.top / (data.dy * cell),
  ),
  distance: (a, b) =>
    data.geographic
      ? L.CRS.Earth.distance(a, b)
      : data.unit_m * Math.hypot(a.lng - b.lng, a.lat - b.lat),
});
const bounds = L.latLngBounds([data.top - height, data.left], [data.top, data.left + width]);
const map = L.map("map", {
  crs,
  minZoom: -3,
  maxZoom: zooms + 5,
  zoomSnap: 0.25,
  zoomDelta: 1,
  wheelPxPerZoomLevel: 100,
  preferCanvas: true,
  attributionControl: false,
  maxBounds: bounds.pad(1),
  zoomAnimation: !matchMedia("(prefers-reduced-motion: reduce)").matches,
});
L.control.scale({ imperial: false, maxWidth: 140 }).addTo(map);
L.control
  .attribution({ prefix: false })
  .addTo(map)
  .addAttribution("Leaflet")
  .addAttribution(data.attribution);
map.getContainer().append(Object.assign(make("div"), { className: "cross" }));
let chosen = 0,
  marked = null;
// Beyond the zoom of the map a square is a part of a block, so that patterns keep their size.
async function square(band, at) {
  const above = Math.max(0, at.z - zooms),
    parts = 2 ** above,
    side = data.tile / parts;
  const whole = await block(band, at.z - above, Math.floor(at.x / parts), Math.floor(at.y / parts));
  if (!above) return whole;
  const left = (at.x % parts) * side,
    top = (at.y % parts) * side;
  const rows = Math.max(0, Math.min(side, whole.rows - top)),
    cols = Math.max(0, Math.min(side, whole.cols - left));
  const values = new Float32Array(rows * cols);
  for (let r = 0; r < rows; r++)
    values.set(
      whole.values.subarray((top + r) * whole.cols + left, (top + r) * whole.cols + left + cols),
      r * cols,
    );
  return { rows, cols, values, side };
}
const Cells = L.GridLayer.extend({
  createTile(at, done) {
    const canvas = make("canvas"),
      limits = get("hatch")?.checked ? Object.entries(data.limits) : [];
    canvas.width = canvas.height = data.tile;
    canvas.setAttribute("role", "presentation");
    Promise.all([square(chosen, at), ...limits.map(([band]) => square(band, at))]).then(
      ([shown, ...parts]) => {
        paint(
          canvas,
          shown,
          parts.map((part, i) => [part, limits[i][1]]),
        );
        done(null, canvas);
      },
      (error) => done(error, canvas),
    );
    return canvas;
  },
  _clampZoom(zoom) {
    return L.GridLayer.prototype._clampZoom.call(this, Math.round(zoom));
  }, // redraw() of Leaflet 1.9 forgets to round
});
const cells = new Cells({
  tileSize: data.tile,
  minZoom: -3,
  minNativeZoom: 0,
  maxZoom: zooms + 5,
  bounds,
  noWrap: true,
  keepBuffer: 1,
  updateWhenZooming: false,
});
cells
  .on("loading", () => {
    document.body.dataset.ready = "no";
  })
  .on("load", () => {
    document.body.dataset.ready = "yes";
  });

// Sites and shapes above it.
const sites = L.layerGroup(),
  numbers = data.bands.flatMap((band, i) => (band.species ? [i] : []));
function drawSites() {
  sites.clearLayers();
  const species = numbers.indexOf(chosen);
  for (const site of data.sites) {
    const k = species < 0 ? 0 : site[4][species] || 0,
      seen = k > 0;
    L.circleMarker([site[2], site[1]], {
      radius: seen ? 6 : 4,
      weight: 2,
      color: seen ? "#fff" : "#1d2b50",
      fillColor: seen ? "#1d2b50" : "#fff",
      fillOpacity: seen ? 1 : 0.9,
      bubblingMouseEvents: false,
    })
      .on("click", (event) => {
        L.DomEvent.stop(event);
        read(L.latLng(site[2], site[1]), site);
      })
      .addTo(sites);
  }
}
function words(site) {
  const k = site[4][numbers.indexOf(chosen)] || 0,
    seen = Object.keys(site[4]).length;
  const own = data.bands[chosen].species
    ? `${data.bands[chosen].name} on ${k} of ${site[3]} visits`
    : `${site[3]} visits`;
  return `Site ${site[0]}: ${own}; ${seen} of these species seen.`;
}
const shapes = data.shapes
  ? L.geoJSON(data.shapes, {
      coordsToLatLng: (c) => L.latLng(c[1], c[0]),
      style: { color: "#b30059", weight: 3, fillOpacity: 0.08 },
      pointToLayer: (_, at) =>
        L.circleMarker(at, {
          radius: 7,
          color: "#b30059",
          weight: 3,
          fillColor: "#fff",
          fillOpacity: 1,
        }),
      onEachFeature: (feature, layer) => {
        const box = make("div");
        for (const [key, value] of Object.entries(feature.properties || {}))
          box.append(make("div", `${key}: ${value}`));
        if (box.childNodes.length) layer.bindPopup(box);
      },
    })
  : null;

// What a place holds.
let marker = null;
async function read(at, site) {
  const col = Math.floor((at.lng - data.left) / data.dx),
    row = Math.floor((data.top - at.lat) / data.dy);
  if (col < 0 || row < 0 || col >= data.cols || row >= data.rows) {
    get("where").textContent = "That place is not on the map.";
    return;
  }
  const asked = (marked = { row, col }),
    found = await place(row, col);
  if (!found || marked !== asked) return;
  const left = data.left + data.dx * col,
    top = data.top - data.dy * row,
    outline = [
      [top, left],
      [top - data.dy, left + data.dx],
    ];
  if (marker) marker.setBounds(outline);
  else
    marker = L.rectangle(outline, {
      color: "#d62d20",
      weight: 3,
      fill: false,
      interactive: false,
    }).addTo(map);
  const digits = data.geographic ? 4 : 0,
    where = get("where");
  where.replaceChildren(
    make(
      "div",
      `${(left + data.dx / 2).toFixed(digits)}, ${(top - data.dy / 2).toFixed(digits)} (${data.crs})`,
    ),
  );
  for (const [band, limit] of Object.entries(data.limits))
    if (found[band] !== null && !Number.isNaN(found[band]))
      where.append(
        make(
          "div",
          `${data.bands[band].name} ${say(found[band])}: ${found[band] > limit ? "not like" : "like"} the training sites (limit ${say(limit)})`,
        ),
      );
  if (!site) {
    const near = data.sites
      .map((s) => [Math.hypot(s[1] - at.lng, s[2] - at.lat), s])
      .sort((a, b) => a[0] - b[0])[0];
    if (near && near[0] <= data.dx) site = near[1];
  }
  if (site) where.append(make("div", words(site)));
  const hidden = new Set(data.bands.flatMap((band) => band.interval || []));
  const rows = data.bands
    .map((band, i) => [band, i, found[i]])
    .filter(([, i]) => !hidden.has(i))
    .sort(
      (a, b) => b[0].species - a[0].species || (a[0].species ? (b[2] ?? -1) - (a[2] ?? -1) : 0),
    );
  const anyInterval = data.bands.some(
    (band) => band.interval && band.interval.some((i) => i !== null),
  );
  get("interval-head").hidden = !anyInterval;
  get("values-box").hidden = false;
  get("values").replaceChildren(
    ...rows.map(([band, i, v]) => {
      const name = make("td", band.name),
        [low, high] = (band.interval || [null, null]).map((n) => (n === null ? null : found[n])),
        known = low !== null && high !== null && !Number.isNaN(low);
      if (poor(band)) name.append(make("small", judged(band)));
      const row = make(
        "tr",
        "",
        name,
        make("td", v === null || Number.isNaN(v) ? NOTHING : say(v)),
      );
      if (anyInterval) row.append(make("td", known ? `${say(low)} to ${say(high)}` : ""));
      row.className = `${i === chosen ? "chosen" : ""} ${band.species ? "" : "layer"}`;
      return row;
    }),
  );
}

// Names, skill, legend.
const poor = (band) => band.skill && band.skill.verdict !== "better";
const judged = (band) =>
  ({
    better: "better than its mean rate",
    unsure: "not shown to be better than its mean rate",
    worse: "no better than its mean rate",
  })[band.skill.verdict] || "cannot be judged";
const short = (band) =>
  !band.skill
    ? band.name
    : `${band.name} · ${band.skill.skill === null ? "skill not known" : `skill ${band.skill.skill.toFixed(2)}`}${poor(band) ? ` · ${judged(band)}` : ""}`;
function list() {
  const part = get("find").value.toLowerCase(),
    group = (label, wanted) => {
      const options = data.bands.flatMap((band, i) => {
        if (band.species !== wanted || !band.name.toLowerCase().includes(part)) return [];
        const option = make("option", short(band));
        option.value = i;
        option.selected = i === chosen;
        return [option];
      });
      const box = make("optgroup", "", ...options);
      box.label = label;
      return options.length ? [box] : [];
    };
  get("band").replaceChildren(...group("Species", true), ...group("Layers", false));
  get("told").textContent = part ? `${get("band").options.length} found` : "";
}
function skillWords(band) {
  const s = band.skill;
  if (!s) return "";
  const text =
    s.skill === null
      ? "Skill not known"
      : `Skill ${s.skill.toFixed(2)}${s.low === null ? "" : ` (95 % interval ${s.low.toFixed(2)} to ${s.high.toFixed(2)})`}`;
  return `${text}, ${judged(band)}. Seen at ${s.sites} of ${s.of} held-out sites.`;
}
function key(draw, text, id, on) {
  const item = make("li"),
    sample = make("canvas");
  sample.width = 26;
  sample.height = 16;
  draw(sample.getContext("2d"));
  const label = make("label", "", text);
  label.style.color = "inherit";
  if (id) {
    const box = make("input");
    box.type = "checkbox";
    box.id = id;
    box.checked = true;
    box.addEventListener("change", on);
    label.htmlFor = id;
    item.append(box);
  }
  item.append(sample, id ? label : make("span", text));
  get("keys").append(item);
}
function keys() {
  const area = (c) => {
      const path = new Path2D();
      path.rect(0, 0, 26, 16);
      return path;
    },
    dot = (c, filled) => {
      c.beginPath();
      c.arc(13, 8, filled ? 6 : 4, 0, 7);
      c.lineWidth = 2;
      c.strokeStyle = filled ? "#fff" : "#1d2b50";
      c.fillStyle = filled ? "#1d2b50" : "#fff";
      c.fill();
      c.stroke();
    };
  key((c) => fill(c, "nothing", area(c)), "nothing predicted");
  const limits = Object.keys(data.limits);
  if (limits.length)
    key(
      (c) => {
        c.fillStyle = "#78c679";
        c.fillRect(0, 0, 26, 16);
        fill(c, "unlike", area(c));
      },
      `not like the training sites (${limits.map((i) => `${data.bands[i].name} above ${say(data.limits[i])}`).join(" or ")})`,
      "hatch",
      () => cells.redraw(),
    );
  if (data.sites.length) {
    key(
      (c) => dot(c, true),
      "site where it was seen",
      "show-sites",
      () => {
        get("show-sites").checked ? sites.addTo(map) : sites.remove();
      },
    );
    key((c) => dot(c, false), "site where it was not seen");
  }
  if (shapes)
    key(
      (c) => {
        c.strokeStyle = "#b30059";
        c.lineWidth = 3;
        c.strokeRect(4, 3, 18, 10);
      },
      "overlay",
      "show-shapes",
      () => {
        get("show-shapes").checked ? shapes.addTo(map) : shapes.remove();
      },
    );
}
function legend() {
  const band = data.bands[chosen],
    bar = get("bar").getContext("2d"),
    [low, high] = band[scale()];
  lookup(band.ramp).forEach(([r, g, b], x) => {
    bar.fillStyle = `rgb(${r},${g},${b})`;
    bar.fillRect(x, 0, 1, 1);
  });
  get("unit").textContent = band.unit;
  get("fixed-name").textContent = `fixed: ${say(band.fixed[0])} to ${say(band.fixed[1])}`;
  get("ends").replaceChildren(
    ...[0, 0.25, 0.5, 0.75, 1].map((t, i) =>
      make(
        "span",
        `${scale() === "stretched" && i === 0 && low > band.fixed[0] ? "≤ " : ""}${scale() === "stretched" && i === 4 && high < band.fixed[1] ? "≥ " : ""}${say(low + t * (high - low))}`,
      ),
    ),
  );
  get("skill").textContent = skillWords(band);
  get("skill").className = poor(band) ? "poor" : "";
}
function choose(i) {
  chosen = i;
  legend();
  cells.redraw();
  drawSites();
  remember();
  if (marked)
    read(
      L.latLng(data.top - data.dy * (marked.row + 0.5), data.left + data.dx * (marked.col + 0.5)),
    );
}

// A link to what is seen, and a picture of it.
function remember() {
  const at = map.getCenter(),
    hash = new URLSearchParams({
      band: data.bands[chosen].name,
      zoom: map.getZoom(),
      x: at.lng.toPrecision(9),
      y: at.lat.toPrecision(9),
      colours: scale(),
    });
  try {
    history.replaceState(null, "", `#${hash}`);
  } catch {
    /* a page inside a page has no address */
  }
}
function recall() {
  const hash = new URLSearchParams(location.hash.slice(1)),
    i = data.bands.findIndex((band) => band.name === hash.get("band"));
  if (i >= 0) chosen = i;
  const colours = document.querySelector(
    `input[name=scale][value="${hash.get("colours") === "fixed" ? "fixed" : "stretched"}"]`,
  );
  colours.checked = true;
  const [zoom, x, y] = ["zoom", "x", "y"].map((name) =>
    hash.has(name) ? Number(hash.get(name)) : NaN,
  );
  if ([zoom, x, y].every(Number.isFinite)) map.setView([y, x], zoom);
  else map.fitBounds(bounds);
}
get("link").addEventListener("click", async () => {
  remember();
  try {
    await navigator.clipboard.writeText(location.href);
    get("told").textContent = "The link is in the clipboard.";
  } catch {
    get("told").textContent = location.href;
  }
});
function drawPicture() {
  const box = map.getContainer().getBoundingClientRect(),
    ratio = window.devicePixelRatio || 1,
    out = make("canvas"),
    foot = 96;
  out.width = box.width * ratio;
  out.height = (box.height + foot) * ratio;
  const c = out.getContext("2d");
  c.scale(ratio, ratio);
  c.fillStyle = "#e4e9e6";
  c.fillRect(0, 0, box.width, box.height);
  c.imageSmoothingEnabled = false;
  for (const part of map
    .getContainer()
    .querySelectorAll(".leaflet-tile-pane canvas, .leaflet-overlay-pane canvas")) {
    const at = part.getBoundingClientRect();
    c.drawImage(part, at.left - box.left, at.top - box.top, at.width, at.height);
  }
  c.fillStyle = "#fff";
  c.fillRect(0, box.height, box.width, foot);
  c.fillStyle = "#1f2a24";
  const text = (words, x, y, font = "12px sans-serif") => {
    c.font = font;
    c.fillText(words, x, box.height + y, box.width - x - 8);
  };
  const band = data.bands[chosen],
    [low, high] = band[scale()];
  text(`${data.title}: ${band.name}`, 8, 18, "bold 14px sans-serif");
  text(skillWords(band) || band.unit, 8, 36);
  c.drawImage(get("bar"), 8, box.height + 44, 160, 12);
  text(say(low), 8, 70);
  text(say(high), 140, 70);
  fill2(c, "nothing", 190, box.height + 44);
  text("nothing predicted", 220, 55);
  if (Object.keys(data.limits).length) {
    c.fillStyle = "#78c679";
    c.fillRect(190, box.height + 62, 26, 14);
    fill2(c, "unlike", 190, box.height + 62);
    text("not like the training sites", 220, 74);
  }
  const bar = map.getContainer().querySelector(".leaflet-control-scale-line");
  c.fillStyle = "#1f2a24";
  c.fillRect(8, box.height + 84, parseFloat(bar.style.width), 3);
  text(
    `${bar.textContent} · ${data.crs} · ${data.attribution}`,
    16 + parseFloat(bar.style.width),
    90,
  );
  return out;
}
function fill2(c, name, x, y) {
  c.fillStyle = c.createPattern(patterns[name], "repeat");
  c.fillRect(x, y, 26, 14);
  c.fillStyle = "#1f2a24";
}
get("picture").addEventListener("click", () =>
  drawPicture().toBlob((blob) => {
    const a = make("a");
    a.href = URL.createObjectURL(blob);
    a.download = `${data.title} ${data.bands[chosen].name}.png`.replace(/[^\p{L}\p{N} ._-]/gu, "_");
    a.click();
    setTimeout(() => URL.revokeObjectURL(a.href), 1e4);
    get("told").textContent = `${a.download} is saved.`;
  }),
);
get("whole").addEventListener("click", () => map.fitBounds(bounds));
get("band").addEventListener("change", (event) => choose(Number(event.target.value)));
get("find").addEventListener("input", list);
for (const radio of document.querySelectorAll("input[name=scale]"))
  radio.addEventListener("change", () => {
    legend();
    cells.redraw();
    remember();
  });
map.on("click", (event) => read(event.latlng)).on("moveend", remember);
const byKeys = (on) => map.getContainer().classList.toggle("by-keys", on);
map.getContainer().addEventListener("pointerdown", () => byKeys(false));
map.getContainer().addEventListener("focusout", () => byKeys(false));
map
  .getContainer()
  .addEventListener("keyup", () => byKeys(document.activeElement === map.getContainer()));
map.getContainer().addEventListener("keydown", (event) => {
  if (event.key === "Enter" && event.target === map.getContainer()) {
    event.preventDefault();
    read(map.getCenter());
  }
});
addEventListener("hashchange", () => {
  recall();
  list();
  choose(chosen);
});

document.title = get("title").textContent = data.title;
for (const note of data.notes) get("notes").append(make("p", note));
if (factor > 1)
  get("notes").append(
    make(
      "p",
      `This page is reduced: a cell is the mean of ${factor} by ${factor} pixels of the map.`,
    ),
  );
if (!served)
  get("notes").append(make("p", `Values are rounded to ${data.levels} steps of each band.`));
keys();
recall();
list();
legend();
drawSites();
cells.addTo(map);
if (data.sites.length) sites.addTo(map);
if (shapes) shapes.addTo(map);
