// A whole network for one sample after the other. Included by loops.inl, inside its namespace, last.

template <typename T>
static void forward_step(const Sample<T>& s, T* out) {
  switch (s.step.kind) {
    case kConvolution:
      return convolution_forward(s, out);
    case kBlock:
      return block_forward(s, out);
    case kAttention:
      return attention_forward(s, out);
    case kHead:
      return head_forward(s, out);
  }
}

template <typename T>
static void back_step(const Sample<T>& s, const T* v, const Cotangents<T>& to) {
  switch (s.step.kind) {
    case kConvolution:
      return convolution_back(s, v, to);
    case kBlock:
      return block_back(s, v, to);
    case kAttention:
      return attention_back(s, v, to);
    case kHead:
      return head_back(s, v, to);
  }
}

static Arena arena_for(const NetworkStep* program, int64_t steps) {
  int64_t bytes = 0;
  for (int64_t i = 0; i < steps; ++i) bytes = arena_bytes(program[i]) > bytes ? arena_bytes(program[i]) : bytes;
  return {static_cast<char*>(thread_memory(kArena, bytes)), bytes};
}

template <typename T>
static void network_samples(const NetworkArgs& args, int64_t begin, int64_t end) {
  const NetworkLayout& l = args.layout;
  Arena arena = arena_for(args.program, l.steps);
  for (int64_t sample = begin; sample < end; ++sample) {
    T* tape = args.tape != nullptr
                  ? static_cast<T*>(args.tape) + sample * l.tape_size
                  : static_cast<T*>(thread_memory(kTape, l.tape_size * static_cast<int64_t>(sizeof(T))));
    float* stats = args.stats != nullptr
                       ? args.stats + sample * l.stats_size
                       : static_cast<float*>(thread_memory(kStats, l.stats_size * static_cast<int64_t>(sizeof(float))));
    const T* image = static_cast<const T*>(args.x) + sample * l.image_in;
    T* result = static_cast<T*>(args.out) + sample * l.image_out;
    const T* rows = static_cast<const T*>(args.rows) + sample * l.row_stride;
    for (int64_t i = 0; i < l.steps; ++i) {
      const NetworkStep& step = args.program[i];
      const T* x = step.input == kOutside ? image : tape + step.input;
      const T* skip = step.skip == kAbsent ? nullptr : tape + step.skip;
      arena.release(0);
      forward_step<T>({step, arena, x, skip, tape, stats, rows}, step.output == kOutside ? result : tape + step.output);
    }
  }
}

template <typename T>
static void network_samples(const NetworkVjpArgs& args, int64_t begin, int64_t end) {
  const NetworkLayout& l = args.layout;
  Arena arena = arena_for(args.program, l.steps);
  T* cotangents = static_cast<T*>(thread_memory(kCotangents, l.cotangents_size * static_cast<int64_t>(sizeof(T))));
  for (int64_t sample = begin; sample < end; ++sample) {
    // Only read here, but handed on in what the forward steps write to.
    T* tape = const_cast<T*>(static_cast<const T*>(args.tape)) + sample * l.tape_size;
    float* stats = const_cast<float*>(args.stats) + sample * l.stats_size;
    const T* v_result = static_cast<const T*>(args.v) + sample * l.image_out;
    T* v_image = static_cast<T*>(args.v_x) + sample * l.image_in;
    for (int64_t i = l.steps - 1; i >= 0; --i) {
      const NetworkStep& step = args.program[i];
      const T* x = step.input == kOutside ? nullptr : tape + step.input;
      const T* skip = step.skip == kAbsent ? nullptr : tape + step.skip;
      const Cotangents<T> to = {step.v_input == kOutside ? v_image : cotangents + step.v_input,
                                step.skip == kAbsent ? nullptr : cotangents + step.v_skip};
      arena.release(0);
      back_step<T>({step, arena, x, skip, tape, stats, nullptr}, step.v_output == kOutside ? v_result
                                                                                            : cotangents + step.v_output,
                   to);
    }
  }
}
