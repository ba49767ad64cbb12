// The camera, frames on demand, what people see and do, and the door for scripts: window.penstock.

// ---------------------------------------------------------------- the camera: around a point
const STEEPEST = 1.55, HALF_VIEW = Math.tan(25 * Math.PI / 180);  // radians; of 50 degrees on the shorter side
const view = { azimuth: 0, elevation: 0, distance: 1, target: [0, 0, 0] };

function cameraOf() {
  const { azimuth, elevation, distance, target } = view;
  const ce = Math.cos(elevation), se = Math.sin(elevation), ca = Math.cos(azimuth), sa = Math.sin(azimuth);
  // Azimuth 0 looks along +z; elevation is upwards, and up is -y.
  const forward = [-sa * ce, se, ca * ce], right = [ca, 0, sa], down = cross(forward, right);
  const eye = target.map((value, i) => value - distance * forward[i]);
  const rotation = [...right, ...down, ...forward];
  const f = 0.5 * Math.min(canvas.width, canvas.height) / HALF_VIEW;
  return { rotation, translation: [right, down, forward].map(row => -dot(row, eye)), eye, fx: f, fy: f,
    cx: canvas.width / 2, cy: canvas.height / 2, near: Math.min(0.2, distance / 20) };
}
const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
const cross = (a, b) => [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];

function resetView(facts) {
  Object.assign(view, { azimuth: 0, elevation: 15 * Math.PI / 180, target: [...facts.center],
    distance: facts.radius / Math.sin(Math.atan(HALF_VIEW)) });
}
function turn(dx, dy) {
  view.azimuth = (view.azimuth + dx) % (2 * Math.PI);
  view.elevation = Math.max(-STEEPEST, Math.min(STEEPEST, view.elevation + dy));
  wake(true);
}
function move(dx, dy) {  // CSS pixels; what is at the target follows the pointer
  const camera = cameraOf(), scale = view.distance / camera.fx * canvas.width / canvas.clientWidth;
  view.target = view.target.map((v, i) => v - scale * (dx * camera.rotation[i] + dy * camera.rotation[3 + i]));
  wake(true);
}
function zoom(factor) {
  view.distance = Math.max(1e-3, Math.min(1e6, view.distance * factor));
  wake(true);
}

// ---------------------------------------------------------------- frames
let painter = null, model = null, worker = null, fixed = null;  // fixed: a camera that was given
const PAUSE = 500;  // milliseconds without a frame, after which the scene is at rest
let time = 0, playing = false, before = null, last = -PAUSE, scheduled = false;
let sorting = false, sortAgain = true, ticket = 0, sorted = 0, spare = null;
const waiting = new Map();  // ticket -> whom to tell that its order is in use
const stats = { frame_ms: 0, draw_ms: 0, sort_ms: 0, frames: 0 };
const smooth = (old, now) => old ? 0.9 * old + 0.1 * now : now;

function wake(moved) {
  sortAgain ||= moved;
  if (!scheduled && painter) {
    scheduled = true;
    requestAnimationFrame(frame);
  }
}
function currentCamera() { return fixed ?? cameraOf(); }

function askOrder() {
  if (sorting || !sortAgain) return;
  sorting = true;
  sortAgain = false;
  const { rotation: r, translation: t, near } = currentCamera();
  const message = { row: [r[6], r[7], r[8], t[2]], time, near, ticket: ++ticket, spare };
  worker.postMessage(message, spare ? [spare] : []);
  spare = null;
}
function takeOrder({ data }) {
  sorting = false;
  if (!painter) return;
  painter.setOrder(data.order, data.n);
  spare = data.order.buffer;
  stats.sort_ms = smooth(stats.sort_ms, data.ms);
  sorted = data.ticket;
  for (const [wanted, tell] of waiting) {
    if (wanted <= sorted) { waiting.delete(wanted); tell(); }
  }
  wake(false);
}
function frame(now) {
  scheduled = false;
  const moving = playing ? before !== null : now - last < PAUSE;
  stats.frame_ms = moving ? smooth(stats.frame_ms, now - last) : 0;
  last = now;
  if (playing) {
    const { start, end } = model.facts;
    if (before !== null) {
      time += Math.min(now - before, 250) / 1000 * Number(byId("speed").value);
      if (time > end) time = end > start ? start + (time - start) % (end - start) : start;
    }
    before = now;
    sortAgain = true;
    showTime();
  }
  askOrder();
  const begin = performance.now();
  painter.draw(currentCamera(), time);
  stats.draw_ms = smooth(stats.draw_ms, performance.now() - begin);
  stats.frames++;
  showStats(now);
  if (playing) wake(true);
}

