#include "worker/text/incremental_decoder.h"

#include <utility>

#include "common/status_macros.h"

namespace loopserve::worker {

absl::StatusOr<IncrementalDecoder> IncrementalDecoder::Create(const Tokenizer& tokenizer,
                                                              Options options) {
  ASSIGN_OR_RETURN(StopMatcher stops, StopMatcher::Create(std::move(options.stops)));
  return IncrementalDecoder(tokenizer, std::move(stops), options.show_control);
}

std::string IncrementalDecoder::Push(TokenId id) {
  std::string whole;
  std::string out;
  utf8_.Push(tokenizer_->TokenToBytes(id, show_control_), whole);
  stops_.Push(whole, out);
  return out;
}

std::string IncrementalDecoder::Flush() {
  std::string whole;
  std::string out;
  utf8_.Flush(whole);
  stops_.Push(whole, out);
  stops_.Flush(out);
  return out;
}

}  // namespace loopserve::worker
