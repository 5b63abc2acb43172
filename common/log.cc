#include "common/log.h"

#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include "absl/strings/str_format.h"

namespace loopserve::common {
namespace {

std::string JsonEscape(absl::string_view text) {
  std::string out;
  out.reserve(text.size() + 2);
  for (const char c : text) {
    switch (c) {
      case '"':
        out += "\\\"";
        break;
      case '\\':
        out += "\\\\";
        break;
      case '\n':
        out += "\\n";
        break;
      case '\t':
        out += "\\t";
        break;
      default:
        if (static_cast<unsigned char>(c) < 0x20) {
          absl::StrAppend(&out, absl::StrFormat("\\u%04x", static_cast<unsigned char>(c)));
        } else {
          out += c;
        }
    }
  }
  return out;
}

spdlog::level::level_enum ToSpdlog(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return spdlog::level::debug;
    case LogLevel::kInfo:
      return spdlog::level::info;
    case LogLevel::kWarning:
      return spdlog::level::warn;
    case LogLevel::kError:
      return spdlog::level::err;
  }
  return spdlog::level::info;
}

class SpdLogger final : public Logger {
 public:
  SpdLogger(absl::string_view component, LogLevel level, Format format)
      : json_(format == Format::kJson),
        component_(JsonEscape(component)),
        logger_(std::string(component), std::make_shared<spdlog::sinks::stderr_color_sink_mt>()) {
    logger_.set_pattern(json_ ? "{\"time\":\"%Y-%m-%dT%H:%M:%S.%e%z\",\"level\":\"%l\",%v}"
                              : "%H:%M:%S.%e %^%-7l%$ %n: %v");
    logger_.set_level(ToSpdlog(level));
    logger_.flush_on(spdlog::level::info);
  }

  void Log(LogLevel level, absl::string_view event, Fields fields) override {
    const auto spd_level = ToSpdlog(level);
    if (!logger_.should_log(spd_level)) return;
    std::string line = json_ ? absl::StrCat("\"component\":\"", component_, "\",\"event\":\"",
                                            JsonEscape(event), "\"")
                             : std::string(event);
    for (const LogField& field : fields) {
      if (json_) {
        absl::StrAppend(&line, ",\"", field.name, "\":", field.quoted ? "\"" : "",
                        JsonEscape(field.text), field.quoted ? "\"" : "");
      } else {
        absl::StrAppend(&line, " ", field.name, "=", field.text);
      }
    }
    logger_.log(spd_level, "{}", line);
  }

  void SetLevel(LogLevel level) override { logger_.set_level(ToSpdlog(level)); }

 private:
  const bool json_;
  const std::string component_;
  spdlog::logger logger_;
};

class NullLogger final : public Logger {
 public:
  void Log(LogLevel, absl::string_view, Fields) override {}
  void SetLevel(LogLevel) override {}
};

}  // namespace

std::unique_ptr<Logger> Logger::Create(absl::string_view component, LogLevel level, Format format) {
  return std::make_unique<SpdLogger>(component, level, format);
}

Logger& Logger::Null() {
  static NullLogger null;  // stateless
  return null;
}

absl::StatusOr<LogLevel> ParseLogLevel(absl::string_view name) {
  if (name == "debug") return LogLevel::kDebug;
  if (name == "info") return LogLevel::kInfo;
  if (name == "warning") return LogLevel::kWarning;
  if (name == "error") return LogLevel::kError;
  return absl::InvalidArgumentError(
      absl::StrCat("unknown log level '", name, "'; use debug, info, warning or error"));
}

}  // namespace loopserve::common
