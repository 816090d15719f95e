// One element of the row update and of its transpose. fastpure/kernels/row/reference.py states the mathematics; the
// order of operations is fixed here: one fused multiply-add per term, innermost first.
#pragma once

#include "fastpure/args.h"
#include "fastpure/philox.h"

namespace fastpure {

// The coefficients of one step, in the order of the table's columns.
template <typename T>
struct Row {
  T a, b, c, d, p, q, r, u, s, alpha, sigma, clip;
};

template <typename T>
FASTPURE_HD Row<T> load_row(const void* table, int64_t step) {
  const T* t = static_cast<const T*>(table) + step * kTableWidth;
  return {t[0], t[1], t[2], t[3], t[4], t[5], t[6], t[7], t[8], t[9], t[10], t[11]};
}

template <typename T>
FASTPURE_HD T magnitude(T a) {
  return a < static_cast<T>(0) ? -a : a;
}

// The image that the network output predicts: (x - sigma e) / alpha.
template <typename T>
FASTPURE_HD T predicted_image(const Row<T>& row, T x, T e) {
  return fused(-row.sigma, e, x) / row.alpha;
}

// Whether clipping replaces the network output; a NaN prediction counts as inside, so that it stays visible.
template <typename T>
FASTPURE_HD bool is_outside(T x0) {
  return magnitude(x0) > static_cast<T>(1);
}

// The network output, or the one that would predict the nearest image in [-1, 1].
template <typename T>
FASTPURE_HD T clipped_noise_pred(const Row<T>& row, T x, T e) {
  const T x0 = predicted_image(row, x, e);
  const T edge = (x0 < static_cast<T>(0) ? x + row.alpha : x - row.alpha) / row.sigma;
  return is_outside(x0) ? edge : e;
}

// a x + (b e + (c g + (p h + d z))), where the terms of absent inputs are left out: the value is that with zeros in
// their place (only the sign of a zero may differ), at the price of the terms there are.
template <bool kGuidance, bool kRegister, bool kNoise, typename T>
FASTPURE_HD T next_state(const Row<T>& row, T x, T e, T g, T h, T z) {
  T sum = kNoise ? row.d * z : static_cast<T>(0);
  if (kRegister) sum = fused(row.p, h, sum);
  if (kGuidance) sum = fused(row.c, g, sum);
  return fused(row.a, x, fused(row.b, e, sum));
}

// q x + (r e + (u g + s h))
template <bool kGuidance, typename T>
FASTPURE_HD T next_register(const Row<T>& row, T x, T e, T g, T h) {
  T sum = row.s * h;
  if (kGuidance) sum = fused(row.u, g, sum);
  return fused(row.q, x, fused(row.r, e, sum));
}

// Cotangents; v and w are those of (x', h'), w absent where h' was not used. All have the form `k v + l w`.
template <bool kRegister, typename T>
FASTPURE_HD T combine(T k, T v, T l, T w) {
  return kRegister ? fused(k, v, l * w) : k * v;
}

// Cotangent of e where the element is inside or the row does not clip; it is 0 elsewhere.
template <bool kRegister, typename T>
FASTPURE_HD T v_noise_pred_inside(const Row<T>& row, T v, T w) {
  return combine<kRegister>(row.b, v, row.r, w);
}

template <bool kRegister, typename T>
FASTPURE_HD T v_state_inside(const Row<T>& row, T v, T w) {
  return combine<kRegister>(row.a, v, row.q, w);
}

// Cotangent of x where the element was clipped: x then enters through (x - alpha sign) / sigma too.
template <bool kRegister, typename T>
FASTPURE_HD T v_state_outside(const Row<T>& row, T v, T w, T ve) {
  const T edge = ve / row.sigma;
  return fused(row.a, v, kRegister ? fused(row.q, w, edge) : edge);
}

template <bool kRegister, typename T>
FASTPURE_HD T v_guidance(const Row<T>& row, T v, T w) {
  return combine<kRegister>(row.c, v, row.u, w);
}

template <bool kRegister, typename T>
FASTPURE_HD T v_register(const Row<T>& row, T v, T w) {
  return combine<kRegister>(row.p, v, row.s, w);
}

}  // namespace fastpure
