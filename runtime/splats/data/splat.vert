#version 300 es
// A splat as a quad: its footprint on the screen by EWA (Zwicker et al. 2001), its colour from
// spherical harmonics. The same drawing as the CPU's rasteriser, native/core/splat_project.cpp.
precision highp float;
precision highp int;
uniform highp sampler2D places;          // x, y, z, t_sigma
uniform highp usampler2D shapes;         // quaternion, ln of scales, opacity
uniform highp usampler2D tints;          // first coefficients
uniform highp sampler2D motions;         // velocity, t_center
uniform highp usampler2DArray harmonics; // bytes, 16 to a texel
uniform mat3 rotation;                   // world to camera: x right, y down, z forward
uniform vec3 translation, eye, sh_scales;
uniform vec4 lens;                       // fx, fy, cx, cy in pixels
uniform vec2 size;                       // pixels
uniform float time, near;
uniform int degree;
uniform bool moves, sentinel;            // footprints as OMG4's checkpoints were trained
in uint splat;
out vec2 at;                             // in standard deviations from the middle
out vec4 tint;

const int ROW = 2048;                    // texels in a row of a texture, as in painter.js
ivec2 texel;
uint harmonic_word(int number) {  // of the words of this splat
  uvec4 four = texelFetch(harmonics, ivec3(texel, number >> 2), 0);
  return four[number & 3];
}
float harmonic(int number, float scale) {  // of the bytes of this splat
  uint word = harmonic_word(number >> 2);
  int value = int(word << uint(24 - 8 * (number & 3))) >> 24;
  return float(value) * scale;
}
vec3 coefficient(int k, float scale) {
  int first = 3 * (k - 1);
  return vec3(harmonic(first, scale), harmonic(first + 1, scale), harmonic(first + 2, scale));
}
vec3 colour(vec3 mean) {
  uvec2 pair = texelFetch(tints, texel, 0).xy;
  vec3 sum = 0.28209479177387814 * vec3(unpackHalf2x16(pair.x), unpackHalf2x16(pair.y).x) + 0.5;
  if (degree > 0) {
    vec3 away = mean - eye;
    float far = length(away);
    vec3 d = far > 0.0 ? away / far : vec3(0.0);
    float x = d.x, y = d.y, z = d.z;
    float s = sh_scales.x / 127.0;
    sum += 0.4886025119029199 * (z * coefficient(2, s) - y * coefficient(1, s) - x * coefficient(3, s));
    float xx = x * x, yy = y * y, zz = z * z;
    if (degree > 1) {
      s = sh_scales.y / 127.0;
      sum += 1.0925484305920792 * (x * y * coefficient(4, s) - y * z * coefficient(5, s) - x * z * coefficient(7, s))
        + 0.31539156525252005 * (2.0 * zz - xx - yy) * coefficient(6, s)
        + 0.5462742152960396 * (xx - yy) * coefficient(8, s);
    }
    if (degree > 2) {
      s = sh_scales.z / 127.0;
      sum += -0.5900435899266435 * (y * (3.0 * xx - yy) * coefficient(9, s) + x * (xx - 3.0 * yy) * coefficient(15, s))
        + 2.890611442640554 * x * y * z * coefficient(10, s)
        - 0.4570457994644658 * (4.0 * zz - xx - yy) * (y * coefficient(11, s) + x * coefficient(13, s))
        + 0.3731763325901154 * z * (2.0 * zz - 3.0 * xx - 3.0 * yy) * coefficient(12, s)
        + 1.445305721320277 * z * (xx - yy) * coefficient(14, s);
    }
  }
  return max(sum, vec3(0.0));
}
mat3 turned(vec4 q) {  // w, x, y, z; columns
  float w = q.x, x = q.y, y = q.z, z = q.w;
  return mat3(
    1.0 - 2.0 * (y * y + z * z), 2.0 * (x * y + w * z), 2.0 * (x * z - w * y),
    2.0 * (x * y - w * z), 1.0 - 2.0 * (x * x + z * z), 2.0 * (y * z + w * x),
    2.0 * (x * z + w * y), 2.0 * (y * z - w * x), 1.0 - 2.0 * (x * x + y * y));
}
void main() {
  gl_Position = vec4(0.0, 0.0, 2.0, 1.0);  // outside: not drawn
  at = vec2(0.0);
  tint = vec4(0.0);
  texel = ivec2(int(splat) % ROW, int(splat) / ROW);
  vec4 place = texelFetch(places, texel, 0);
  uvec4 shape = texelFetch(shapes, texel, 0);
  vec2 last = unpackHalf2x16(shape.w);
  float alpha = last.y;
  vec3 mean = place.xyz;
  if (moves) {
    vec4 motion = texelFetch(motions, texel, 0);
    float dt = time - motion.w, u = dt / place.w;
    float weight = exp(-0.5 * u * u);
    if (!(weight > 0.05)) return;
    alpha *= weight;
    mean += motion.xyz * dt;
  }
  if (!(alpha >= 1.0 / 255.0)) return;
  vec3 p = rotation * mean + translation;
  if (!(p.z > near)) return;
  vec3 row0 = vec3(rotation[0].x, rotation[1].x, rotation[2].x);
  vec3 row1 = vec3(rotation[0].y, rotation[1].y, rotation[2].y);
  vec3 row2 = vec3(rotation[0].z, rotation[1].z, rotation[2].z);
  vec2 slope = p.xy / p.z;
  vec2 middle = (size * 0.5 - lens.zw) / lens.xy, wide = 1.3 * size * 0.5 / lens.xy;
  vec2 t = clamp(slope, middle - wide, middle + wide);  // as in training: footprints stay finite
  vec2 focal = lens.xy;
  if (sentinel) {  // a field of view of -1
    focal = size * 0.5 / tan(0.5);
    t = vec2(-1.3 * tan(0.5));
  }
  vec3 t0 = focal.x / p.z * (row0 - t.x * row2), t1 = focal.y / p.z * (row1 - t.y * row2);
  vec4 q = normalize(vec4(unpackSnorm2x16(shape.x), unpackSnorm2x16(shape.y)));
  mat3 axes = turned(q);
  vec2 logs = unpackHalf2x16(shape.z);
  axes[0] *= exp(logs.x);
  axes[1] *= exp(logs.y);
  axes[2] *= exp(last.x);
  vec3 u0 = t0 * axes, u1 = t1 * axes;
  float a = dot(u0, u0) + 0.3, b = dot(u0, u1), c = dot(u1, u1) + 0.3;
  float det = a * c - b * b;
  if (!(det > 0.0)) return;
  float half_sum = 0.5 * (a + c), spread = length(vec2(0.5 * (a - c), b));
  float large = half_sum + spread, small = max(det / large, 0.3);  // 0.3 was added to it
  vec2 along = a >= c ? vec2(large - c, b) : vec2(b, large - a);  // the one that does not cancel
  along = dot(along, along) > 0.0 ? normalize(along) : vec2(1.0, 0.0);
  vec2 corner = vec2(float(gl_VertexID & 1), float(gl_VertexID >> 1)) * 2.0 - 1.0;
  at = corner * sqrt(max(0.0, 2.0 * log(255.0 * alpha)));
  vec2 pixel = lens.xy * slope + lens.zw
    + along * (at.x * sqrt(large)) + vec2(-along.y, along.x) * (at.y * sqrt(small));
  tint = vec4(colour(place.xyz), alpha);
  gl_Position = vec4(2.0 * pixel.x / size.x - 1.0, 1.0 - 2.0 * pixel.y / size.y, 0.0, 1.0);
}
