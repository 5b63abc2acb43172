// Structured logging: one event, a few fields. JSON lines for machines, text for a terminal.
//
//   log.Info("session restored", {{"session_id", id}, {"tokens", tokens}, {"source", "disk"}});
//
// Prompts and answers never go into a log. Loggers are handed down by constructor.
// Thread rule: all calls are safe from any thread.
#pragma once

#include <initializer_list>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include "absl/strings/string_view.h"

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"

namespace loopserve::common {

enum class LogLevel { kDebug, kInfo, kWarning, kError };

struct LogField {
  absl::string_view name;
  std::string text;
  bool quoted = true;  // false: a JSON number or boolean

  LogField(absl::string_view n, std::string value) : name(n), text(std::move(value)) {}
  LogField(absl::string_view n, absl::string_view value) : name(n), text(value) {}
  LogField(absl::string_view n, const char* value) : name(n), text(value) {}
  LogField(absl::string_view n, bool value)
      : name(n), text(value ? "true" : "false"), quoted(false) {}
  template <typename T, typename = std::enable_if_t<std::is_arithmetic_v<T>>>
  LogField(absl::string_view n, T value) : name(n), text(absl::StrCat(value)), quoted(false) {}
};

class Logger {
 public:
  enum class Format { kText, kJson };
  // Writes to standard error. `component` ("worker w1") heads every line.
  static std::unique_ptr<Logger> Create(absl::string_view component, LogLevel level, Format format);
  // Drops everything: for tests.
  static Logger& Null();
  virtual ~Logger() = default;

  using Fields = std::initializer_list<LogField>;
  void Debug(absl::string_view event, Fields fields = {}) { Log(LogLevel::kDebug, event, fields); }
  void Info(absl::string_view event, Fields fields = {}) { Log(LogLevel::kInfo, event, fields); }
  void Warning(absl::string_view event, Fields fields = {}) {
    Log(LogLevel::kWarning, event, fields);
  }
  void Error(absl::string_view event, Fields fields = {}) { Log(LogLevel::kError, event, fields); }

  virtual void Log(LogLevel level, absl::string_view event, Fields fields) = 0;
  virtual void SetLevel(LogLevel level) = 0;
};

// "debug", "info", "warning", "error".
absl::StatusOr<LogLevel> ParseLogLevel(absl::string_view name);

}  // namespace loopserve::common
