// SPDX-License-Identifier: Apache-2.0
#include "python/mask.h"

#include <fmt/format.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <vector>

#include "lacuna/core/error.h"
#include "python/bindings.h"

namespace lacuna::python {

namespace nb = nanobind;

namespace {

using Bits = nb::ndarray<const bool, nb::ndim<3>, nb::device::cpu>;

// A numpy array that owns its values.
template <typename T>
nb::object numpy_array(std::vector<T> values, std::initializer_list<size_t> shape) {
  auto* kept = new std::vector<T>(std::move(values));
  const nb::capsule owner(kept, [](void* p) noexcept { delete static_cast<std::vector<T>*>(p); });
  return nb::cast(nb::ndarray<nb::numpy, T>(kept->data(), shape, owner));
}

Mask from_numpy(const Bits& bits, int64_t q_len, int64_t k_len, int32_t block_q, int32_t block_k) {
  Mask mask;
  Selection& s = mask.selection;
  s.q_layout = BlockLayout::uniform(q_len, block_q);
  s.k_layout = BlockLayout::uniform(k_len, block_k);
  const auto heads = static_cast<int64_t>(bits.shape(0));
  const int32_t nq = s.q_layout.num_blocks, nk = s.k_layout.num_blocks;
  LACUNA_CHECK(heads > 0 && nq > 0 && nk > 0, "mask: {} heads, {}x{} blocks, expected 1 or more",
               heads, nq, nk);
  LACUNA_CHECK(
      static_cast<int64_t>(bits.shape(1)) == nq && static_cast<int64_t>(bits.shape(2)) == nk,
      "mask: {}x{} blocks per head, expected {}x{} for {} queries and {} keys in blocks of "
      "{} and {}",
      bits.shape(1), bits.shape(2), nq, nk, q_len, k_len, block_q, block_k);
  s.mask = BlockMask(heads, nq, nk);
  const auto bit = bits.view();
  for (int64_t h = 0; h < heads; ++h)
    for (int32_t i = 0; i < nq; ++i)
      for (int32_t j = 0; j < nk; ++j)
        if (bit(h, i, j)) s.mask.set(h, i, j);
  return mask;
}

nb::ndarray<nb::numpy, bool, nb::ndim<3>> to_numpy(const Mask& mask) {
  const BlockMask& m = mask.selection.mask;
  const auto heads = static_cast<size_t>(m.num_heads());
  const auto nq = static_cast<size_t>(m.num_q_blocks()), nk = static_cast<size_t>(m.num_k_blocks());
  auto* bits = new bool[heads * nq * nk];
  const nb::capsule owner(bits, [](void* p) noexcept { delete[] static_cast<bool*>(p); });
  bool* bit = bits;
  for (int64_t h = 0; h < m.num_heads(); ++h)
    for (int32_t i = 0; i < m.num_q_blocks(); ++i)
      for (int32_t j = 0; j < m.num_k_blocks(); ++j) *bit++ = m.get(h, i, j);
  return {bits, {heads, nq, nk}, owner};
}

nb::list csr(const Mask& mask) {
  const BlockMask& m = mask.selection.mask;
  const BlockIndex index = compact_blocks(m, VisitOrder::ascending);
  nb::list heads;
  for (int64_t h = 0; h < m.num_heads(); ++h) {
    const int64_t* first = index.row_begin.data() + h * m.num_q_blocks();
    std::vector<int64_t> indptr(first, first + m.num_q_blocks() + 1);
    std::vector<int32_t> cols(index.cols.begin() + indptr.front(),
                              index.cols.begin() + indptr.back());
    for (int64_t& begin : indptr) begin -= *first;
    const size_t rows = indptr.size(), kept = cols.size();
    heads.append(nb::make_tuple(numpy_array(std::move(indptr), {rows}),
                                numpy_array(std::move(cols), {kept})));
  }
  return heads;
}

nb::object order_array(const TokenOrder& order) {
  if (order.empty()) return nb::none();
  return numpy_array(order.order,
                     {static_cast<size_t>(order.num_heads), static_cast<size_t>(order.seq_len)});
}

std::optional<int32_t> block_of(const BlockLayout& layout) {
  return layout.offsets.empty() ? std::optional(layout.block) : std::nullopt;
}

// For sets: both masks must speak of the same blocks of the same tokens.
void check_same(const Mask& a, const Mask& b) {
  const auto same = [](const BlockLayout& x, const BlockLayout& y) {
    return x.seq_len == y.seq_len && x.block == y.block && x.offsets.empty() && y.offsets.empty();
  };
  LACUNA_CHECK(!a.moves_tokens() && !b.moves_tokens(),
               "mask: a mask in another token order, expected two in raster order");
  LACUNA_CHECK(a.selection.mask.num_heads() == b.selection.mask.num_heads() && same(a.q(), b.q()) &&
                   same(a.k(), b.k()),
               "mask: of other heads, lengths or block sizes, expected those of the first");
}

Mask united(const Mask& a, const Mask& b) {
  check_same(a, b);
  Mask both = a;
  both.selection.mask |= b.selection.mask;
  return both;
}

Mask intersected(const Mask& a, const Mask& b) {
  check_same(a, b);
  Mask both = a;
  both.selection.mask &= b.selection.mask;
  return both;
}

double density(const Mask& mask) {
  return mask.selection.mask.density(mask.q(), mask.k());
}

std::string repr(const Mask& mask) {
  const auto blocks = [](const BlockLayout& layout) {
    return layout.offsets.empty() ? fmt::format("blocks of {}", layout.block)
                                  : fmt::format("{} uneven blocks", layout.num_blocks);
  };
  return fmt::format("lacuna.Mask({} heads, {} queries in {}, {} keys in {}, density {:.3f}{})",
                     mask.selection.mask.num_heads(), mask.q().seq_len, blocks(mask.q()),
                     mask.k().seq_len, blocks(mask.k()), density(mask),
                     mask.moves_tokens() ? ", tokens moved" : "");
}

}  // namespace

void bind_mask(nb::module_& m) {
  nb::class_<Mask>(m, "Mask",
                   "Which (query block, key block) pairs attention computes, per head: made by\n"
                   "lacuna.select or Mask.from_numpy, taken by lacuna.attention.")
      .def_static(
          "from_numpy", &from_numpy, nb::arg("bits").noconvert(), nb::arg("q_len"),
          nb::arg("k_len"), nb::arg("block_q"), nb::arg("block_k"),
          "Mask of bits, bool [H, ceil(q_len / block_q), ceil(k_len / block_k)], of any\n"
          "strides, True where attention computes. A query block without a key block gives\n"
          "rows of zeros with LSE -inf.")
      .def("to_numpy", &to_numpy, "bool [H, query blocks, key blocks].")
      .def("csr", &csr,
           nb::sig("def csr(self) -> list[tuple[numpy.typing.NDArray[numpy.int64], "
                   "numpy.typing.NDArray[numpy.int32]]]"),
           "Kept key blocks per head: a list of (indptr int64 [query blocks + 1], indices int32).")
      .def_prop_ro("num_heads", [](const Mask& x) { return x.selection.mask.num_heads(); })
      .def_prop_ro("q_len", [](const Mask& x) { return x.q().seq_len; })
      .def_prop_ro("k_len", [](const Mask& x) { return x.k().seq_len; })
      .def_prop_ro(
          "block_q", [](const Mask& x) { return block_of(x.q()); },
          "Queries per block; None where a method cut uneven blocks.")
      .def_prop_ro(
          "block_k", [](const Mask& x) { return block_of(x.k()); },
          "Keys per block; None where a method cut uneven blocks.")
      .def_prop_ro("density", &density, "Computed (query, key) pairs / all pairs, mean over heads.")
      .def_prop_ro("moves_tokens", &Mask::moves_tokens,
                   "True where the blocks are of tokens in another order than raster: attention\n"
                   "moves them and puts the rows back.")
      .def_prop_ro(
          "q_order", [](const Mask& x) { return order_array(x.selection.q_order); },
          "int32 [H or 1, q_len]: raster token at each place, or None for raster order.")
      .def_prop_ro(
          "k_order", [](const Mask& x) { return order_array(x.selection.k_order); },
          "int32 [H or 1, k_len]: raster token at each place, or None for raster order.")
      .def("__or__", &united, "Blocks of either.")
      .def("__and__", &intersected, "Blocks of both.")
      .def("__repr__", &repr);
}

}  // namespace lacuna::python
