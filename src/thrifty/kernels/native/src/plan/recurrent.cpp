#include "plan/recurrent.hpp"

#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>

#include "isa/isa.hpp"

namespace thrifty {

namespace {

// sigmoid(x)^(1 / temperature), without overflow for any x.
float decay_of(float x, float temperature) {
  const float log_sigmoid = x < 0.0f ? x - std::log1p(std::exp(x)) : -std::log1p(std::exp(-x));
  return std::exp(log_sigmoid / temperature);
}

// One channel of the keys: its row of the state decays, takes its part of the value, and gives its part of the output.
void channel(float* __restrict state, float decay, float key, float query, const float* __restrict value,
             float* __restrict out, int width) {
  for (int j = 0; j < width; j++) {
    state[j] = decay * state[j] + key * value[j];
    out[j] += query * state[j];
  }
}

}  // namespace

void Recur::head(Plan& plan, const Step& s, const View& view, size_t sequence, int head, int first_row,
                 float* decay) const {
  const LayerState& layer_state = *view.state(layer);
  const size_t numbers = (size_t)call.head_numbers(), keys = (size_t)call.key_dim, values = (size_t)call.value_dim;
  float* state = layer_state.newest + (size_t)head * numbers;
  if (s.slots_of(layer, sequence, 0) == 0)
    std::memcpy(state, layer_state.committed + (size_t)head * numbers, numbers * sizeof(float));
  const size_t decays = (size_t)(plan.widths[(size_t)call.decay] / call.heads);  // one, or one a channel
  for (int i = 0; i < s.counts[sequence]; i++) {
    const size_t at = (size_t)(first_row + i) * (size_t)call.heads + (size_t)head;
    const float *query = plan.buffer(call.query, s) + at * keys, *key = plan.buffer(call.key, s) + at * keys;
    const float *value = plan.buffer(call.value, s) + at * values, *gate = plan.buffer(call.gate, s) + at * values;
    const float* raw = plan.buffer(call.decay, s) + at * decays;
    float* out = plan.buffer(call.out, s) + at * values;
    for (size_t c = 0; c < decays; c++) decay[c] = decay_of(raw[c], call.temperature);
    std::memset(out, 0, values * sizeof(float));
    for (size_t c = 0; c < keys; c++)
      channel(state + c * values, decay[decays == 1 ? 0 : c], key[c], call.scale * query[c], value, out, (int)values);
    kernels().rms_norm(out, call.norm, call.epsilon, (int)values, out);
    kernels().gate(gate, out, out, (int)values, 0);
  }
}

void Recur::run(Plan& plan, Step& s, Worker& w) {
  const int heads = call.heads, total = (int)s.counts.size() * heads;
  const int from = w.begin(total), to = w.end(total);
  int first_row = 0;
  for (size_t i = 0; i < s.counts.size(); first_row += s.counts[i], i++)
    for (int h = 0; h < heads; h++) {
      const int task = (int)i * heads + h;
      if (task >= from && task < to) head(plan, s, *s.views[i], i, h, first_row, (float*)w.scratch);
    }
}

void Plan::check_states(const Step& s, const View& v) const {
  for (int layer = s.first_layer; layer < s.last_layer; layer++) {
    const int64_t wanted = states_[(size_t)layer];
    if (wanted == 0 && !v.has_states()) continue;
    const LayerState* state = v.state(layer);
    if ((state ? state->numbers : 0) != wanted)
      throw std::invalid_argument("layer " + std::to_string(layer) + " needs a recurrent state of " +
                                  std::to_string(wanted) + " numbers; the view has " +
                                  std::to_string(state ? state->numbers : 0));
    if (wanted && s.tree)
      throw std::invalid_argument("layer " + std::to_string(layer) + " is recurrent and takes no tree of rows");
  }
}

void Plan::add_recur(int layer, const RecurrentCall& call) {
  const auto refuse = [](const char* message) { throw std::invalid_argument(message); };
  if (call.heads < 1 || call.key_dim < 1 || call.value_dim < 1 || !call.norm)
    refuse("a recurrence needs heads, widths of keys and values, and a norm");
  if (width(call.query) != call.heads * call.key_dim || width(call.key) != width(call.query) ||
      width(call.value) != call.heads * call.value_dim || width(call.gate) != width(call.value) ||
      width(call.out) != width(call.value))
    refuse("a recurrence's shapes do not match its buffers");
  if (width(call.decay) != call.heads && width(call.decay) != width(call.key))
    refuse("a recurrence decays by head or by channel of the keys");
  if (!(call.temperature > 0.0f)) refuse("a recurrence's temperature must be positive");
  if (layer < 0 || layer >= shape.layers() || states_[(size_t)layer] != 0)
    refuse("a layer of the plan has one recurrence at most");
  states_[(size_t)layer] = call.heads * call.head_numbers();
  add(std::make_unique<Recur>(layer, call));
}

}  // namespace thrifty
