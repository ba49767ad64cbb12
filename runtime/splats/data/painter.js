// From the server's bytes to textures, and from textures to a picture. page_model.py has the layout.
const ROW = 2048;  // texels in a row of a texture; every WebGL 2 has as many
const VERTEX = `{{splat.vert}}`;
const FRAGMENT = `{{splat.frag}}`;

async function fetchModel(progress) {
  const answer = await fetch("model");
  if (!answer.ok) throw new Error(`the server answered ${answer.status}`);
  const total = Number(answer.headers.get("Content-Length")) || 0;
  const reader = answer.body.getReader();
  let bytes = new Uint8Array(total || 1 << 20), done = 0;
  for (;;) {
    const part = await reader.read();
    if (part.done) break;
    if (done + part.value.length > bytes.length) {
      const wider = new Uint8Array(2 * (done + part.value.length));
      wider.set(bytes.subarray(0, done));
      bytes = wider;
    }
    bytes.set(part.value, done);
    done += part.value.length;
    progress(total ? done / total : 0);
  }
  if (total && done !== total) throw new Error(`${done} of ${total} bytes came; the server was stopped`);
  return bytes.buffer;
}

function parseModel(buffer) {
  const head = new DataView(buffer);
  if (buffer.byteLength < 16 || head.getUint32(0) !== 0x50535657 || head.getUint32(4, true) !== 1) {
    throw new Error("this is not a model of this page's version; reload the page");
  }
  const length = head.getUint32(8, true);
  const facts = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 16, length)));
  const array = (name, Type) => {
    const place = facts.arrays[name];
    return place ? new Type(buffer, 16 + length + place.offset, place.bytes / Type.BYTES_PER_ELEMENT) : null;
  };
  return { facts, places: array("places", Float32Array), shapes: array("shapes", Uint32Array),
    tints: array("tints", Uint32Array), motions: array("motions", Float32Array),
    harmonics: array("harmonics", Uint32Array) };
}

function makePainter(gl, model) {
  const program = gl.createProgram();
  for (const [kind, text] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, text);
    gl.compileShader(shader);
    if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS)) throw new Error(gl.getShaderInfoLog(shader));
    gl.attachShader(program, shader);
  }
  gl.bindAttribLocation(program, 0, "splat");
  gl.linkProgram(program);
  if (!gl.getProgramParameter(program, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(program));
  gl.useProgram(program);
  const uniforms = new Proxy({}, { get: (known, name) => known[name] ??= gl.getUniformLocation(program, name) });

  const count = model.facts.count, rows = Math.max(1, Math.ceil(count / ROW));
  if (rows > gl.getParameter(gl.MAX_TEXTURE_SIZE)) {
    throw new Error(`${count} splats are more than this browser's textures hold`);
  }
  const kinds = { places: [gl.RGBA32F, gl.RGBA, gl.FLOAT, 4], shapes: [gl.RGBA32UI, gl.RGBA_INTEGER, gl.UNSIGNED_INT, 4],
    tints: [gl.RG32UI, gl.RG_INTEGER, gl.UNSIGNED_INT, 2], motions: [gl.RGBA32F, gl.RGBA, gl.FLOAT, 4],
    harmonics: [gl.RGBA32UI, gl.RGBA_INTEGER, gl.UNSIGNED_INT, 4] };
  Object.entries(kinds).forEach(([name, [inner, format, type, width]], unit) => {
    const data = model[name], layered = name === "harmonics";
    const target = layered ? gl.TEXTURE_2D_ARRAY : gl.TEXTURE_2D;
    const planes = layered && data && count ? data.length / (4 * count) : 1;
    gl.activeTexture(gl.TEXTURE0 + unit);
    gl.bindTexture(target, gl.createTexture());
    for (const side of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) gl.texParameteri(target, side, gl.NEAREST);
    const high = data ? rows : 1, wide = data ? ROW : 1;  // one that is not there still has a texel
    if (layered) gl.texStorage3D(target, 1, inner, wide, high, planes);
    else gl.texStorage2D(target, 1, inner, wide, high);
    const whole = Math.floor(count / ROW), rest = count % ROW;
    for (let plane = 0; data && plane < planes; plane++) {
      const from = plane * count * width;
      for (const [y, w, h, skip] of [[0, ROW, whole, 0], [whole, rest, 1, whole * ROW]]) {
        if (!w || !h) continue;
        const part = data.subarray(from + skip * width, from + (skip + w * h) * width);
        if (layered) gl.texSubImage3D(target, 0, 0, y, plane, w, h, 1, format, type, part);
        else gl.texSubImage2D(target, 0, 0, y, w, h, format, type, part);
      }
    }
    gl.uniform1i(uniforms[name], unit);
  });
  gl.uniform1i(uniforms.moves, model.motions ? 1 : 0);
  gl.uniform1i(uniforms.sentinel, model.facts.footprint === 'omg4-sentinel' ? 1 : 0);
  gl.uniform1i(uniforms.degree, model.facts.degree);
  gl.uniform3fv(uniforms.sh_scales, model.facts.sh_scales);

  gl.bindBuffer(gl.ARRAY_BUFFER, gl.createBuffer());
  gl.bufferData(gl.ARRAY_BUFFER, 4 * Math.max(1, count), gl.DYNAMIC_DRAW);
  gl.enableVertexAttribArray(0);
  gl.vertexAttribIPointer(0, 1, gl.UNSIGNED_INT, 0, 0);
  gl.vertexAttribDivisor(0, 1);
  gl.enable(gl.BLEND);
  gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
  const [r, g, b] = model.facts.background;
  gl.clearColor(r, g, b, 1);
  let drawn = 0;
  return {
    setOrder(order, n) {
      gl.bufferSubData(gl.ARRAY_BUFFER, 0, order, 0, n);
      drawn = n;
    },
    draw(camera, time) {
      gl.viewport(0, 0, canvas.width, canvas.height);
      gl.clear(gl.COLOR_BUFFER_BIT);
      if (!drawn) return;
      gl.uniformMatrix3fv(uniforms.rotation, true, camera.rotation);
      gl.uniform3fv(uniforms.translation, camera.translation);
      gl.uniform3fv(uniforms.eye, camera.eye);
      gl.uniform4f(uniforms.lens, camera.fx, camera.fy, camera.cx, camera.cy);
      gl.uniform2f(uniforms.size, canvas.width, canvas.height);
      gl.uniform1f(uniforms.near, camera.near);
      gl.uniform1f(uniforms.time, time);
      gl.drawArraysInstanced(gl.TRIANGLE_STRIP, 0, 4, drawn);
    },
    get drawn() { return drawn; },
  };
}
