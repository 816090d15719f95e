// What each thread of each kernel does. `index` numbers the fours of a batch. What a row has (inputs, clipping, noise)
// is the same for all threads, so the branches on it diverge nowhere.
#pragma once

#include "cuda/launch.h"
#include "cuda/quad.h"

namespace fastpure::cuda {

template <typename T, Access kAccess>
FASTPURE_HD void noise_thread(const NoiseArgs& args, const Cut& cut, uint32_t index) {
  const Place place = locate<kAccess>(cut, index);
  Quad<T> values = generate<T, kAccess>(args.source, args.kind, place);
  const int64_t step = *args.source.step;
  if (step < 0 || step > 0xFFFF) {  // its high bits are not in the counter: make the mistake visible
    for (int j = 0; j < 4; ++j) values.v[j] = not_a_number<T>();
  }
  store<T, kAccess>(args.out, place, values);
}

template <typename T, Access kAccess>
FASTPURE_HD void row_thread(const RowArgs& args, const Cut& cut, uint32_t index) {
  const Place place = locate<kAccess>(cut, index);
  const Quad<T> x = load<T, kAccess>(args.x, place);
  Quad<T> e = load<T, kAccess>(args.noise_pred, args.noise_pred_dtype, place);
  const Quad<T> g = load<T, kAccess>(args.guidance, args.guidance_dtype, place);
  const Quad<T> h = load<T, kAccess>(args.register_in, place);
  const Row<T> row = read_row<T>(args.table, args.step, args.rows, true);
  Quad<T> z = zeros<T>();
  if (row.d != static_cast<T>(0)) {
    z = args.seed != nullptr ? generate<T, kAccess>(source_of(args), kNormal, place)
                             : load<T, kAccess>(args.noise, place);
  }
  if (row.clip != static_cast<T>(0)) {
    for (int j = 0; j < 4; ++j) e.v[j] = clipped_noise_pred(row, x.v[j], e.v[j]);
  }
  Quad<T> next;
  for (int j = 0; j < 4; ++j) {
    next.v[j] = next_state<true, true, true>(row, x.v[j], e.v[j], g.v[j], h.v[j], z.v[j]);
  }
  store<T, kAccess>(args.x_next, place, next);
  if (args.register_next != nullptr) {
    for (int j = 0; j < 4; ++j) next.v[j] = next_register<true>(row, x.v[j], e.v[j], g.v[j], h.v[j]);
    store<T, kAccess>(args.register_next, place, next);
  }
}

template <typename T, Access kAccess>
FASTPURE_HD void vjp_thread(const RowVjpArgs& args, const Cut& cut, uint32_t index) {
  const Place place = locate<kAccess>(cut, index);
  const Quad<T> v = load<T, kAccess>(args.v, place);
  const Quad<T> w = load<T, kAccess>(args.v_register, place);
  const Row<T> row = read_row<T>(args.table, args.step, args.rows, args.x != nullptr);
  Quad<T> v_x, v_e;
  for (int j = 0; j < 4; ++j) {
    v_e.v[j] = v_noise_pred_inside<true>(row, v.v[j], w.v[j]);
    v_x.v[j] = v_state_inside<true>(row, v.v[j], w.v[j]);
  }
  if (row.clip != static_cast<T>(0)) {
    const Quad<T> x = load<T, kAccess>(args.x, place);
    const Quad<T> e = load<T, kAccess>(args.noise_pred, args.noise_pred_dtype, place);
    for (int j = 0; j < 4; ++j) {
      const bool outside = is_outside(predicted_image(row, x.v[j], e.v[j]));
      const T clipped = v_state_outside<true>(row, v.v[j], w.v[j], v_e.v[j]);
      v_x.v[j] = outside ? clipped : v_x.v[j];
      v_e.v[j] = outside ? static_cast<T>(0) : v_e.v[j];
    }
  }
  store<T, kAccess>(args.v_x, place, v_x);
  store<T, kAccess>(args.v_noise_pred, place, v_e);
  Quad<T> other;
  if (args.v_guidance != nullptr) {
    for (int j = 0; j < 4; ++j) other.v[j] = v_guidance<true>(row, v.v[j], w.v[j]);
    store<T, kAccess>(args.v_guidance, place, other);
  }
  if (args.v_register_out != nullptr) {
    for (int j = 0; j < 4; ++j) other.v[j] = v_register<true>(row, v.v[j], w.v[j]);
    store<T, kAccess>(args.v_register_out, place, other);
  }
}

}  // namespace fastpure::cuda
