#include "worker/text/template_shape.h"

#include <optional>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "common/status_macros.h"

namespace loopserve::worker {
namespace {

absl::Status Unsupported(absl::string_view why) {
  return absl::InvalidArgumentError(absl::StrCat("chat template: ", why));
}

bool IsWordCharacter(char c) { return absl::ascii_isalnum(c) || c == '_'; }

// One tag without its delimiters.
struct Tag {
  char kind = '%';  // '%', '{' or '#', what follows the opening brace
  absl::string_view inside;
  bool trims_left = false;
  bool trims_right = false;
  size_t end = 0;  // in the template, behind the closing delimiter
};

// Offset behind the string that starts at `at`, or absent.
std::optional<size_t> SkipString(absl::string_view text, size_t at) {
  const char quote = text[at];
  for (size_t i = at + 1; i < text.size(); ++i) {
    if (text[i] == '\\') {
      ++i;
    } else if (text[i] == quote) {
      return i + 1;
    }
  }
  return std::nullopt;
}

absl::StatusOr<Tag> ReadTag(absl::string_view text, size_t at) {
  Tag tag{.kind = text[at + 1]};
  const char close_first = tag.kind == '{' ? '}' : tag.kind;
  size_t i = at + 2;
  while (i + 1 < text.size() && !(text[i] == close_first && text[i + 1] == '}')) {
    if (tag.kind != '#' && (text[i] == '\'' || text[i] == '"')) {
      const std::optional<size_t> end = SkipString(text, i);
      if (!end) return Unsupported("a string does not end");
      i = *end;
    } else {
      ++i;
    }
  }
  if (i + 1 >= text.size()) return Unsupported("a tag does not end");
  tag.inside = text.substr(at + 2, i - at - 2);
  tag.end = i + 2;
  if (absl::StartsWith(tag.inside, "-")) tag.trims_left = true, tag.inside.remove_prefix(1);
  if (absl::EndsWith(tag.inside, "-")) tag.trims_right = true, tag.inside.remove_suffix(1);
  return tag;
}

void AppendEscaped(char c, std::string& out) {
  switch (c) {
    case '\n':
      out.append("\\n");
      break;
    case '\t':
      out.append("\\t");
      break;
    case '\r':
      out.append("\\r");
      break;
    case '\\':
    case '\'':
      out.push_back('\\');
      out.push_back(c);
      break;
    default:
      out.push_back(c);
  }
}

char UnescapedOf(char c) {
  switch (c) {
    case 'n':
      return '\n';
    case 't':
      return '\t';
    case 'r':
      return '\r';
    default:
      return c;
  }
}

// A string with its quotes, in the template's spelling, to canonical spelling.
std::string CanonicalString(absl::string_view quoted) {
  std::string out = "'";
  for (const char c : UnescapeTemplateString(quoted.substr(1, quoted.size() - 2))) {
    AppendEscaped(c, out);
  }
  out.push_back('\'');
  return out;
}

// Whether a tag's text so far ends with "loop.", whose members stay as they are.
bool EndsWithLoop(const std::string& out) {
  constexpr size_t kLength = 5;
  return out.ends_with("loop.") &&
         (out.size() == kLength || !IsWordCharacter(out[out.size() - kLength - 1]));
}

// The inside of a tag. `out` grows by words, strings and signs.
absl::StatusOr<std::string> CanonicalInside(absl::string_view inside) {
  std::string out;
  for (size_t i = 0; i < inside.size();) {
    const char c = inside[i];
    if (absl::ascii_isspace(c)) {
      ++i;
    } else if (c == '\'' || c == '"') {
      const std::optional<size_t> end = SkipString(inside, i);
      if (!end) return Unsupported("a string does not end");
      const std::string text = CanonicalString(inside.substr(i, *end - i));
      if (out.ends_with("'+") && out.size() > 2) {
        out.resize(out.size() - 2);
        out.append(text, 1);
      } else {
        out.append(text);
      }
      i = *end;
    } else if (IsWordCharacter(c)) {
      size_t end = i;
      while (end < inside.size() && IsWordCharacter(inside[end])) ++end;
      const absl::string_view word = inside.substr(i, end - i);
      if (out.ends_with('.') && !absl::ascii_isdigit(word[0]) && !EndsWithLoop(out)) {
        out.pop_back();
        absl::StrAppend(&out, "['", word, "']");
      } else {
        const bool apart = !out.empty() && (IsWordCharacter(out.back()) || out.back() == '\'' ||
                                            out.back() == ']' || out.back() == ')');
        absl::StrAppend(&out, apart ? " " : "", word);
      }
      i = end;
    } else {
      out.push_back(c);
      ++i;
    }
  }
  return out;
}

// Whether the template engine drops this text between two tags: '-' strips any white space, and
// {%...%} swallows the line end behind and the indentation before it.
bool IsDropped(absl::string_view text, const Tag* before, const Tag* after) {
  if (absl::StripAsciiWhitespace(text) != "") return false;
  if (text.empty() || (before && before->trims_right) || (after && after->trims_left)) return true;
  if (after == nullptr && text == "\n") return true;
  const bool line_end_goes = before == nullptr || before->kind != '{';
  if (line_end_goes && before != nullptr && absl::StartsWith(text, "\n")) text.remove_prefix(1);
  const bool indentation_goes = after != nullptr && after->kind != '{';
  if (indentation_goes) text = absl::StripTrailingAsciiWhitespace(text);
  return text.empty();
}

}  // namespace

absl::StatusOr<std::string> CanonicalTemplate(absl::string_view jinja) {
  std::string out;
  std::optional<Tag> before;
  size_t at = 0;
  while (true) {
    size_t open = at;
    const auto opens = [&](size_t i) {
      return jinja[i] == '{' && (jinja[i + 1] == '%' || jinja[i + 1] == '{' || jinja[i + 1] == '#');
    };
    while (open + 1 < jinja.size() && !opens(open)) ++open;
    const bool last = open + 1 >= jinja.size();
    std::optional<Tag> after;
    if (!last) {
      ASSIGN_OR_RETURN(after, ReadTag(jinja, open));
    }
    const absl::string_view between = jinja.substr(at, last ? absl::string_view::npos : open - at);
    if (!IsDropped(between, before ? &*before : nullptr, after ? &*after : nullptr)) {
      return Unsupported("text outside the tags");
    }
    if (last) return out;
    if (after->kind != '#') {
      ASSIGN_OR_RETURN(const std::string inside, CanonicalInside(after->inside));
      const bool statement = after->kind == '%';
      absl::StrAppend(&out, statement ? "{%" : "{{", inside, statement ? "%}" : "}}");
    }
    at = after->end;
    before = after;
  }
}

std::string UnescapeTemplateString(absl::string_view escaped) {
  std::string out;
  for (size_t i = 0; i < escaped.size(); ++i) {
    if (escaped[i] == '\\' && i + 1 < escaped.size()) {
      out.push_back(UnescapedOf(escaped[++i]));
    } else {
      out.push_back(escaped[i]);
    }
  }
  return out;
}

}  // namespace loopserve::worker
