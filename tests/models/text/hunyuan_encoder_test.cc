// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/text/hunyuan_encoder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/error_of.h"
#include "tests/support/repository.h"

namespace lacuna {
namespace {

// Whole pipelines with a tokenizer that fits: tools/parity/joint_pipelines.py.
TEST(HunyuanEncoder, RefusesATokenizerOfAnotherLlama) {
  const auto folder = test::test_data() / "tokenizer/bpe";
  for (const char* file : {"llama3.tokenizer.json", "clip.tokenizer.json"}) {
    const std::string error = test::error_of([&] {
      HunyuanTextEncoder({.llama = {"llama.safetensors"},
                          .clip = {"clip.safetensors"},
                          .llama_config = {},
                          .clip_config = {},
                          .llama_tokenizer = folder / file,
                          .clip_tokenizer = folder / "clip.tokenizer.json",
                          .cache = {}});
    });
    EXPECT_THAT(error, ::testing::AllOf(::testing::HasSubstr(file),
                                        ::testing::HasSubstr("of the template and its end, "
                                                             "expected 96")));
  }
}

}  // namespace
}  // namespace lacuna
