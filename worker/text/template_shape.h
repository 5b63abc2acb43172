// Brings a Jinja chat template into one canonical spelling, so that it can be compared with the
// few shapes we render ourselves. It is not a Jinja interpreter: whatever has another shape is
// refused, never guessed.
//
// Canonical: only tags, each as {%...%} or {{...}}; no comments and no white space the template
// engine would drop; one space between words, none elsewhere; strings in single quotes with \n, \t,
// \r, \' and \\ escaped; 'a'+'b' joined; message.role written message['role']. Pure functions.
#pragma once

#include <string>
#include "absl/strings/string_view.h"

#include "absl/status/statusor.h"

namespace loopserve::worker {

// InvalidArgument where a tag or a string does not end, or text stands outside the tags.
absl::StatusOr<std::string> CanonicalTemplate(absl::string_view jinja);

// The characters of a canonical string's inside, escapes resolved.
std::string UnescapeTemplateString(absl::string_view escaped);

}  // namespace loopserve::worker
