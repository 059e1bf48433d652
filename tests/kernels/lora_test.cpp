// Low-rank adapters, whose rows choose one of several, against plain double sums.
#include "tests/kernels/on_devices.hpp"

namespace sl::test {
namespace {

struct Layer {
  int64_t rows, n_in, n_out;
  std::vector<int64_t> ranks;  // of the adapters
};

// The adapters of a layer, on the host and on the device.
struct Adapters {
  std::vector<std::vector<float>> a, b;
  std::vector<Stored> tensors;
  std::vector<LoraWeights> weights;
};

float scale_of(size_t adapter) { return adapter % 2 == 0 ? 2.0F : 0.5F; }

// Which adapter each row uses.
std::vector<int32_t> in_runs(int64_t rows, int64_t adapters) {
  std::vector<int32_t> chosen;
  for (int64_t t = 0; t < rows; ++t) chosen.push_back(static_cast<int32_t>(t / 7 % (adapters + 1) - 1));
  return chosen;
}
std::vector<int32_t> mixed(int64_t rows, int64_t adapters) {
  std::vector<int32_t> chosen;
  for (int64_t t = 0; t < rows; ++t) chosen.push_back(static_cast<int32_t>(t * 7 % (adapters + 1) - 1));
  return chosen;
}

class LoraTest : public OnDevices {
 protected:
  Adapters make(const Layer& layer) const {
    Adapters made;
    for (size_t i = 0; i < layer.ranks.size(); ++i) {
      const int64_t rank = layer.ranks[i];
      made.a.push_back(floats(rank * layer.n_in, 10 + static_cast<uint32_t>(i)));
      made.b.push_back(floats(layer.n_out * rank, 20 + static_cast<uint32_t>(i)));
    }
    for (size_t i = 0; i < layer.ranks.size(); ++i) {
      made.tensors.emplace_back(place(), std::initializer_list<int64_t>{layer.ranks[i], layer.n_in},
                                made.a[i]);
      made.tensors.emplace_back(place(), std::initializer_list<int64_t>{layer.n_out, layer.ranks[i]},
                                made.b[i]);
      made.weights.push_back({made.tensors[2 * i], made.tensors[2 * i + 1], scale_of(i)});
    }
    return made;
  }

