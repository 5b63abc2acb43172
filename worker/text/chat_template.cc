#include "worker/text/chat_template.h"

#include <algorithm>
#include <array>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "common/error.h"
#include "common/status_macros.h"
#include "worker/text/template_shape.h"
#include "worker/text/utf8.h"

namespace loopserve::worker {
namespace {

// Canonical pieces of the shapes. A default system message stands between kDefaultSystemOpen and
// kDefaultSystemClose.
constexpr absl::string_view kPromptUnset =
    "{%if not add_generation_prompt is defined%}{%set add_generation_prompt=false%}{%endif%}";
constexpr absl::string_view kDefaultSystemOpen = "{{'<|im_start|>system\\n";
constexpr absl::string_view kDefaultSystemClose = "<|im_end|>\\n'}}";
constexpr absl::string_view kChatMlMessage =
    "{{'<|im_start|>'+message['role']+'\\n'+message['content']+'<|im_end|>\\n'}}";
constexpr absl::string_view kChatMlPrompt =
    "{%if add_generation_prompt%}{{'<|im_start|>assistant\\n'}}{%endif%}";
constexpr absl::string_view kLoop = "{%for message in messages%}";
constexpr absl::string_view kIfNoSystem = "{%if loop.first and messages[0]['role']!='system'%}";

// Reads a canonical template from the front.
class ShapeReader {
 public:
  explicit ShapeReader(absl::string_view rest) : rest_(rest) {}
  bool Skip(absl::string_view piece) { return absl::ConsumePrefix(&rest_, piece); }
  // Everything before `piece`, and `piece` itself.
  std::optional<absl::string_view> Until(absl::string_view piece) {
    const size_t at = rest_.find(piece);
    if (at == absl::string_view::npos) return std::nullopt;
    const absl::string_view before = rest_.substr(0, at);
    rest_.remove_prefix(at + piece.size());
    return before;
  }
  bool AtEnd() const { return rest_.empty(); }

 private:
  absl::string_view rest_;
};

struct Recognised {
  ChatFormat format = ChatFormat::kChatMl;
  std::string default_system_message;
};

// Whether a quote ends the string inside `text`: then it is more than one string.
bool IsOneString(absl::string_view text) {
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\\') {
      ++i;
    } else if (text[i] == '\'') {
      return false;
    }
  }
  return true;
}

// {{'<|im_start|>system\n DEFAULT <|im_end|>\n'}}
std::optional<std::string> ReadDefaultSystem(ShapeReader& reader) {
  if (!reader.Skip(kDefaultSystemOpen)) return std::nullopt;
  const std::optional<absl::string_view> text = reader.Until(kDefaultSystemClose);
  if (!text || !IsOneString(*text)) return std::nullopt;
  return UnescapeTemplateString(*text);
}

// Every message alike; a default system message where the first is none.
std::optional<Recognised> ReadPlainChatMl(absl::string_view shape) {
  ShapeReader reader(shape);
  Recognised recognised;
  reader.Skip(kPromptUnset);
  if (!reader.Skip(kLoop)) return std::nullopt;
  if (reader.Skip(kIfNoSystem)) {
    std::optional<std::string> text = ReadDefaultSystem(reader);
    if (!text || !reader.Skip("{%endif%}")) return std::nullopt;
    recognised.default_system_message = *std::move(text);
  }
  if (!reader.Skip(kChatMlMessage) || !reader.Skip("{%endfor%}")) return std::nullopt;
  if (!reader.Skip(kChatMlPrompt) || !reader.AtEnd()) return std::nullopt;
  return recognised;
}

// Qwen 2.5: the same without tools; with tools (which we do not offer) another system message.
std::optional<Recognised> ReadToolChatMl(absl::string_view shape) {
  ShapeReader reader(shape);
  Recognised recognised;
  if (!reader.Skip("{%if tools%}")) return std::nullopt;
  if (!reader.Until("{%else%}{%if messages[0]['role']=='system'%}"
                    "{{'<|im_start|>system\\n'+messages[0]['content']+'<|im_end|>\\n'}}{%else%}")) {
    return std::nullopt;
  }
  std::optional<std::string> text = ReadDefaultSystem(reader);
  if (!text || !reader.Skip("{%endif%}{%endif%}") || !reader.Skip(kLoop)) return std::nullopt;
  recognised.default_system_message = *std::move(text);
  if (!reader.Skip("{%if(message['role']=='user') or(message['role']=='system' and not loop.first)"
                   " or(message['role']=='assistant' and not message['tool_calls'])%}") ||
      !reader.Skip(kChatMlMessage) || !reader.Skip("{%elif message['role']=='assistant'%}")) {
    return std::nullopt;
  }
  if (!reader.Until(absl::StrCat("{%endif%}{%endfor%}", kChatMlPrompt)) || !reader.AtEnd()) {
    return std::nullopt;
  }
  return recognised;
}

