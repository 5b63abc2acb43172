// FairShare: whose prompt is computed next, and whose turn is admitted next.
//
// Rows of prefill are shared by deficit round robin on two levels: among tenants, and within a
// tenant among its sequences, which are its sessions, for a session has one turn at a time. Each
// round a tenant gets a quantum of rows, and one of its sequences uses it. A sequence that has just
// come may go before those that wait for their next quantum, once, and every second time at most:
// a short question does not stand in line behind long prompts, and they go on nevertheless.
//
// Places in the batch are shared by count: the next turn is of the tenant with the fewest running,
// the oldest of it. When the batch is full and one tenant has at least two more than another that
// waits, its youngest steps back (it is parked, see KvCache::Keep).
//
// Thread rule: one thread; the free functions are pure.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace loopserve::worker {

// A turn as the sharing sees it.
struct Claimant {
  absl::string_view tenant;
  uint64_t order = 0;  // of submission; names the sequence
  bool fixed = false;  // cannot step back now
};

class FairShare final {
 public:
  static constexpr int64_t kQuantumRows = 128;
  explicit FairShare(int64_t quantum_rows = kQuantumRows) : quantum_(quantum_rows) {}

  // Who has a prompt to compute: newcomers join, those that are missing leave.
  void Update(std::span<const Claimant> claimants);

  struct Turn {
    uint64_t order = 0;
    int64_t rows = 0;  // at most, before it is somebody else's turn
  };
  // Nothing when nobody is left.
  std::optional<Turn> Next() const;
  // The one whose turn it is got this many rows; `done`: it needs no more in this step.
  void Charge(int64_t rows, bool done);
  // The one whose turn it is can have none in this step.
  void Pass() { Charge(0, true); }

 private:
  struct Flow {
    uint64_t order = 0;
    int64_t deficit = 0;
    bool fresh = true;  // has not had its first quantum
    bool passed = false;
    bool present = true;  // during Update
  };
  struct Tenant {
    std::string name;
    int64_t deficit = 0;
    bool fresh_next = true;   // whether a newcomer may go first
    std::vector<Flow> flows;  // in the order of their turns
  };
  // Whose turn it is, as indices into tenants_ and its flows.
  struct Position {
    size_t tenant = 0;
    size_t flow = 0;
  };
  std::optional<Position> Current() const;
  static std::optional<size_t> FirstOf(const Tenant& tenant);
  void Join(const Claimant& claimant);

  const int64_t quantum_;
  std::vector<Tenant> tenants_;  // in the order of their turns
};

// Index of the turn to admit next; nothing when none waits.
std::optional<size_t> NextToAdmit(std::span<const Claimant> waiting,
                                  std::span<const Claimant> running);
// Index of the running turn that steps back for one of `tenant`; nothing when that would not be
// fairer.
std::optional<size_t> WhoStepsBack(absl::string_view tenant, std::span<const Claimant> running);

}  // namespace loopserve::worker
