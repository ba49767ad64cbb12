#version 300 es
// A pixel of a splat: alpha to 0.99, cut at 1/255, colour times alpha.
precision highp float;
in vec2 at;
in vec4 tint;
out vec4 result;
void main() {
  float alpha = min(0.99, tint.a * exp(-0.5 * dot(at, at)));
  if (alpha < 1.0 / 255.0) discard;
  result = vec4(tint.rgb * alpha, alpha);
}
