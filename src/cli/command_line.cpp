#include "cli/command_line.hpp"

#include "cli/nearest.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <map>

namespace sl {

std::string Bounds::words() const {
  if (std::isinf(low) && std::isinf(high)) return "a number";
  if (std::isinf(high)) return fmt::format("{} {}", low_excluded ? "above" : "at least", low);
  if (low_excluded) return fmt::format("above {} and at most {}", low, high);
  return fmt::format("between {} and {}", low, high);
}

Bounds at_least(double low) { return {.low = low}; }
Bounds above(double low) { return {.low = low, .low_excluded = true}; }
Bounds between(double low, double high) { return {.low = low, .high = high}; }
Bounds above_to(double low, double high) { return {.low = low, .high = high, .low_excluded = true}; }

namespace {

std::string dashed(const std::string& name) { return fmt::format("--{}", name); }

std::string trimmed(std::string_view text) {
  const size_t begin = text.find_first_not_of(" \t\r");
  if (begin == std::string_view::npos) return {};
  return std::string(text.substr(begin, text.find_last_not_of(" \t\r") - begin + 1));
}

bool parse_bool(const std::string& text, const std::string& where) {
  if (text == "true") return true;
  if (text == "false") return false;
  throw InputError(fmt::format("'{}' is neither true nor false", text), where, "choose one of them");
}

// "first ... last" in lines of at most `width`, every line but the first indented.
std::string wrapped(std::string_view text, size_t indent, size_t width) {
  std::string out;
  size_t column = indent;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find(' ', at), text.size());
    const std::string_view word = text.substr(at, end - at);
    if (column > indent && column + 1 + word.size() > width) {
      out += fmt::format("\n{:{}}", "", indent);
      column = indent;
    } else if (column > indent) {
      out += ' ';
      ++column;
    }
    out += word;
    column += word.size();
    at = end + 1;
  }
  return out;
}

std::string default_text(const nlohmann::json& value) {
  const auto show = [](const nlohmann::json& one) {
    return one.is_string() && one.get<std::string>().find_first_of(" \n\t\\\"") == std::string::npos
               ? one.get<std::string>()
               : one.dump();
  };
  if (!value.is_array()) return show(value);
  std::string all;
  for (const auto& one : value) all += fmt::format("{}{}", all.empty() ? "" : " ", one.dump());
  return all;
}

// As it would be typed: options that may be repeated understand \\.
std::string escaped(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (c == '\\') out += c;
    out += c;
  }
  return out;
}

}  // namespace

CommandLine::CommandLine(std::string command, std::string summary)
    : command_(std::move(command)), summary_(std::move(summary)) {}

template <typename T>
T CommandLine::parse_number(const std::string& text, const Bounds& bounds, const std::string& where) {
  T value{};
  const char* const end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  if (error == std::errc::result_out_of_range)
    throw InputError(
        fmt::format("{} is too large{}", text, std::is_integral_v<T> ? "" : ", or too near to 0"), where,
        "choose another number");
  bool finite = true;  // "inf" and "nan" are read as numbers too, and no option means them
  if constexpr (std::is_floating_point_v<T>) finite = std::isfinite(value);
  if (error != std::errc() || stop != end || !finite) {
    throw InputError(
        fmt::format("'{}' is not a {}number", text, std::is_integral_v<T> ? "whole " : ""), where,
        std::is_unsigned_v<T> ? "give a whole number from 0"
                              : fmt::format("give {}", bounds.words() == "a number"
                                                           ? bounds.words()
                                                           : fmt::format("a number {}", bounds.words())));
  }
  if (!bounds.contains(static_cast<double>(value))) {
    throw InputError(fmt::format("{} is not {}", text, bounds.words()), where,
                     fmt::format("choose a number {}", bounds.words()));
  }
  return value;
}
template int32_t CommandLine::parse_number(const std::string&, const Bounds&, const std::string&);
template int64_t CommandLine::parse_number(const std::string&, const Bounds&, const std::string&);
template uint64_t CommandLine::parse_number(const std::string&, const Bounds&, const std::string&);
template float CommandLine::parse_number(const std::string&, const Bounds&, const std::string&);
template double CommandLine::parse_number(const std::string&, const Bounds&, const std::string&);