// ---------------------------------------------------------------- what people see
let shown = -1000, resting = 0;
function showStats(now) {
  clearTimeout(resting);
  if (!playing) resting = setTimeout(() => { stats.frame_ms = 0; writeStats(); }, PAUSE);
  if (now - shown < 200) return;
  shown = now;
  writeStats();
}
function writeStats() {
  if (!painter) return;
  const rate = stats.frame_ms ? `${(1000 / stats.frame_ms).toFixed(0)} frames/s, ${stats.frame_ms.toFixed(1)} ms a frame` : "at rest";
  byId("stats").textContent = `${painter.drawn.toLocaleString("en")} of ${model.facts.count.toLocaleString("en")} splats drawn\n`
    + `${rate}\nsort ${stats.sort_ms.toFixed(1)} ms, draw call ${stats.draw_ms.toFixed(1)} ms\n`
    + `${canvas.width} × ${canvas.height} pixels`;
}
function showTime() {
  byId("time").value = String(time);
  byId("clock").textContent = `${time.toFixed(2)} s`;
}
function play(on) {
  playing = on && model.facts.dynamic;
  before = null;
  byId("play").textContent = playing ? "Pause" : "Play";
  wake(true);
}
function seek(to) {
  const { start, end } = model.facts;
  time = Math.max(start, Math.min(end, to));
  showTime();
  wake(true);
}
function toggleStats() {
  byId("facts").hidden = !byId("facts").hidden;
  byId("toggle").setAttribute("aria-pressed", String(!byId("facts").hidden));
}
function say(text, wrong) {
  const box = byId("message");
  box.hidden = !text;
  box.textContent = text;
  box.className = wrong ? "wrong" : "";
}
function fit() {
  const ratio = Math.min(window.devicePixelRatio || 1, 2);
  const width = Math.max(1, Math.round(canvas.clientWidth * ratio));
  const height = Math.max(1, Math.round(canvas.clientHeight * ratio));
  if (canvas.width === width && canvas.height === height) return;
  canvas.width = width;
  canvas.height = height;
  if (painter) painter.draw(currentCamera(), time);  // in this task: a resized canvas is empty
  wake(true);
}

// ---------------------------------------------------------------- hands
function listen() {
  const pointers = new Map();  // one turns or moves; two move and zoom
  const spread = () => {
    const [a, b] = [...pointers.values()];
    return { x: (a.x + b.x) / 2, y: (a.y + b.y) / 2, apart: Math.hypot(a.x - b.x, a.y - b.y) };
  };
  canvas.addEventListener("pointerdown", event => {
    canvas.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
  });
  canvas.addEventListener("pointermove", event => {
    const was = pointers.get(event.pointerId);
    if (!was) return;
    fixed = null;
    const two = pointers.size === 2 ? spread() : null;
    const dx = event.clientX - was.x, dy = event.clientY - was.y;
    pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    if (two) {
      const now = spread();
      move(now.x - two.x, now.y - two.y);
      if (now.apart > 0 && two.apart > 0) zoom(two.apart / now.apart);
    } else if (pointers.size === 1) {
      if (event.shiftKey || event.buttons & 6) move(dx, dy);
      else turn(-dx * 0.006, dy * 0.006);
    }
  });
  for (const end of ["pointerup", "pointercancel", "lostpointercapture"]) {
    canvas.addEventListener(end, event => pointers.delete(event.pointerId));
  }
  canvas.addEventListener("contextmenu", event => event.preventDefault());
  canvas.addEventListener("wheel", event => {
    event.preventDefault();
    fixed = null;
    const lines = event.deltaMode === 1 ? 16 : event.deltaMode === 2 ? 400 : 1;
    zoom(Math.exp(Math.max(-1, Math.min(1, event.deltaY * lines * 0.0012))));
  }, { passive: false });

  const step = () => 1 / (model.facts.fps || 30);
  const keys = {
    ArrowLeft: () => turn(-0.08, 0), ArrowRight: () => turn(0.08, 0),
    ArrowUp: () => turn(0, 0.08), ArrowDown: () => turn(0, -0.08),
    "+": () => zoom(0.9), "=": () => zoom(0.9), "-": () => zoom(1 / 0.9),
    " ": () => play(!playing), r: reset, s: toggleStats,
    ",": () => { play(false); seek(time - step()); }, ".": () => { play(false); seek(time + step()); },
  };
  document.addEventListener("keydown", event => {
    // Controls have keys of their own.
    if (event.ctrlKey || event.altKey || event.metaKey || event.target.closest("input, select")) return;
    if (event.target.closest("button") && (event.key === " " || event.key === "Enter")) return;
    const act = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!act) return;
    event.preventDefault();
    fixed = null;
    act();
  });
  byId("play").addEventListener("click", () => play(!playing));
  byId("time").addEventListener("input", () => { play(false); seek(Number(byId("time").value)); });
  byId("reset").addEventListener("click", reset);
  byId("toggle").addEventListener("click", toggleStats);
  new ResizeObserver(fit).observe(canvas);
}
function reset() {
  fixed = null;
  resetView(model.facts);
  wake(true);
}

