// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/pipeline/verify.h"

#include <cmath>
#include <cstring>
#include <map>

#include "lacuna/core/bf16.h"
#include "lacuna/core/error.h"
#include "lacuna/core/rng.h"
#include "lacuna/models/hunyuan/hash_case.h"
#include "lacuna/models/image/clip_vision.h"
#include "lacuna/models/mochi/hash_case.h"
#include "lacuna/models/pipeline/sampling.h"
#include "lacuna/models/pipeline/verify_compare.h"
#include "lacuna/models/text/umt5.h"
#include "lacuna/models/vae/hash_case.h"
#include "lacuna/models/vae/video_decoder.h"
#include "lacuna/models/wan/dit.h"
#include "lacuna/models/wan/hash_case.h"

namespace lacuna {

std::string_view wan_goldens();  // assets/goldens/*.json, embedded
std::string_view joint_goldens();
std::string_view image_goldens();

namespace {

constexpr int64_t kMaxInputValues = int64_t{1} << 26;
// bf16 against f32: docs/formats.md, "Numbers". UMT5's logits are not scaled by
// 1/sqrt(head_dim), so rounding shows more in its softmax.
constexpr Bf16Limit kDitLimit{1.5e-2, 0.9998}, kVaeLimit{2e-2, 0.9998}, kTextLimit{3e-2, 0.9995};
constexpr Bf16Limit kClipLimit{1.5e-2, 0.9998};
constexpr Bf16Limit kNoDtype{0.0, 0.0};

using Outputs = std::vector<std::pair<std::string, Tensor>>;  // "" = the output itself

std::vector<int64_t> bounded_shape(const GoldenJson& spec) {
  const auto shape = spec.at("shape").get<std::vector<int64_t>>();
  int64_t count = 1;
  for (int64_t d : shape) {
    LACUNA_CHECK(d > 0 && d <= kMaxInputValues && count <= kMaxInputValues / d,
                 "goldens: an input has more than {} values or an empty axis", kMaxInputValues);
    count *= d;
  }
  return shape;
}

// Input tensor {hash, shape, amplitude, valid_rows}.
Tensor input(const GoldenJson& spec) {
  std::vector<int64_t> shape = bounded_shape(spec);
  // The leading batch axis of the published shapes is always 1.
  LACUNA_CHECK(shape.size() <= 1 || shape[0] == 1, "goldens: batch {}, expected 1", shape[0]);
  if (shape.size() > 1) shape.erase(shape.begin());
  Tensor t(DType::f32, shape);
  fill_hash(spec.at("hash").get<std::string>(), 0.0, spec.value("amplitude", std::sqrt(3.0)),
            {t.as<float>(), static_cast<size_t>(t.numel())});
  return t;
}

int64_t batchless_dim(const GoldenJson& spec, size_t axis) {
  return spec.at("shape").at(axis + 1).get<int64_t>();
}

Tensor copy_f32(const TensorView& view) {
  Tensor t(DType::f32, {view.numel()});
  LACUNA_CHECK(view.contiguous(), "goldens: strided tap {}", view.describe());
  if (view.dtype == DType::f32) {
    std::memcpy(t.as<float>(), view.data, static_cast<size_t>(view.numel()) * sizeof(float));
  } else {
    const BFloat16* source = view.as<BFloat16>();
    for (int64_t i = 0; i < view.numel(); ++i) t.as<float>()[i] = static_cast<float>(source[i]);
  }
  return t;
}

// [tokens, channels] -> [channels, tokens]: upstream's patch embedding is a convolution's output.
Tensor channels_first(const TensorView& rows) {
  Tensor t(DType::f32, {rows.shape[1], rows.shape[0]});
  for (int64_t c = 0; c < rows.shape[1]; ++c)
    for (int64_t i = 0; i < rows.shape[0]; ++i)
      t.as<float>()[c * rows.shape[0] + i] = rows.as<float>()[i * rows.stride[0] + c];
  return t;
}

Outputs run_wan_dit(const GoldenJson& spec, Backend& backend, DType compute) {
  const GoldenJson& inputs = spec.at("inputs");
  WanHashCase c;
  c.tag = spec.at("name");
  c.config = wan_config_from_json(spec.at("config").dump(), c.tag);
  c.weights = spec.at("weights");
  c.latent_name = inputs.at("x").at("hash");
  c.frames = batchless_dim(inputs.at("x"), 1);
  c.height = batchless_dim(inputs.at("x"), 2);
  c.width = batchless_dim(inputs.at("x"), 3);
  input(inputs.at("x")), input(inputs.at("context"));  // bounds
  c.text_name = inputs.at("context").at("hash");
  c.text_rows = c.text_len = batchless_dim(inputs.at("context"), 0);
  if (inputs.contains("image")) {
    c.image_name = inputs.at("image").at("hash");
    c.image_rows = input(inputs.at("image")).view().shape[0];
  }
  for (const GoldenJson& range : inputs.at("timesteps")) {
    c.times.push_back({range.at("tokens").get<int64_t>(), range.at("timestep").get<double>()});
  }
  Outputs outputs;
  const bool taps = spec.contains("taps") && compute == DType::f32;
  const WanTap tap = [&](std::string_view name, const TensorView& value) {
    const auto expect = spec.at("taps").find(std::string(name));
    if (expect == spec.at("taps").end()) return;
    outputs.emplace_back(name,
                         expect->at("shape").size() == 5 ? channels_first(value) : copy_f32(value));
  };
  Tensor out = run_hash_case(backend, compute, c, taps ? &tap : nullptr);
  outputs.emplace(outputs.begin(), "", std::move(out));
  return outputs;
}

Outputs run_mochi_dit(const GoldenJson& spec, Backend& backend, DType compute) {
  const GoldenJson &x = spec.at("inputs").at("x"), &context = spec.at("inputs").at("context");
  const std::vector<int64_t> latent = bounded_shape(x), text = bounded_shape(context);
  MochiHashCase c;
  c.tag = spec.at("name");
  c.config = mochi_config_from_json(spec.at("config").dump(), c.tag);
  c.weights = spec.at("weights");
  c.valid = context.at("valid_rows").get<std::vector<int64_t>>();
  const auto samples = static_cast<int64_t>(c.valid.size());
  LACUNA_CHECK(latent.size() == 5 && text.size() == 3 && latent[0] == samples &&
                   text[0] == samples && latent[1] == c.config.in_channels &&
                   text[2] == c.config.text_dim,
               "goldens: {} x {}, context {} and {} valid_rows, expected [samples, {}, frames, "
               "height, width], [samples, rows, {}] and one for each sample",
               c.tag, x.at("shape").dump(), context.at("shape").dump(), samples,
               c.config.in_channels, c.config.text_dim);
  c.latent_name = x.at("hash");
  c.frames = latent[2], c.height = latent[3], c.width = latent[4];
  c.text_name = context.at("hash");
  c.text_rows = text[1];
  c.timestep = spec.at("inputs").at("timestep");
  Outputs outputs;
  outputs.emplace_back("", run_hash_case(backend, compute, c));
  return outputs;
}

Outputs run_hunyuan_dit(const GoldenJson& spec, Backend& backend, DType compute) {
  const GoldenJson& inputs = spec.at("inputs");
  const std::vector<int64_t> x = bounded_shape(inputs.at("x"));
  const std::vector<int64_t> context = bounded_shape(inputs.at("context"));
  LACUNA_CHECK(x.size() == 5 && context.size() == 3,
               "goldens: latent of {} and text of {} axes, expected 5 and 3", x.size(),
               context.size());
  HunyuanHashCase c;
  c.config = hunyuan_config_from_json(spec.at("config").dump(), std::string(spec.at("name")));
  c.weights = spec.at("weights");
  c.latent_name = inputs.at("x").at("hash");
  c.frames = x[2], c.height = x[3], c.width = x[4];
  c.text_name = inputs.at("context").at("hash");
  c.text_rows = context[1];
  c.valid_rows = inputs.at("context").at("valid_rows").get<std::vector<int64_t>>();
  LACUNA_CHECK(static_cast<int64_t>(c.valid_rows.size()) == x[0],
               "goldens: {} prompts for {} latents, expected as many", c.valid_rows.size(), x[0]);
  for (const int64_t rows : c.valid_rows)
    LACUNA_CHECK(rows >= 1 && rows <= c.text_rows, "goldens: valid_rows {}, expected 1 to {}", rows,
                 c.text_rows);
  c.pooled_name = inputs.at("pooled").at("hash");
  c.timestep = inputs.at("timestep");
  c.guidance = inputs.at("guidance");
  Outputs outputs;
  outputs.emplace_back("", run_hash_case(backend, compute, c));
  return outputs;
}

Outputs run_vae(const GoldenJson& spec, Backend& backend, DType compute) {
  const VaeHashCase c = parse_vae_hash_case(spec.dump(), spec.at("name").get<std::string>());
  Outputs outputs;
  outputs.emplace_back("", run_vae_hash_case(backend, compute, c));
  return outputs;
}

Outputs run_umt5(const GoldenJson& spec, Backend& backend, DType compute) {
  const auto source = hash_weights(spec.at("weights"), DType::f32);
  const Umt5Config config =
      umt5_config_from_json(spec.at("config").dump(), std::string(spec.at("name")));
  const Umt5Encoder encoder(config, *source, Umt5Names{});
  Context ctx{backend, compute};
  Outputs outputs;
  outputs.emplace_back(
      "", encoder.encode(ctx, spec.at("inputs").at("ids").get<std::vector<int32_t>>()));
  return outputs;
}

Outputs run_clip_vision(const GoldenJson& spec, Backend& backend, DType compute) {
  const auto source = hash_weights(spec.at("weights"), DType::f32);
  const ClipVisionConfig config =
      clip_vision_config_from_json(spec.at("config").dump(), std::string(spec.at("name")));
  const ClipVisionEncoder encoder(config, *source, detect_clip_vision_prefix(*source));
  Context ctx{backend, compute};
  Outputs outputs;
  outputs.emplace_back("", encoder.encode(ctx, input(spec.at("inputs").at("pixels"))));
  return outputs;
}

SamplerConfig sampler_config(const GoldenJson& json) {
  SamplerConfig config;
  config.kind = parse_sampler(json.at("kind").get<std::string>());
  config.convention = parse_convention(json.at("convention").get<std::string>());
  config.num_steps = json.at("num_steps");
  config.shift = json.at("shift");
  return config;
}

// A made-up model with a closed form: v_j = x_j / 2 - cos(0.003 t + j / 10) / 4.
Outputs run_sampler(const GoldenJson& spec, Backend&, DType) {
  const auto sampler = make_sampler(sampler_config(spec.at("config")));
  Tensor x = input(spec.at("inputs").at("x"));
  const std::span<float> values(x.as<float>(), static_cast<size_t>(x.numel()));
  std::vector<float> v(values.size());
  for (int step = 0; step < sampler->num_steps(); ++step) {
    for (size_t j = 0; j < v.size(); ++j) {
      v[j] = static_cast<float>(0.5 * values[j] -
                                0.25 * std::cos(0.003 * sampler->timestep(step) + 0.1 * j));
    }
    sampler->step(step, v, values);
  }
  Outputs outputs;
  outputs.emplace_back("", std::move(x));
  return outputs;
}

Outputs run_wan_pipeline(const GoldenJson& spec, Backend& backend, DType compute) {
  const GoldenJson& config = spec.at("config");
  const GoldenJson& inputs = spec.at("inputs");
  const std::string name = spec.at("name");
  const auto source = hash_weights(spec.at("weights"), DType::f32);
  WeightReader reader(*source);
  WanConfig network = wan_config_from_json(config.at("transformer").dump(), name);
  network.text_len = batchless_dim(inputs.at("positive"), 0);
  const WanDit dit(network, reader);
  const auto decoder = make_video_decoder(config.at("vae").dump(), name, *source);
  Context ctx{backend, compute};
  Engine engine(backend, {});
  Request request;
  request.sampler = sampler_config(config.at("sampler"));
  request.guidance = request.guidance_low = config.at("guidance").get<double>();
  PromptEmbeddings prompts;
  const auto valid = [](const GoldenJson& text) {
    const Tensor all = input(text);
    const int64_t rows = text.at("valid_rows"), dim = all.view().shape[1];
    LACUNA_CHECK(rows > 0 && rows <= all.view().shape[0], "goldens: valid_rows {}", rows);
    Tensor t(DType::f32, {rows, dim});
    std::memcpy(t.as<float>(), all.as<float>(), static_cast<size_t>(rows * dim) * sizeof(float));
    return t;
  };
  prompts.positive.tokens = valid(inputs.at("positive"));
  prompts.negative.tokens = valid(inputs.at("negative"));
  SamplingState state;
  state.latents = input(inputs.at("noise"));
  sample(ctx, engine,
         {[&](int) -> const VideoTransformer& { return dit; }, 1, WanArchitecture(network).sizes(),
          request, prompts},
         state, nullptr);
  Outputs outputs;
  outputs.emplace_back("video", decode_video(*decoder, ctx, state.latents));
  outputs.emplace_back("latents", std::move(state.latents));
  return outputs;
}

struct Module {
  std::string_view name;
  Outputs (*run)(const GoldenJson&, Backend&, DType);
  Bf16Limit bf16;
};

constexpr Module kModules[] = {
    {"wan_dit", run_wan_dit, kDitLimit},
    {"mochi_dit", run_mochi_dit, kDitLimit},
    {"hunyuan_dit", run_hunyuan_dit, kDitLimit},
    {"vae", run_vae, kVaeLimit},
    {"umt5", run_umt5, kTextLimit},
    {"clip_vision", run_clip_vision, kClipLimit},
    {"sampler", run_sampler, kNoDtype},
    {"wan_pipeline", run_wan_pipeline, kNoDtype},
};

std::string module_names() {
  std::string names;
  for (const Module& m : kModules) names += fmt::format("{}{}", names.empty() ? "" : ", ", m.name);
  return names;
}

const Module& find_module(const std::string& name) {
  for (const Module& m : kModules) {
    if (name == m.name) return m;
  }
  fail("goldens: module {}, expected {}", name, module_names());
}

// The numbers of output `part` of a case: its own `expect`, a tap, or a named part of `expect`.
const GoldenJson& expected(const GoldenJson& spec, const std::string& part) {
  if (part.empty()) return spec.at("expect");
  if (spec.contains("taps") && spec.at("taps").contains(part)) return spec.at("taps").at(part);
  return spec.at("expect").at(part);
}

void verify_case(const GoldenJson& spec, Backend& backend, DType compute,
                 const std::function<void(const VerifyResult&)>& report) {
  const Module& module = find_module(spec.at("module"));
  const std::string name = spec.at("name");
  const Outputs reference = module.run(spec, backend, DType::f32);
  if (compute == DType::f32 || module.bf16.rel_l2 == 0.0) {
    const double relative =
        spec.contains("tolerance") ? spec.at("tolerance").at("relative").get<double>() : 0.0;
    for (const auto& [part, tensor] : reference) {
      report(compare_numbers(part.empty() ? name : name + " " + part, expected(spec, part), tensor,
                             relative));
    }
    return;
  }
  const Outputs rounded = module.run(spec, backend, compute);
  report(compare_runs(name, rounded[0].second, reference[0].second, module.bf16));
}

}  // namespace

std::vector<GoldenFile> shipped_goldens() {
  return {{"wan.json", wan_goldens()},
          {"joint.json", joint_goldens()},
          {"image.json", image_goldens()}};
}

void verify_goldens(std::string_view json, std::string_view who, Backend& backend, DType compute,
                    const std::function<void(const VerifyResult&)>& report) {
  try {
    const GoldenJson file = GoldenJson::parse(json);
    LACUNA_CHECK(file.at("schema") == "lacuna-goldens" && file.at("version") == 1,
                 "goldens: {} is schema {} version {}, expected lacuna-goldens version 1", who,
                 file.at("schema").dump(), file.at("version").dump());
    for (const GoldenJson& spec : file.at("cases")) verify_case(spec, backend, compute, report);
  } catch (const GoldenJson::exception& error) {
    fail("goldens: {}: {}", who, error.what());
  }
}

}  // namespace lacuna
