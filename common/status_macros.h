// Early return for absl::Status and absl::StatusOr, in the shape the field knows them.
//
//   RETURN_IF_ERROR(file.Write(bytes));
//   ASSIGN_OR_RETURN(auto model, Model::Load(path));
#pragma once

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#define LOOPSERVE_CONCAT_INNER_(a, b) a##b
#define LOOPSERVE_CONCAT_(a, b) LOOPSERVE_CONCAT_INNER_(a, b)

#define RETURN_IF_ERROR(expr)                                         \
  do {                                                                \
    if (absl::Status status_ = (expr); !status_.ok()) return status_; \
  } while (false)

#define ASSIGN_OR_RETURN(lhs, expr) \
  ASSIGN_OR_RETURN_IMPL_(LOOPSERVE_CONCAT_(status_or_, __LINE__), lhs, expr)

#define ASSIGN_OR_RETURN_IMPL_(tmp, lhs, expr) \
  auto tmp = (expr);                           \
  if (!tmp.ok()) return tmp.status();          \
  lhs = *std::move(tmp)
