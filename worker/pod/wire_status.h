// A status as a message of the pods' protocol. Thread rule: any thread.
#pragma once

#include "absl/status/status.h"
#include "loopserve/pod/v1/pod.pb.h"

namespace loopserve::worker {

void StatusToProto(const absl::Status& status, pod::v1::Status* out);
// Of a code that does not exist: Unknown, with the text.
absl::Status StatusFromProto(const pod::v1::Status& status);

}  // namespace loopserve::worker