  static std::vector<double> reference(const Layer& layer, const Adapters& adapters,
                                       const std::vector<int32_t>& chosen, const std::vector<float>& x,
                                       const std::vector<float>& before) {
    auto expected = in_double(before);
    for (int64_t t = 0; t < layer.rows; ++t) {
      if (chosen[static_cast<size_t>(t)] < 0) continue;
      const auto which = static_cast<size_t>(chosen[static_cast<size_t>(t)]);
      const int64_t rank = layer.ranks[which];
      for (int64_t r = 0; r < rank; ++r) {
        double low = 0.0;
        for (int64_t i = 0; i < layer.n_in; ++i)
          low += static_cast<double>(x[static_cast<size_t>(t * layer.n_in + i)]) *
                 static_cast<double>(adapters.a[which][static_cast<size_t>(r * layer.n_in + i)]);
        for (int64_t o = 0; o < layer.n_out; ++o)
          expected[static_cast<size_t>(t * layer.n_out + o)] +=
              static_cast<double>(scale_of(which)) * low *
              static_cast<double>(adapters.b[which][static_cast<size_t>(o * rank + r)]);
      }
    }
    return expected;
  }
};
SL_ON_DEVICES(LoraTest);

TEST_P(LoraTest, AddsTheProductOfEachRowsAdapterAndLeavesTheRest) {
  const std::vector<Layer> layers = {{57, 70, 101, {8, 3, 8}},
                                     {1, 8, 8, {1}},
                                     {0, 16, 24, {8}},
                                     {16, 576, 960, {8, 8}},
                                     {64, 3584, 512, {8, 8}},
                                     {33, 512, 4608, {16, 8}},
                                     {130, 200, 96, {64, 4}},
                                     {300, 128, 64, {8, 8, 8}},
                                     {40, 64, 72, {5, 32, 16, 8}}};
  for (const Layer& layer : layers) {
    const Adapters adapters = make(layer);
    const auto count = static_cast<int64_t>(layer.ranks.size());
    int64_t widest = 0;
    for (const int64_t rank : layer.ranks) widest = std::max(widest, rank);
    const auto x = floats(layer.rows * layer.n_in, 1);
    const auto before = floats(layer.rows * layer.n_out, 2, std::sqrt(static_cast<float>(layer.n_in)));
    for (const auto& chosen : {in_runs(layer.rows, count), mixed(layer.rows, count)}) {
      for (const int64_t gap : {0, 3, 8}) {
        SCOPED_TRACE(testing::Message() << layer.rows << " rows, " << layer.n_in << " to " << layer.n_out
                                        << " adapters " << count << " gap " << gap);
        const Stored x_t(place(), {layer.rows, layer.n_in}, x, gap);
        const Stored out(place(), {layer.rows, layer.n_out}, before, gap);
        const Guarded<float> scratch(device(), {layer.rows, widest});
        const Guarded<int32_t> chosen_t(device(), {layer.rows}, chosen);
        run(context(), Lora{.x = x_t,
                            .out = out,
                            .row_adapters = chosen_t,
                            .adapters = adapters.weights,
                            .scratch = scratch});
        const auto after = out.read();
        EXPECT_LT(relative_error(after, reference(layer, adapters, chosen, x, before)),
                  tolerance(layer.n_in, storage()));
        EXPECT_TRUE(out.surroundings_untouched() && scratch.surroundings_untouched());
        for (int64_t t = 0; t < layer.rows; ++t) {
          if (chosen[static_cast<size_t>(t)] >= 0) continue;
          const auto begin = t * layer.n_out;
          EXPECT_TRUE(
              std::equal(after.begin() + begin, after.begin() + begin + layer.n_out, before.begin() + begin))
              << "row " << t << " has no adapter";
        }
      }
    }
  }
}

TEST_P(LoraTest, WithoutRowAdaptersAllRowsUseTheFirst) {
  const Layer layer{19, 96, 70, {8, 8}};
  const Adapters adapters = make(layer);
  const auto x = floats(layer.rows * layer.n_in, 1), before = floats(layer.rows * layer.n_out, 2);
  const Stored x_t(place(), {layer.rows, layer.n_in}, x), out(place(), {layer.rows, layer.n_out}, before);
  const Guarded<float> scratch(device(), {layer.rows, 8});
  run(context(), Lora{.x = x_t, .out = out, .adapters = adapters.weights, .scratch = scratch});
  const std::vector<int32_t> first(19, 0);
  EXPECT_LT(relative_error(out.read(), reference(layer, adapters, first, x, before)),
            tolerance(layer.n_in, storage()));
}

// The same bits alone and among rows of the same and of other adapters, at every place.
TEST_P(LoraTest, ARowDependsOnItselfAndItsAdapter) {
  for (const Layer& layer : {Layer{40, 96, 70, {8, 8}}, Layer{100, 576, 512, {8, 8}}}) {
    const Adapters adapters = make(layer);
    const auto x = floats(layer.rows * layer.n_in, 1);
    const auto apply = [&](int64_t begin, int64_t end, const std::vector<int32_t>& chosen) {
      const std::vector<float> part(x.begin() + begin * layer.n_in, x.begin() + end * layer.n_in);
      const std::vector<float> zeros(static_cast<size_t>((end - begin) * layer.n_out), 0.0F);
      const Stored x_t(place(), {end - begin, layer.n_in}, part);
      const Stored out(place(), {end - begin, layer.n_out}, zeros);
      const Guarded<float> scratch(device(), {end - begin, 8});
      const Guarded<int32_t> chosen_t(device(), {end - begin},
                                      std::vector<int32_t>(chosen.begin() + begin, chosen.begin() + end));
      run(deterministic(), Lora{.x = x_t,
                                .out = out,
                                .row_adapters = chosen_t,
                                .adapters = adapters.weights,
                                .scratch = scratch});
      return out.read();
    };
    const auto chosen = mixed(layer.rows, 2);
    const auto all = apply(0, layer.rows, chosen);
    for (const auto& [begin, end] : {std::pair<int64_t, int64_t>{0, 1}, {1, 8}, {8, 39}, {39, 40}}) {
      const auto part = apply(begin, end, chosen);
      EXPECT_TRUE(std::equal(part.begin(), part.end(), all.begin() + begin * layer.n_out)) << begin;
    }
    const auto uniform = apply(0, layer.rows, std::vector<int32_t>(static_cast<size_t>(layer.rows), 1));
    for (int64_t t = 0; t < layer.rows; ++t) {
      if (chosen[static_cast<size_t>(t)] != 1) continue;
      EXPECT_TRUE(std::equal(uniform.begin() + t * layer.n_out, uniform.begin() + (t + 1) * layer.n_out,
                             all.begin() + t * layer.n_out))
          << t;
    }
  }
}

TEST_P(LoraTest, RefusesWhatDoesNotFit) {
  const Layer layer{4, 16, 24, {8}};
  const Adapters adapters = make(layer);
  const Stored x(place(), {4, 16}, floats(64, 1)), out(place(), {4, 24}, floats(96, 2));
  const Stored narrow(place(), {4, 8}, floats(32, 1));
  const Guarded<float> scratch(device(), {4, 8}), thin(device(), {4, 7});
  const Guarded<int32_t> chosen(device(), {4}, {0, -1, 0, 0});
  Lora op{.x = x, .out = out, .row_adapters = chosen, .adapters = adapters.weights, .scratch = scratch};
  EXPECT_NO_THROW(run(context(), op));
  op.scratch = thin;
  EXPECT_THROW(run(context(), op), BugError);
  op.scratch = scratch;
  op.x = narrow;
  EXPECT_THROW(run(context(), op), BugError);
  if (!on_host()) return;
  const Guarded<int32_t> unknown(device(), {4}, {0, 1, 0, 0});
  op.x = x;
  op.row_adapters = unknown;
  EXPECT_THROW(run(context(), op), BugError);
}

}  // namespace
}  // namespace sl::test
