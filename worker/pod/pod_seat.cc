#include "worker/pod/pod_seat.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace loopserve::worker {

PodSeat::PodSeat(RankRange ranks, size_t block_bytes)
    : ranks_(ranks),
      memory_(absl::StrCat("the pod of ", NamesOf(ranks)), block_bytes),
      why_empty_(absl::UnavailableError("nobody has joined")) {}

std::shared_ptr<PodConnection> PodSeat::admitted() const {
  absl::MutexLock lock(&mutex_);
  return admitted_;
}

absl::StatusOr<std::vector<uint64_t>> PodSeat::Execute(const StepPlan& plan) {
  const std::shared_ptr<PodConnection> pod = admitted();
  if (pod == nullptr) return absl::UnavailableError("nobody has joined");
  return pod->Execute(plan);
}

void PodSeat::Abort(const absl::Status& why) {
  if (const auto pod = admitted()) pod->Abort(why);
}

std::vector<uint64_t> PodSeat::calls() const {
  const auto pod = admitted();
  return pod == nullptr ? std::vector<uint64_t>() : pod->calls();
}

uint64_t PodSeat::weights_bytes() const {
  absl::MutexLock lock(&mutex_);
  return loaded_.weights_bytes();
}

bool PodSeat::Take(std::shared_ptr<PodConnection> pod) {
  absl::MutexLock lock(&mutex_);
  if (pod_ != nullptr) return false;
  pod_ = std::move(pod);
  is_loaded_ = is_ready_ = false;
  return true;
}

void PodSeat::Leave(const PodConnection& pod) {
  absl::MutexLock lock(&mutex_);
  if (pod_.get() != &pod) return;
  pod_ = nullptr;
  is_loaded_ = is_ready_ = false;
  why_empty_ = pod.ended();
}

std::shared_ptr<PodConnection> PodSeat::pod() const {
  absl::MutexLock lock(&mutex_);
  return pod_;
}

void PodSeat::SetLoaded(const pod::v1::Loaded& loaded) {
  absl::MutexLock lock(&mutex_);
  loaded_ = loaded;
  is_loaded_ = true;
}

void PodSeat::SetReady(uint64_t join) {
  absl::MutexLock lock(&mutex_);
  join_ = join;
  is_ready_ = true;
}

bool PodSeat::loaded() const {
  absl::MutexLock lock(&mutex_);
  return is_loaded_;
}

std::string PodSeat::activation_format() const {
  absl::MutexLock lock(&mutex_);
  return loaded_.activation_format();
}

uint32_t PodSeat::max_blocks() const {
  absl::MutexLock lock(&mutex_);
  return loaded_.max_blocks();
}

absl::Status PodSeat::ready() const {
  absl::MutexLock lock(&mutex_);
  return Ready();
}

absl::Status PodSeat::Ready() const {
  if (is_ready_) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat(
      NamesOf(ranks_), ": ",
      pod_ == nullptr ? why_empty_.message() : absl::StrCat("pod ", pod_->pod(), " is loading")));
}

absl::StatusOr<std::shared_ptr<PodConnection>> PodSeat::Admit(uint64_t joins) {
  std::shared_ptr<PodConnection> pod;
  {
    absl::MutexLock lock(&mutex_);
    RETURN_IF_ERROR(Ready());
    if (join_ > joins) {
      return absl::UnavailableError(
          absl::StrCat(NamesOf(ranks_), ": pod ", pod_->pod(), " has only just joined"));
    }
    pod = admitted_ = pod_;
  }
  memory_.Admit(pod);
  return pod;
}

}  // namespace loopserve::worker