std::optional<Recognised> ReadLlama3(absl::string_view shape) {
  constexpr absl::string_view kPrompt = "{{'<|start_header_id|>assistant<|end_header_id|>\\n\\n'}}";
  ShapeReader reader(shape);
  reader.Skip(kPromptUnset);
  if (!reader.Skip("{%set loop_messages=messages%}{%for message in loop_messages%}"
                   "{%set content='<|start_header_id|>'+message['role']+'<|end_header_id|>\\n\\n'"
                   "+message['content']|trim+'<|eot_id|>'%}"
                   "{%if loop.index0==0%}{%set content=bos_token+content%}{%endif%}"
                   "{{content}}{%endfor%}")) {
    return std::nullopt;
  }
  const bool prompted = reader.Skip(kPrompt) || (reader.Skip("{%if add_generation_prompt%}") &&
                                                 reader.Skip(kPrompt) && reader.Skip("{%endif%}"));
  if (!prompted || !reader.AtEnd()) return std::nullopt;
  return Recognised{.format = ChatFormat::kLlama3};
}

absl::StatusOr<Recognised> Recognise(absl::string_view jinja) {
  constexpr absl::string_view kSupported =
      "supported are ChatML (SmolLM2, Qwen2, Qwen2.5 and the plain loop) and Llama 3";
  if (jinja.empty()) {
    return absl::FailedPreconditionError(
        absl::StrCat("the model has no tokenizer.chat_template; ", kSupported));
  }
  if (jinja.size() <= ChatTemplate::kMaxTemplateBytes) {
    const absl::StatusOr<std::string> shape = CanonicalTemplate(jinja);
    if (shape.ok()) {
      for (const auto& read : {ReadPlainChatMl, ReadToolChatMl, ReadLlama3}) {
        if (std::optional<Recognised> recognised = read(*shape)) return *std::move(recognised);
      }
    }
  }
  return absl::FailedPreconditionError(
      absl::StrCat("tokenizer.chat_template has an unknown shape, it begins '",
                   absl::CHexEscape(jinja.substr(0, 80)), "'; ", kSupported));
}

// Python's str.strip(), which Jinja's trim filter is.
bool IsPythonSpace(absl::string_view code_point) {
  if (code_point.size() == 1) {
    const auto c = static_cast<uint8_t>(code_point[0]);
    return (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x20);
  }
  constexpr std::array<absl::string_view, 19> kSpaces = {
      "\u0085", "\u00A0", "\u1680", "\u2000", "\u2001", "\u2002", "\u2003",
      "\u2004", "\u2005", "\u2006", "\u2007", "\u2008", "\u2009", "\u200A",
      "\u2028", "\u2029", "\u202F", "\u205F", "\u3000"};
  return std::find(kSpaces.begin(), kSpaces.end(), code_point) != kSpaces.end();
}

// `text` is valid UTF-8.
absl::string_view Strip(absl::string_view text) {
  size_t first = 0;
  size_t behind_last = 0;
  bool seen = false;
  for (size_t at = 0; at < text.size();) {
    const size_t bytes = NextUtf8(text.substr(at)).bytes;
    if (!IsPythonSpace(text.substr(at, bytes))) {
      if (!seen) first = at;
      seen = true;
      behind_last = at + bytes;
    }
    at += bytes;
  }
  return text.substr(first, behind_last - first);
}

}  // namespace

absl::string_view NameOf(ChatFormat format) {
  return format == ChatFormat::kChatMl ? "chatml" : "llama3";
}

absl::StatusOr<std::unique_ptr<ChatTemplate>> ChatTemplate::Create(absl::string_view jinja,
                                                                   const Tokenizer& tokenizer) {
  ASSIGN_OR_RETURN(Recognised recognised, Recognise(jinja));
  std::unique_ptr<ChatTemplate> chat_template(
      new ChatTemplate(tokenizer, recognised.format, std::move(recognised.default_system_message)));
  RETURN_IF_ERROR(chat_template->LoadFrame());
  chat_template->LoadStopTokens();
  return chat_template;
}

absl::StatusOr<TokenId> ChatTemplate::RequiredToken(absl::string_view spelling) const {
  const std::optional<TokenId> id = tokenizer_.FindToken(spelling);
  if (!id.has_value() || !tokenizer_.IsControl(*id)) {
    return absl::FailedPreconditionError(absl::StrCat("the ", NameOf(format_),
                                                      " chat template needs the control token ",
                                                      spelling, ", which the vocabulary lacks"));
  }
  return *id;
}

