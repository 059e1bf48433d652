// Tables that the tests of datasets write, on one rank or on several.
#pragma once

#include <cmath>
#include <random>

#include "io/dataset.hpp"

namespace sl::test {

// Rows with all kinds of columns: empty texts and lists among them, several chunks of text when there are
// many.
inline Table some_table(int64_t rows, uint32_t seed) {
  std::mt19937 random(seed);
  const std::string pieces[] = {"word ", "长文。", "é", "\n\n", "🙂", "\"", std::string("\0", 1)};
  std::vector<std::string> texts, plain;
  std::vector<int64_t> samples;
  std::vector<double> scores;
  std::vector<std::vector<int32_t>> tokens;
  for (int64_t row = 0; row < rows; ++row) {
    std::string text;
    for (uint32_t n = random() % 7 == 0 ? 0 : random() % 300; n > 0; --n) text += pieces[random() % 7];
    texts.push_back(std::move(text));
    plain.push_back("row " + std::to_string(row));
    samples.push_back(static_cast<int64_t>(random()) * (row % 2 == 0 ? 1 : -1) * (int64_t{1} << 20));
    scores.push_back(std::ldexp(static_cast<double>(random()), -40));
    std::vector<int32_t> list(random() % 5 == 0 ? 0 : random() % 100);
    for (int32_t& token : list) token = static_cast<int32_t>(random() % 150000);
    tokens.push_back(std::move(list));
  }
  Table table;
  table.add("response", std::move(texts));
  table.add("sample", std::move(samples));
  table.add("score", std::move(scores));
  table.add("tokens", std::move(tokens));
  table.add("instruction", std::move(plain));
  table.attributes = {{"stage", "initial"}, {"note", "长 \"q\""}, {"empty", ""}};
  return table;
}

}  // namespace sl::test
