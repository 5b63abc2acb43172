#include "router/chat_service.h"

#include <gtest/gtest.h>

#include "common/rpc.h"
#include "tests/scenario/cluster.h"
#include "tests/support/status_matchers.h"

namespace loopserve::router {
namespace {

using common::Reason;
using testing::Cluster;
using testing::FakeWorker;
using testing::ReasonIs;

class ChatServiceTest : public ::testing::Test {
 protected:
  template <typename Request, typename Response>
  absl::Status Call(grpc::Status (chat::v1::Chat::Stub::*method)(grpc::ClientContext*,
                                                                 const Request&, Response*),
                    const Request& request, Response* response) {
    grpc::ClientContext context;
    common::SetDeadline(context, absl::Seconds(30));
    return common::FromGrpc((stub_.get()->*method)(&context, request, response));
  }

  Cluster cluster_{{.workers = 2}};
  std::unique_ptr<chat::v1::Chat::Stub> stub_ = cluster_.chat();
};

TEST_F(ChatServiceTest, TokenizesAndBack) {
  chat::v1::TokenizeRequest text;
  text.set_text("abc");
  text.set_model(FakeWorker::kModel);
  chat::v1::TokenizeResponse tokens;
  ASSERT_OK(Call(&chat::v1::Chat::Stub::Tokenize, text, &tokens));
  ASSERT_EQ(tokens.token_ids_size(), 3);
  chat::v1::DetokenizeRequest ids;
  *ids.mutable_token_ids() = tokens.token_ids();
  chat::v1::DetokenizeResponse back;
  ASSERT_OK(Call(&chat::v1::Chat::Stub::Detokenize, ids, &back));
  EXPECT_EQ(back.text(), "abc");
}

TEST_F(ChatServiceTest, AsksAnotherWorkerWhenOneIsLost) {
  cluster_.Kill(1);
  chat::v1::TokenizeRequest text;
  text.set_text("abc");
  for (int i = 0; i < 5; ++i) {
    chat::v1::TokenizeResponse tokens;
    EXPECT_OK(Call(&chat::v1::Chat::Stub::Tokenize, text, &tokens));
  }
}

TEST_F(ChatServiceTest, RefusesUnknownModelsAndBadText) {
  chat::v1::TokenizeRequest request;
  chat::v1::TokenizeResponse tokens;
  request.set_model("other");
  EXPECT_THAT(Call(&chat::v1::Chat::Stub::Tokenize, request, &tokens),
              ReasonIs(Reason::kModelNotFound));
  request.set_model("\n");
  EXPECT_THAT(Call(&chat::v1::Chat::Stub::Tokenize, request, &tokens),
              ReasonIs(Reason::kInvalidField));
  request.set_model("");
  request.set_text("\xc0\x80");
  const absl::Status bad = Call(&chat::v1::Chat::Stub::Tokenize, request, &tokens);
  EXPECT_THAT(bad, ReasonIs(Reason::kInvalidField));
  EXPECT_EQ(common::InfoOf(bad).field, "text");
}

TEST_F(ChatServiceTest, ListsTheModelsOfItsWorkersOnce) {
  chat::v1::ListModelsResponse models;
  ASSERT_OK(Call(&chat::v1::Chat::Stub::ListModels, chat::v1::ListModelsRequest(), &models));
  ASSERT_EQ(models.models_size(), 1);
  EXPECT_EQ(models.models(0).id(), FakeWorker::kModel);
  chat::v1::GetModelRequest request;
  request.set_id(FakeWorker::kModel);
  chat::v1::GetModelResponse model;
  ASSERT_OK(Call(&chat::v1::Chat::Stub::GetModel, request, &model));
  EXPECT_EQ(model.model().context_tokens(), 1024u);
  request.set_id("other");
  EXPECT_THAT(Call(&chat::v1::Chat::Stub::GetModel, request, &model),
              ReasonIs(Reason::kModelNotFound));
}

TEST_F(ChatServiceTest, WithoutWorkersSaysSo) {
  cluster_.Kill(1);
  cluster_.Kill(2);
  cluster_.AwaitDown(1);
  cluster_.AwaitDown(2);
  chat::v1::TokenizeResponse tokens;
  EXPECT_THAT(Call(&chat::v1::Chat::Stub::Tokenize, chat::v1::TokenizeRequest(), &tokens),
              ReasonIs(Reason::kNoWorker));
}

}  // namespace
}  // namespace loopserve::router