// The shortest decimal that reads back as this float, so that 0.7F is shown as 0.7.
nlohmann::json CommandLine::to_json(float value) { return nlohmann::json::parse(fmt::format("{}", value)); }

std::string CommandLine::joined_names(const std::vector<std::string>& names) {
  return fmt::format("{}", fmt::join(names, "|"));
}

size_t CommandLine::index_of_choice(const std::vector<std::string>& names, const std::string& value,
                                    const std::string& where) {
  const auto found = std::find(names.begin(), names.end(), value);
  if (found != names.end()) return static_cast<size_t>(found - names.begin());
  throw InputError(fmt::format("'{}' is not one of {}", value, fmt::join(names, ", ")), where,
                   did_you_mean(value, names, "", "choose one of them"));
}

Option& CommandLine::add_option(const std::string& name, const std::string& help,
                                const std::string& value_name, Option::Set set, Option::Show show) {
  require(find(name) == nullptr, fmt::format("option {} is defined twice", name));
  Option& option = options_.emplace_back();
  option.name_ = name;
  option.group_ = group_;
  option.help_ = help;
  option.value_name_ = value_name;
  option.default_text_ = default_text(show());
  option.set_ = std::move(set);
  option.show_ = std::move(show);
  return option;
}

Option& CommandLine::add(const std::string& name, bool& target, const std::string& help) {
  Option& option = add_option(
      name, help, "",
      [&target](const std::vector<std::string>& values, const std::string& where) {
        target = parse_bool(values.front(), where);
      },
      [&target] { return nlohmann::json(target); });
  option.flag_ = true;
  return option;
}

Option& CommandLine::add(const std::string& name, std::string& target, const std::string& help) {
  return add_option(
      name, help, "TEXT",
      [&target](const std::vector<std::string>& values, const std::string&) { target = values.front(); },
      [&target] { return nlohmann::json(target); });
}

Option& CommandLine::add(const std::string& name, std::vector<std::string>& target, const std::string& help,
                         Convert convert) {
  Option& option = add_option(
      name, help, "TEXT",
      [&target, convert](const std::vector<std::string>& values, const std::string& where) {
        target.clear();
        for (const std::string& value : values) {
          if (!value.empty()) target.push_back(convert ? convert(value, where) : value);
        }
      },
      [&target] { return nlohmann::json(target); });
  option.repeatable_ = true;
  return option;
}

Option& CommandLine::add_positional(const std::string& name, std::string& target, const std::string& help,
                                    bool required) {
  Option& option = add(name, target, help);
  option.position_ = positions_++;
  option.required_ = required;
  return option;
}

Option* CommandLine::find(std::string_view name) {
  const auto found = std::find_if(options_.begin(), options_.end(),
                                  [&](const Option& option) { return option.name_ == name; });
  return found == options_.end() ? nullptr : &*found;
}

void CommandLine::unknown(const std::string& name, const std::string& where, bool dashes) const {
  std::vector<std::string> names;
  for (const Option& option : options_) {
    if (option.position_ < 0) names.push_back(option.name_);
  }
  if (dashes) names.insert(names.end(), {"config", "help"});
  const std::string help = fmt::format("see selflengthen {} --help", command_);
  throw InputError("no such option", where, did_you_mean(name, names, dashes ? "--" : "", help));
}