// ---------------------------------------------------------------- from the start to the first frame
async function begin() {
  const gl = canvas.getContext("webgl2", { alpha: false, antialias: false, depth: false, powerPreference: "high-performance" });
  if (!gl) throw new Error("this browser has no WebGL 2; turn on hardware acceleration, or use another one");
  canvas.addEventListener("webglcontextlost", event => { event.preventDefault(); painter = null; say("The graphics processor was lost; waiting for it…"); });
  canvas.addEventListener("webglcontextrestored", () => location.reload());
  const buffer = await fetchModel(share => say(`Loading… ${Math.floor(100 * share)} %`));
  model = parseModel(buffer);
  const { facts } = model;
  document.title = `${facts.name} – Penstock`;
  byId("name").textContent = facts.name;
  fit();
  resetView(facts);
  time = facts.start;
  painter = makePainter(gl, model);
  worker = new Worker(URL.createObjectURL(new Blob([`"use strict";(${sorter})()`], { type: "text/javascript" })));
  worker.onmessage = takeOrder;
  worker.onerror = event => say(`The sorting worker failed: ${event.message}`, true);
  const places = model.places.slice(), motions = model.motions && model.motions.slice();
  worker.postMessage({ places, motions, count: facts.count }, motions ? [places.buffer, motions.buffer] : [places.buffer]);
  model = { facts };  // the rest is in textures now
  byId("bar").hidden = false;
  if (facts.dynamic) {
    byId("timeline").hidden = false;
    Object.assign(byId("time"), { min: String(facts.start), max: String(facts.end) });
    showTime();
  }
  listen();
  say(facts.count ? "" : "The model has no splats.");
  await ordered();
  if (facts.dynamic && !matchMedia("(prefers-reduced-motion: reduce)").matches) play(true);
}
// Resolves when an order that was asked for from now on is in use.
function ordered() {
  return new Promise(tell => {
    sortAgain = true;
    waiting.set(ticket + 1, tell);
    wake(true);
  });
}

// For scripts and tests: stop at a time, draw with a camera, read the pixels.
window.penstock = {
  ready: begin(),
  stats: () => ({ ...stats, drawn: painter.drawn, count: model.facts.count, time, playing,
    width: canvas.width, height: canvas.height, view: { ...view } }),
  async show(camera, at) {
    play(false);
    fixed = camera;
    if (at !== undefined) seek(at);
    await ordered();
  },
  pixels() {  // RGBA of each pixel, rows from the top, in base64
    const gl = canvas.getContext("webgl2"), { width, height } = canvas;
    painter.draw(currentCamera(), time);
    const data = new Uint8Array(4 * width * height);
    gl.readPixels(0, 0, width, height, gl.RGBA, gl.UNSIGNED_BYTE, data);
    let text = "";
    for (let y = height - 1; y >= 0; y--) {
      const row = data.subarray(4 * width * y, 4 * width * (y + 1));
      for (let x = 0; x < row.length; x += 8192) text += String.fromCharCode(...row.subarray(x, x + 8192));
    }
    return btoa(text);
  },
};
window.penstock.ready.catch(error => { console.error(error); say(`The scene cannot be shown: ${error.message}.`, true); });
