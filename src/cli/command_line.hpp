// The options of one command: long names, grouped, bound to variables that hold the defaults. Values come
// from the command line and from a file of `name = value` lines (--config); the command line wins. A name
// that does not exist or a value out of range is an InputError that says where it stands and what would do.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "core/error.hpp"

namespace sl {

// What a number must be, with the words for it: "between 0 and 1".
struct Bounds {
  double low = -std::numeric_limits<double>::infinity();
  double high = std::numeric_limits<double>::infinity();
  bool low_excluded = false;
  bool contains(double value) const { return (low_excluded ? value > low : value >= low) && value <= high; }
  std::string words() const;
};
Bounds at_least(double low);
Bounds above(double low);
Bounds between(double low, double high);
Bounds above_to(double low, double high);  // low excluded, high included

// One option. Made by CommandLine::add; chain required() and value_name() behind it.
class Option {
 public:
  using Set = std::function<void(const std::vector<std::string>& values, const std::string& where)>;
  using Show = std::function<nlohmann::json()>;

  Option& required() {
    required_ = true;
    return *this;
  }
  Option& value_name(std::string name) {
    value_name_ = std::move(name);
    return *this;
  }

 private:
  friend class CommandLine;
  std::string name_, group_, help_, value_name_, default_text_;
  bool flag_ = false, repeatable_ = false, required_ = false, given_ = false;
  int position_ = -1;  // of a value without a name; -1: it has one
  Set set_;
  Show show_;
};

class CommandLine {
 public:
  // `command` as it is typed ("generate"), `summary` in a sentence or more.
  CommandLine(std::string command, std::string summary);
  CommandLine(const CommandLine&) = delete;
  CommandLine& operator=(const CommandLine&) = delete;

  // For --help: a paragraph behind the options, and an example.
  void note(std::string text) { notes_.push_back(std::move(text)); }
  void example(std::string text) { examples_.push_back(std::move(text)); }
  // Options added from here on stand under this title.
  void group(std::string title) { group_ = std::move(title); }

  // Binds `target`, whose value now is the default; it outlives parse() and resolved().
  template <typename T>
  requires(std::is_arithmetic_v<T> &&
           !std::is_same_v<T, bool>) Option& add(const std::string& name, T& target, const std::string& help,
                                                 Bounds bounds = {}) {
    return add_option(
        name, help, std::is_integral_v<T> ? "N" : "X",
        [&target, bounds](const std::vector<std::string>& values, const std::string& where) {
          target = parse_number<T>(values.front(), bounds, where);
        },
        [&target] { return to_json(target); });
  }
  Option& add(const std::string& name, bool& target, const std::string& help);  // --name, --name true|false
  Option& add(const std::string& name, std::string& target, const std::string& help);
  // May be given several times; what is given replaces the default, and an empty text adds nothing, so that
  // one alone makes the list empty. `convert` reads one value.
  using Convert = std::function<std::string(const std::string& value, const std::string& where)>;
  Option& add(const std::string& name, std::vector<std::string>& target, const std::string& help,
              Convert convert = {});
  template <typename E>
  Option& add_choice(const std::string& name, E& target,
                     const std::vector<std::pair<std::string, std::type_identity_t<E>>>& choices,
                     const std::string& help) {
    std::vector<std::string> names;
    for (const auto& choice : choices) names.push_back(choice.first);
    Option& option = add_option(
        name, help, joined_names(names),
        [&target, choices, names](const std::vector<std::string>& values, const std::string& where) {
          target = choices[index_of_choice(names, values.front(), where)].second;
        },
        [&target, choices] {
          for (const auto& choice : choices) {
            if (choice.second == target) return nlohmann::json(choice.first);
          }
          throw BugError("an option holds none of its choices");
        });
    return option;
  }
  // A value without a name, in the order of the calls; required unless made otherwise.
  Option& add_positional(const std::string& name, std::string& target, const std::string& help,
                         bool required = true);

  // The arguments behind the command's name. False when --help was among them: the help has been printed to
  // standard output and there is nothing else to do. InputError on anything wrong.
  bool parse(const std::vector<std::string>& arguments);

  // After parse(): gives the options that the user has not given the values of an earlier resolved(). Names
  // that are no options here, or stand in `except`, are passed over.
  void take_over(const nlohmann::json& resolved, const std::set<std::string>& except,
                 const std::string& where);
  // Whether the user gave it, on the command line or in the file.
  bool given(const std::string& name) const;
  // Name -> value of every option as it is now (for run.json).
  nlohmann::json resolved() const;
  std::string help() const;

 private:
  Option& add_option(const std::string& name, const std::string& help, const std::string& value_name,
                     Option::Set set, Option::Show show);
  static size_t index_of_choice(const std::vector<std::string>& names, const std::string& value,
                                const std::string& where);
  static std::string joined_names(const std::vector<std::string>& names);
  template <typename T>
  static T parse_number(const std::string& text, const Bounds& bounds, const std::string& where);
  static nlohmann::json to_json(double value) { return value; }
  static nlohmann::json to_json(float value);
  template <typename T>
  requires std::is_integral_v<T>
  static nlohmann::json to_json(T value) { return value; }
  Option* find(std::string_view name);
  [[noreturn]] void unknown(const std::string& name, const std::string& where, bool dashes) const;
  static void set(Option& option, const std::vector<std::string>& values, const std::string& where);
  void read_file(const std::string& path);
  void check_required() const;

  std::string command_, summary_, group_ = "Options";
  std::vector<std::string> notes_, examples_;
  std::deque<Option> options_;  // stays in place: callers hold references
  int positions_ = 0;
};

}  // namespace sl