bool CommandLine::parse(const std::vector<std::string>& arguments) {
  if (std::find(arguments.begin(), arguments.end(), "--help") != arguments.end()) {
    std::fputs(help().c_str(), stdout);
    return false;
  }
  std::map<std::string, std::vector<std::string>> values;
  std::vector<std::string> unnamed, files;
  for (size_t i = 0; i < arguments.size(); ++i) {
    const std::string& argument = arguments[i];
    if (!argument.starts_with("-") || argument == "-") {
      unnamed.push_back(argument);
      continue;
    }
    if (!argument.starts_with("--"))
      throw InputError("no such option", argument,
                       fmt::format("options are long, see selflengthen {} --help", command_));
    const size_t equals = argument.find('=');
    const std::string name = argument.substr(2, equals == std::string::npos ? equals : equals - 2);
    const Option* option = find(name);
    if ((!option || option->position_ >= 0) && name != "config") unknown(name, dashed(name), true);
    std::string value;
    const bool last = i + 1 == arguments.size();
    if (equals != std::string::npos) {
      value = argument.substr(equals + 1);
    } else if (option && option->flag_) {
      value = !last && (arguments[i + 1] == "true" || arguments[i + 1] == "false") ? arguments[++i] : "true";
    } else if (last || (arguments[i + 1].starts_with("--") && find(arguments[i + 1].substr(2)))) {
      throw InputError("its value is missing", dashed(name), "write it behind the option");
    } else {
      value = arguments[++i];  // whatever it looks like: a negative number, "---"
    }
    (name == "config" ? files : values[name]).push_back(value);
  }

  for (const std::string& path : files) read_file(path);
  for (Option& option : options_) {
    if (option.position_ < 0) {
      if (const auto found = values.find(option.name_); found != values.end())
        set(option, found->second, dashed(option.name_));
    } else if (static_cast<size_t>(option.position_) < unnamed.size()) {
      set(option, {unnamed[static_cast<size_t>(option.position_)]}, option.name_);
    }
  }
  if (unnamed.size() > static_cast<size_t>(positions_)) {
    throw InputError("not expected here", fmt::format("'{}'", unnamed[static_cast<size_t>(positions_)]),
                     fmt::format("see selflengthen {} --help", command_));
  }
  check_required();
  return true;
}

void CommandLine::set(Option& option, const std::vector<std::string>& values, const std::string& where) {
  if (values.size() > 1 && !option.repeatable_)
    throw InputError("given more than once", where, "keep one of them");
  option.set_(values, where);
  option.given_ = true;
}

void CommandLine::read_file(const std::string& path) {
  std::ifstream file(path);
  if (!file || std::filesystem::is_directory(path))
    throw InputError("cannot be opened", path, "check --config");
  std::map<std::string, std::vector<std::string>> values;
  std::map<std::string, std::string> places;
  std::string line;
  for (int number = 1; std::getline(file, line); ++number) {
    const std::string where = fmt::format("{}:{}", path, number);
    if (number == 1 && line.starts_with("\xEF\xBB\xBF"))
      line.erase(0, 3);  // the mark that some editors write
    // A comment starts a line or follows white space, so that a value may hold a '#'.
    for (size_t at = line.find('#'); at != std::string::npos; at = line.find('#', at + 1)) {
      if (at == 0 || line[at - 1] == ' ' || line[at - 1] == '\t') {
        line.resize(at);
        break;
      }
    }
    const std::string text = trimmed(line);
    if (text.empty()) continue;
    const size_t equals = text.find('=');
    if (equals == std::string::npos)
      throw InputError("is not of the form name = value", where, "write it so, or begin the line with #");
    const std::string name = trimmed(std::string_view(text).substr(0, equals));
    const Option* option = find(name);
    if (!option || option->position_ >= 0) unknown(name, fmt::format("{}: {}", where, name), false);
    values[name].push_back(trimmed(std::string_view(text).substr(equals + 1)));
    places[name] = fmt::format("{}: {}", where, name);
  }
  for (const auto& [name, all] : values) set(*find(name), all, places[name]);
}

