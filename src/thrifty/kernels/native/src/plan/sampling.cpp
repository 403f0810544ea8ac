#include "plan/sampling.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <functional>
#include <limits>

#include "types.hpp"

// Of a function: the compiler makes it anew for wider vectors, and the loader chooses. The bits are the same.
#if defined(THRIFTY_X86) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#define THRIFTY_WIDE __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define THRIFTY_WIDE
#endif

namespace thrifty {

namespace {

constexpr int kBlock = 64;                                  // scores of which only the largest is compared at first
constexpr size_t kNucleusProbe = 256, kSecondProbe = 2048;  // candidates sorted first, and next

uint64_t mix(uint64_t value) {
  value += 0x9E3779B97F4A7C15ull;
  value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9ull;
  value = (value ^ (value >> 27)) * 0x94D049BB133111EBull;
  return value ^ (value >> 31);
}

// As NumPy adds: eight sums over up to 128 numbers, halves of more.
double pairwise_sum(const double* x, size_t n) {
  if (n < 8) {
    double sum = -0.0;
    for (size_t i = 0; i < n; i++) sum += x[i];
    return sum;
  }
  if (n <= 128) {
    double r[8];
    for (size_t j = 0; j < 8; j++) r[j] = x[j];
    size_t i = 8;
    for (; i + 8 <= n; i += 8)
      for (size_t j = 0; j < 8; j++) r[j] += x[i + j];
    double sum = ((r[0] + r[1]) + (r[2] + r[3])) + ((r[4] + r[5]) + (r[6] + r[7]));
    for (; i < n; i++) sum += x[i];
    return sum;
  }
  const size_t half = n / 2 - n / 2 % 8;
  return pairwise_sum(x, half) + pairwise_sum(x + half, n - half);
}

// The largest of x, NaN where any is NaN.
THRIFTY_WIDE float maximum(const float* x, size_t n) {
  constexpr size_t kWide = 64;  // compared side by side
  float most[kWide], best = -std::numeric_limits<float>::infinity();
  for (size_t j = 0; j < kWide; j++) most[j] = best;
  size_t i = 0;
  for (; i + kWide <= n; i += kWide)
    for (size_t j = 0; j < kWide; j++) most[j] = most[j] > x[i + j] ? most[j] : x[i + j];
  int numbers = 1;
  for (size_t k = 0; k < n; k++) numbers &= x[k] == x[k];
  for (size_t j = 0; j < kWide; j++) best = most[j] > best ? most[j] : best;
  for (; i < n; i++) best = x[i] > best ? x[i] : best;
  return numbers ? best : std::numeric_limits<float>::quiet_NaN();
}

// e^x for x <= 0: 2^n times a polynomial of the rest. Loops over it become vector code; every processor has the same
// bits.
THRIFTY_SHARED double exponential(double x) {
  constexpr double kLow = -708.0, kLog2e = 1.4426950408889634074, kHigh = 6.93147180369123816490e-01,
                   kRest = 1.90821492927058770002e-10;
  constexpr double kShift = 6755399441055744.0;  // 1.5 * 2^52: adding it rounds to a whole number
  const double clamped = x < kLow ? kLow : x;
  const double shifted = clamped * kLog2e + kShift, n = shifted - kShift;
  const double r = (clamped - n * kHigh) - n * kRest;
  double p = 1.0 / 6227020800.0;  // 1 / 13!, and down to 1 / 2!
  p = p * r + 1.0 / 479001600.0, p = p * r + 1.0 / 39916800.0, p = p * r + 1.0 / 3628800.0, p = p * r + 1.0 / 362880.0;
  p = p * r + 1.0 / 40320.0, p = p * r + 1.0 / 5040.0, p = p * r + 1.0 / 720.0, p = p * r + 1.0 / 120.0;
  p = p * r + 1.0 / 24.0, p = p * r + 1.0 / 6.0, p = p * r + 0.5;
  const double value = ((p * r) * r + r) + 1.0;
  const uint64_t bits = std::bit_cast<uint64_t>(value) + (std::bit_cast<uint64_t>(shifted) << 52);
  const double scaled = std::bit_cast<double>(bits);
  return x < kLow ? 0.0 : scaled;
}

THRIFTY_WIDE void weigh(const float* scores, size_t n, double best, double temperature, double* weights) {
  for (size_t i = 0; i < n; i++) weights[i] = exponential(((double)scores[i] - best) / temperature);
}

// The first place whose sum exceeds `number` times the whole.
size_t inverse(double* weights, size_t n, double number) {
  double sum = 0;
  for (size_t i = 0; i < n; i++) weights[i] = sum += weights[i];
  const size_t place = (size_t)(std::upper_bound(weights, weights + n, number * sum) - weights);
  return place < n ? place : (size_t)(std::lower_bound(weights, weights + n, sum) - weights);
}

// Places of the `count` largest of scores, falling, of equal ones the first. No fewer than `count` scores are as large
// as the count-th largest of the blocks' maxima: blocks of less are left out.
void largest(const float* scores, size_t n, size_t count, std::vector<float>& work, std::vector<int32_t>& ids) {
  const size_t blocks = n / kBlock, known = count < blocks ? blocks : 0;
  work.resize(2 * known);
  for (size_t b = 0; b < known; b++) work[b] = work[known + b] = maximum(scores + b * kBlock, kBlock);
  if (!known) work.assign(scores, scores + n);
  const auto first = work.begin() + (std::ptrdiff_t)known, nth = first + (std::ptrdiff_t)count - 1;
  std::nth_element(first, nth, work.end(), std::greater<float>());
  const float bound = *nth;
  ids.clear();
  for (size_t b = 0; b * kBlock < n; b++) {
    if (b < known && work[b] < bound) continue;
    for (size_t i = b * kBlock; i < std::min(n, (b + 1) * kBlock); i++)
      if (scores[i] >= bound) ids.push_back((int32_t)i);
  }
  const auto before = [&](int32_t a, int32_t b) { return scores[a] > scores[b] || (scores[a] == scores[b] && a < b); };
  if (ids.size() > count)
    std::nth_element(ids.begin(), ids.begin() + (std::ptrdiff_t)count - 1, ids.end(), before), ids.resize(count);
  std::sort(ids.begin(), ids.end(), before);
}

THRIFTY_WIDE void penalise(float* scores, size_t n, const SamplingOptions& o, const float* counts,
                           const uint8_t* seen) {
  const float repetition = o.repetition, frequency = o.frequency, presence = o.presence;
  if (repetition != 1.0f)
    for (size_t i = 0; i < n; i++) {
      const float x = scores[i], divided = x / repetition, times = x * repetition, penalised = x > 0 ? divided : times;
      scores[i] = seen[i] != 0 ? penalised : x;
    }
  for (size_t i = 0; i < n; i++)
    scores[i] = (scores[i] - frequency * counts[i]) - presence * (counts[i] > 0 ? 1.0f : 0.0f);
}

// How many of the falling weights stay: the fewest that hold top_p of `total`, none below min_p of the best.
size_t kept(const std::vector<double>& weights, double total, const SamplingOptions& o) {
  size_t keep = weights.size();
  if (o.top_p < 1.0) {
    double sum = 0;
    size_t place = 0;
    for (const double target = o.top_p * total; place < weights.size() && (sum += weights[place]) < target;) place++;
    keep = std::min(keep, place + 1);
  }
  if (o.min_p > 0.0)
    keep =
        std::min(keep, (size_t)std::count_if(weights.begin(), weights.end(), [&](double w) { return w >= o.min_p; }));
  return std::max<size_t>(1, keep);
}

}  // namespace

double uniform(uint64_t seed, uint64_t stream, uint64_t position) {
  uint64_t state = mix(seed);
  state = mix(state ^ mix(stream + 0x5851F42D4C957F2Dull));
  state = mix(state ^ mix(position + 0x14057B7EF767814Full));
  return (double)(state >> 11) / (double)(1ull << 53);
}

uint64_t noise_state(uint64_t seed, uint64_t stream, uint64_t position) {
  uint64_t state = mix(seed ^ 0x6A09E667F3BCC909ull);
  state = mix(state ^ mix(stream + 0x5851F42D4C957F2Dull));
  return mix(state ^ mix(position + 0x14057B7EF767814Full));
}

double noise_uniform(uint64_t state, uint64_t token) {
  const uint64_t bits = mix(state + token * 0x9E3779B97F4A7C15ull);
  return ((double)(bits >> 12) + 0.5) / (double)(1ull << 52);
}

Sampler::Sampler(SamplingOptions options, SamplerState state, std::vector<std::pair<int32_t, float>> biases,
                 std::vector<int32_t> absent, Forced forced, int vocabulary)
    : state(state),
      options_(options),
      biases_(std::move(biases)),
      absent_(std::move(absent)),
      forced_(std::move(forced)),
      vocabulary_(vocabulary) {}

void Sampler::commit(int token) {
  state.position++;
  committed_.push_back({token, state.seen ? state.seen[token] : (uint8_t)0});
  if (!state.counts) return;
  state.counts[token] += 1.0f;
  state.seen[token] = 1;
}

void Sampler::restore() {
  for (; !committed_.empty(); committed_.pop_back(), state.position--) {
    const auto [token, seen] = committed_.back();
    if (state.counts) state.counts[token] -= 1.0f, state.seen[token] = seen;
  }
}

bool Sampler::mask(const float* logits) {
  adjusted_.assign(logits, logits + vocabulary_);
  for (int32_t row : absent_) adjusted_[(size_t)row] = -std::numeric_limits<float>::infinity();
  return std::isfinite(maximum(adjusted_.data(), adjusted_.size()));
}

bool Sampler::adjust(const float* logits) {
  if (!mask(logits)) return false;
  const size_t n = adjusted_.size();
  if (state.counts) penalise(adjusted_.data(), n, options_, state.counts, state.seen);
  for (const auto& [token, bias] : biases_) adjusted_[(size_t)token] += bias;
  return std::isfinite(maximum(adjusted_.data(), n));
}

int Sampler::choose(const float* logits, int best) {
  const bool plain = !state.counts && biases_.empty(), greedy = options_.temperature == 0.0 || options_.top_k == 1;
  const bool possible = best >= 0 && !std::binary_search(absent_.begin(), absent_.end(), best);
  const int64_t place = state.position - forced_.start;
  if (place >= 0 && place < (int64_t)forced_.tokens.size())
    return possible || mask(logits) ? forced_.tokens[(size_t)place] : -1;
  if (plain && greedy && possible) return best;
  const float* scores = logits;
  if (plain && absent_.empty()) {
    if (best < 0) return -1;
  } else if (adjust(logits)) {
    scores = adjusted_.data();
  } else {
    return -1;
  }
  if (greedy) return (int)(std::max_element(scores, scores + vocabulary_) - scores);
  return draw(scores);
}

int Sampler::draw(const float* scores) {
  const size_t n = (size_t)vocabulary_,
               limit = options_.top_k ? (size_t)std::min<int64_t>(options_.top_k, vocabulary_) : n;
  const bool filtered = options_.top_p < 1.0 || options_.min_p > 0.0, all = options_.top_k == 0;
  double total = -1;
  if ((all && options_.top_p < 1.0) || ((all || options_.top_k == vocabulary_) && !filtered)) {
    weights_.resize(n);
    weigh(scores, n, maximum(scores, n), options_.temperature, weights_.data());
    if (!filtered) {
      ids_.clear();
      return options_.gumbel ? race(scores, n) : pick(n);
    }
    total = pairwise_sum(weights_.data(), n);
  }
  size_t width = all ? std::min(limit, kNucleusProbe) : limit;
  while (true) {
    largest(scores, n, width, work_, ids_);
    weights_.resize(width);
    const double best = scores[ids_[0]];
    for (size_t i = 0; i < width; i++)
      weights_[i] = exponential(((double)scores[ids_[i]] - best) / options_.temperature);
    const size_t keep = kept(weights_, total < 0 ? pairwise_sum(weights_.data(), width) : total, options_);
    if (keep < width || width == limit) return options_.gumbel ? race(scores, keep) : pick(keep);
    width = width < kSecondProbe ? std::min(limit, kSecondProbe) : limit;
  }
}

int Sampler::pick(size_t keep) {
  const size_t place = inverse(weights_.data(), keep, uniform(state.seed, state.stream, (uint64_t)state.position));
  return ids_.empty() ? (int)place : ids_[place];
}

// The token whose score and noise together are the largest, of equal ones the first. -log(u) >= 1 - u, so that a token
// whose 1 - u is above its weight times the least ratio of any before cannot win: most take no logarithm.
int Sampler::race(const float* scores, size_t keep) {
  const uint64_t noise = noise_state(state.seed, state.stream, (uint64_t)state.position);
  const double best = ids_.empty() ? maximum(scores, keep) : scores[ids_[0]];
  constexpr double kSlack = 1.0 + 1e-9;  // for the rounding of weights
  double most = -std::numeric_limits<double>::infinity(), ratio = std::numeric_limits<double>::infinity();
  int winner = -1;
  for (size_t i = 0; i < keep; i++) {
    const int token = ids_.empty() ? (int)i : ids_[i];
    if (!(weights_[i] > 0.0)) continue;
    const double u = noise_uniform(noise, (uint64_t)token);
    if (1.0 - u > weights_[i] * ratio * kSlack) continue;
    const double wait = -std::log(u), value = ((double)scores[token] - best) / options_.temperature - std::log(wait);
    ratio = std::min(ratio, wait / weights_[i]);
    if (value > most || (value == most && token < winner)) most = value, winner = token;
  }
  return winner;
}

}  // namespace thrifty
