// The order of depth, farthest first; runs in a worker, which gets this function's text.
function sorter() {
  const CUT = Math.sqrt(-2 * Math.log(0.05));  // standard deviations of time at which a splat ends
  let count = 0, places, motions, depth, bits, key, index, other_key, other;
  const counts = new Uint32Array(65536);
  onmessage = ({ data }) => {
    if (data.places) {
      ({ places, motions } = data);
      count = data.count;
      depth = new Float32Array(count);
      bits = new Uint32Array(depth.buffer);
      [key, index, other_key, other] = Array.from({ length: 4 }, () => new Uint32Array(count));
      return;
    }
    const begin = performance.now(), [rx, ry, rz, offset] = data.row, time = data.time;
    let n = 0;
    for (let i = 0, j = 0; i < count; i++, j += 4) {
      let x = places[j], y = places[j + 1], z = places[j + 2];
      if (motions) {
        const dt = time - motions[j + 3];
        if (!(Math.abs(dt) < CUT * places[j + 3])) continue;
        x += motions[j] * dt;
        y += motions[j + 1] * dt;
        z += motions[j + 2] * dt;
      }
      const far = rx * x + ry * y + rz * z + offset;
      if (!(far > data.near)) continue;
      depth[n] = far;
      key[n] = ~bits[n];  // positive floats are in the order of their bits; the farthest is first
      index[n++] = i;
    }
    pass(n, key, index, other_key, other, 0);
    const order = data.spare && data.spare.byteLength >= 4 * n ? new Uint32Array(data.spare) : new Uint32Array(count);
    pass(n, other_key, other, key, order, 16);
    postMessage({ order, n, ticket: data.ticket, ms: performance.now() - begin }, [order.buffer]);
  };
  // One pass of a stable radix sort, by 16 bits of the keys.
  function pass(n, key, index, to_key, to, shift) {
    counts.fill(0);
    for (let i = 0; i < n; i++) counts[(key[i] >>> shift) & 65535]++;
    for (let i = 0, sum = 0; i < 65536; i++) { const here = counts[i]; counts[i] = sum; sum += here; }
    for (let i = 0; i < n; i++) {
      const place = counts[(key[i] >>> shift) & 65535]++;
      to_key[place] = key[i];
      to[place] = index[i];
    }
  }
}