void CommandLine::check_required() const {
  std::vector<std::string> missing;
  for (const Option& option : options_) {
    if (option.required_ && !option.given_)
      missing.push_back(option.position_ >= 0 ? option.name_ : dashed(option.name_));
  }
  if (missing.empty()) return;
  throw InputError(fmt::format("{} {} missing", fmt::join(missing, ", "), missing.size() > 1 ? "are" : "is"),
                   command_, fmt::format("see selflengthen {} --help", command_));
}

void CommandLine::take_over(const nlohmann::json& resolved, const std::set<std::string>& except,
                            const std::string& where) {
  for (const auto& [name, value] : resolved.items()) {
    Option* const option = find(name);
    if (!option || option->given_ || except.contains(name)) continue;
    std::vector<std::string> values;
    if (value.is_array()) {
      for (const nlohmann::json& one : value) values.push_back(escaped(one.get<std::string>()));
      if (values.empty()) values.emplace_back();  // one empty text makes a list empty
    } else {
      values.push_back(value.is_string() ? value.get<std::string>() : value.dump());
    }
    option->set_(values, fmt::format("{}: {}", where, name));
  }
}

bool CommandLine::given(const std::string& name) const {
  const auto found = std::find_if(options_.begin(), options_.end(),
                                  [&](const Option& option) { return option.name_ == name; });
  require(found != options_.end(), fmt::format("no option {} is defined", name));
  return found->given_;
}

nlohmann::json CommandLine::resolved() const {
  nlohmann::json all = nlohmann::json::object();
  for (const Option& option : options_) all[option.name_] = option.show_();
  return all;
}

std::string CommandLine::help() const {
  constexpr size_t width = 110;
  constexpr size_t column = 34;
  std::string usage = "Usage: selflengthen " + command_;
  for (const Option& option : options_) {
    if (option.position_ >= 0)
      usage += option.required_ ? fmt::format(" {}", option.name_) : fmt::format(" [{}]", option.name_);
  }
  for (const Option& option : options_) {
    if (option.position_ < 0 && option.required_)
      usage += fmt::format(" --{} {}", option.name_, option.value_name_);
  }
  std::string text = fmt::format("{} [options]\n\n{}\n", usage, wrapped(summary_, 0, width));
  std::vector<std::string> groups;
  for (const Option& option : options_) {
    if (std::find(groups.begin(), groups.end(), option.group_) == groups.end())
      groups.push_back(option.group_);
  }
  const auto row = [&](const std::string& left, const std::string& right) {
    std::string line = fmt::format("  {:<{}}", left, column - 2);
    if (left.size() + 4 > column) line = fmt::format("  {}\n{:{}}", left, "", column);
    text += fmt::format("{}{}\n", line, wrapped(right, column, width));
  };
  for (const std::string& title : groups) {
    text += fmt::format("\n{}\n", title);
    for (const Option& option : options_) {
      if (option.group_ != title) continue;
      std::string left = option.position_ >= 0 ? option.name_ : dashed(option.name_);
      if (option.position_ < 0 && !option.value_name_.empty()) left += fmt::format(" {}", option.value_name_);
      std::string right = option.help_;
      if (option.required_) {
        right += " (required)";
      } else if (!option.default_text_.empty() && option.default_text_ != "\"\"") {
        right += fmt::format(" (default: {})", option.default_text_);
      }
      if (option.repeatable_) right += " (may be repeated)";
      row(left, right);
    }
  }
  text += "\nEvery command\n";
  row("--config FILE",
      "read options from lines of the form name = value; # begins a comment; the command "
      "line wins");
  row("--help", "print this");
  for (const std::string& note : notes_) text += fmt::format("\n{}\n", wrapped(note, 0, width));
  if (!examples_.empty()) text += "\nExamples\n";
  for (const std::string& example : examples_) text += fmt::format("  {}\n", example);
  return text;
}

}  // namespace sl
