// Messages to tokens, one turn at a time.
//
// A session is an append-only log of tokens: what the model generated stays as it was sampled, and
// a turn appends only its own messages and the prompt for the answer. For any conversation this
// yields the tokens of the model's own template rendered over all of it, because control tokens
// stand between messages and text never merges across them. Content is encoded without special
// tokens, so no message can forge a turn.
//
// The template is recognised by its exact shape (template_shape.h), the default system message is
// read from it. Immutable after Create; safe from any thread; the tokenizer must outlive it.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>
#include "absl/strings/string_view.h"

#include <span>
#include "absl/status/statusor.h"
#include "worker/text/tokenizer.h"

namespace loopserve::worker {

enum class ChatFormat { kChatMl, kLlama3 };
// "chatml", "llama3".
absl::string_view NameOf(ChatFormat format);

struct Message {
  std::string role;  // "system" (only as the first of a session), "user" or "assistant"
  std::string content;
};

// Where in a session's log a turn begins.
enum class LogState {
  kEmpty,       // the first turn: the default system message may come first
  kTurnClosed,  // the log ends with the end-of-turn token
  kTurnOpen,    // the last answer was cut (length, cancel): the turn is closed first
};

class ChatTemplate {
 public:
  static constexpr size_t kMaxTemplateBytes = size_t{1} << 18;

  // `jinja` is GGUF's tokenizer.chat_template. FailedPrecondition, naming what is supported, for
  // any other shape or where the vocabulary lacks the format's control tokens.
  static absl::StatusOr<std::unique_ptr<ChatTemplate>> Create(absl::string_view jinja,
                                                              const Tokenizer& tokenizer);

  // The tokens to append for a turn, up to where the answer begins. InvalidArgument naming the
  // field ("messages[1].role") for no messages, an unknown role, a system message that is not the
  // session's first message, content that is not UTF-8.
  absl::StatusOr<std::vector<TokenId>> RenderTurn(LogState log,
                                                  std::span<const Message> messages) const;

  LogState StateOf(std::span<const TokenId> log) const;

  ChatFormat format() const { return format_; }
  // Empty where the template has none.
  const std::string& default_system_message() const { return default_system_message_; }
  // The token that closes a turn: a sampled one belongs to the log.
  TokenId end_of_turn() const { return end_of_turn_; }
  // All ids at which an answer ends: end_of_turn and the model's end-of-text tokens.
  std::span<const TokenId> StopTokens() const { return stop_tokens_; }

 private:
  // What stands around a message, as tokens (control tokens) and text.
  struct Frame {
    std::vector<TokenId> session_start;  // before the first message
    TokenId turn_start = 0;              // <|im_start|>, <|start_header_id|>
    std::optional<TokenId> role_end;     // <|end_header_id|>
    std::string after_role;              // text between role and content
    std::vector<TokenId> between_turns;  // behind end_of_turn
    bool strips_content = false;
  };

  ChatTemplate(const Tokenizer& tokenizer, ChatFormat format, std::string default_system_message)
      : tokenizer_(tokenizer),
        format_(format),
        default_system_message_(std::move(default_system_message)) {}

  absl::Status LoadFrame();
  void LoadStopTokens();
  absl::StatusOr<TokenId> RequiredToken(absl::string_view spelling) const;

  absl::Status Check(LogState log, std::span<const Message> messages) const;
  // The frame up to the content; for an answer that is to be generated, content stays out.
  absl::Status AppendMessage(const Message& message, std::vector<TokenId>& out) const;
  absl::Status AppendHead(absl::string_view role, absl::string_view content,
                          std::vector<TokenId>& out) const;

  const Tokenizer& tokenizer_;
  const ChatFormat format_;
  const std::string default_system_message_;
  Frame frame_;
  TokenId end_of_turn_ = 0;
  std::vector<TokenId> stop_tokens_;
};

}  // namespace loopserve::worker