absl::Status ChatTemplate::LoadFrame() {
  if (format_ == ChatFormat::kChatMl) {
    ASSIGN_OR_RETURN(frame_.turn_start, RequiredToken("<|im_start|>"));
    ASSIGN_OR_RETURN(end_of_turn_, RequiredToken("<|im_end|>"));
    ASSIGN_OR_RETURN(frame_.between_turns, tokenizer_.Encode("\n"));
    frame_.after_role = "\n";
    return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(frame_.turn_start, RequiredToken("<|start_header_id|>"));
  ASSIGN_OR_RETURN(frame_.role_end, RequiredToken("<|end_header_id|>"));
  ASSIGN_OR_RETURN(end_of_turn_, RequiredToken("<|eot_id|>"));
  if (!tokenizer_.bos_id().has_value()) {
    return absl::FailedPreconditionError(
        "the llama3 chat template needs tokenizer.ggml.bos_token_id");
  }
  frame_.session_start = {*tokenizer_.bos_id()};
  frame_.after_role = "\n\n";
  frame_.strips_content = true;
  return absl::OkStatus();
}

void ChatTemplate::LoadStopTokens() {
  const auto add = [this](std::optional<TokenId> id) {
    if (!id.has_value()) return;
    if (std::find(stop_tokens_.begin(), stop_tokens_.end(), *id) == stop_tokens_.end()) {
      stop_tokens_.push_back(*id);
    }
  };
  add(end_of_turn_);
  add(tokenizer_.eos_id());
  add(tokenizer_.eot_id());
  for (const absl::string_view spelling : {"<|endoftext|>", "<|end_of_text|>", "<|eom_id|>"}) {
    const std::optional<TokenId> id = tokenizer_.FindToken(spelling);
    if (id.has_value() && tokenizer_.IsControl(*id)) add(id);
  }
}

LogState ChatTemplate::StateOf(std::span<const TokenId> log) const {
  if (log.empty()) return LogState::kEmpty;
  return log.back() == end_of_turn_ ? LogState::kTurnClosed : LogState::kTurnOpen;
}

absl::Status ChatTemplate::Check(LogState log, std::span<const Message> messages) const {
  if (messages.empty()) return common::InvalidField("messages", "is empty");
  for (size_t i = 0; i < messages.size(); ++i) {
    const std::string role_field = absl::StrCat("messages[", i, "].role");
    const std::string& role = messages[i].role;
    if (role == "system") {
      if (log != LogState::kEmpty || i != 0) {
        return common::InvalidField(role_field,
                                    "is 'system', allowed only for a session's first message");
      }
    } else if (role != "user" && role != "assistant") {
      return common::InvalidField(role_field,
                                  absl::StrCat("is '", absl::CHexEscape(role.substr(0, 32)),
                                               "'; allowed are 'system', 'user' and 'assistant'"));
    }
    if (!IsValidUtf8(messages[i].content)) {
      return common::InvalidField(absl::StrCat("messages[", i, "].content"), "is not valid UTF-8");
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<TokenId>> ChatTemplate::RenderTurn(
    LogState log, std::span<const Message> messages) const {
  RETURN_IF_ERROR(Check(log, messages));
  std::vector<TokenId> out;
  if (log == LogState::kEmpty) {
    out = frame_.session_start;
    if (messages[0].role != "system" && !default_system_message_.empty()) {
      RETURN_IF_ERROR(AppendMessage({"system", default_system_message_}, out));
    }
  } else {
    if (log == LogState::kTurnOpen) out.push_back(end_of_turn_);
    out.insert(out.end(), frame_.between_turns.begin(), frame_.between_turns.end());
  }
  for (const Message& message : messages) RETURN_IF_ERROR(AppendMessage(message, out));
  RETURN_IF_ERROR(AppendHead("assistant", "", out));
  return out;
}

absl::Status ChatTemplate::AppendMessage(const Message& message, std::vector<TokenId>& out) const {
  const absl::string_view content =
      frame_.strips_content ? Strip(message.content) : absl::string_view(message.content);
  RETURN_IF_ERROR(AppendHead(message.role, content, out));
  out.push_back(end_of_turn_);
  out.insert(out.end(), frame_.between_turns.begin(), frame_.between_turns.end());
  return absl::OkStatus();
}

absl::Status ChatTemplate::AppendHead(absl::string_view role, absl::string_view content,
                                      std::vector<TokenId>& out) const {
  const auto append = [&](absl::string_view text) -> absl::Status {
    ASSIGN_OR_RETURN(const std::vector<TokenId> ids, tokenizer_.Encode(text));
    out.insert(out.end(), ids.begin(), ids.end());
    return absl::OkStatus();
  };
  out.push_back(frame_.turn_start);
  if (frame_.role_end.has_value()) {
    RETURN_IF_ERROR(append(role));
    out.push_back(*frame_.role_end);
    return append(absl::StrCat(frame_.after_role, content));
  }
  return append(absl::StrCat(role, frame_.after_role, content));
}

}  // namespace loopserve::worker
