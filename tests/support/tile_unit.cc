// SPDX-License-Identifier: Apache-2.0
#include "tests/support/tile_unit.h"

#include <ucontext.h>

#include <array>
#include <csignal>
#include <cstdint>
#include <cstring>
#include <optional>

namespace lacuna::test {
namespace {

constexpr int kTiles = 8, kMaxRows = 16, kMaxBytes = 64;

// XTILECFG in memory.
struct TileConfig {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};
static_assert(sizeof(TileConfig) == 64);

struct TileState {
  TileConfig config{};  // palette 0: not configured
  alignas(64) uint8_t data[kTiles][kMaxRows][kMaxBytes];
  void poison() { std::memset(data, 0xff, sizeof data); }  // NaN as f32 and as bf16
};
thread_local TileState tiles;

// A VEX-encoded instruction of opcode map 0F38 with its ModRM byte and memory operand.
struct Instruction {
  uint8_t opcode = 0, prefix = 0;  // prefix: 0 none, 1 66, 2 F3, 3 F2
  bool memory = false, sib = false;
  int reg = 0, rm = 0, vvvv = 0;  // tile numbers; rm of a register operand
  uint8_t* base = nullptr;        // of a memory operand, with its displacement
  int64_t index = 0;              // scaled: the stride of tile loads and stores
  int length = 0;
};

constexpr std::array<int, 16> kRegisters = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP,
                                            REG_RSI, REG_RDI, REG_R8,  REG_R9,  REG_R10, REG_R11,
                                            REG_R12, REG_R13, REG_R14, REG_R15};

template <typename T>
T read(const uint8_t* from) {
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

// The memory operand behind a ModRM byte at code[4].
void decode_memory(const uint8_t* code, const greg_t* regs, bool wide_index, bool wide_base,
                   Instruction& in) {
  const uint8_t modrm = code[4], mod = modrm >> 6;
  int base = modrm & 7, at = 5;
  in.memory = true;
  int64_t address = 0;
  if (base == 4) {
    in.sib = true;
    const uint8_t sib = code[at++];
    const int index = (sib >> 3 & 7) + (wide_index ? 8 : 0);
    base = sib & 7;
    if (index != 4) in.index = regs[kRegisters[static_cast<size_t>(index)]] << (sib >> 6);
  }
  const bool rip_relative = mod == 0 && (modrm & 7) == 5;
  const bool no_base = mod == 0 && (modrm & 7) == 4 && base == 5;
  if (!rip_relative && !no_base)
    address = regs[kRegisters[static_cast<size_t>(base + (wide_base ? 8 : 0))]];
  if (mod == 1) {
    address += read<int8_t>(code + at);
    at += 1;
  } else if (mod == 2 || rip_relative || no_base) {
    address += read<int32_t>(code + at);
    at += 4;
  }
  in.length = at;
  if (rip_relative) address += reinterpret_cast<int64_t>(code) + at;
  in.base = reinterpret_cast<uint8_t*>(address);
}

std::optional<Instruction> decode(const uint8_t* code, const greg_t* regs) {
  // Three-byte VEX, map 0F38, W 0, 128 bits, no more than 8 registers: all of AMX.
  if (code[0] != 0xc4 || (code[1] & 0x9f) != 0x82 || (code[2] & 0x84) != 0) return {};
  Instruction in;
  in.opcode = code[3];
  in.prefix = code[2] & 3;
  in.vvvv = ~code[2] >> 3 & 15;
  in.reg = code[4] >> 3 & 7;
  in.rm = code[4] & 7;
  if ((code[4] & 0xc0) == 0xc0) {
    in.length = 5;
  } else {
    decode_memory(code, regs, (code[1] & 0x40) == 0, (code[1] & 0x20) == 0, in);
  }
  return in;
}

bool valid(const TileConfig& config) {
  if (config.palette != 1) return false;
  for (const uint8_t byte : config.reserved)
    if (byte != 0) return false;
  for (int t = 0; t < 16; ++t) {
    if (config.row_bytes[t] > (t < kTiles ? kMaxBytes : 0)) return false;
    if (config.rows[t] > (t < kTiles ? kMaxRows : 0)) return false;
    if ((config.row_bytes[t] == 0) != (config.rows[t] == 0)) return false;
  }
  return true;
}

bool usable(int tile) {
  return tile < kTiles && tiles.config.palette == 1 && tiles.config.rows[tile] != 0;
}

bool configure(const Instruction& in) {
  const auto config = read<TileConfig>(in.base);
  if (config.palette != 0 && !valid(config)) return false;
  tiles.config = config;
  tiles.poison();
  return true;
}

// Bytes and rows past the tile's own become zero, in registers and not in memory.
bool load(const Instruction& in) {
  if (!usable(in.reg) || !in.sib) return false;
  auto& tile = tiles.data[in.reg];
  std::memset(tile, 0, sizeof tile);
  for (int row = 0; row < tiles.config.rows[in.reg]; ++row)
    std::memcpy(tile[row], in.base + row * in.index, tiles.config.row_bytes[in.reg]);
  return true;
}

bool store(const Instruction& in) {
  if (!usable(in.reg) || !in.sib) return false;
  for (int row = 0; row < tiles.config.rows[in.reg]; ++row)
    std::memcpy(in.base + row * in.index, tiles.data[in.reg][row], tiles.config.row_bytes[in.reg]);
  return true;
}

bool zero(const Instruction& in) {
  if (!usable(in.reg)) return false;
  std::memset(tiles.data[in.reg], 0, sizeof tiles.data[in.reg]);
  return true;
}

// Denormals count as zero, of inputs and of results.
float flushed(uint32_t bits) {
  if ((bits & 0x7f800000u) == 0) bits &= 0x80000000u;
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// c[m][n] += sum over k of a[m][k].even b[k][n].even + a[m][k].odd b[k][n].odd
bool dot(const Instruction& in) {
  const int c = in.reg, a = in.rm, b = in.vvvv;
  if (!usable(a) || !usable(b) || !usable(c) || a == b || a == c || b == c) return false;
  const auto& bytes = tiles.config.row_bytes;
  const auto& rows = tiles.config.rows;
  if (bytes[a] % 4 != 0 || bytes[b] % 4 != 0 || bytes[c] % 4 != 0) return false;
  if (rows[c] != rows[a] || bytes[c] != bytes[b] || bytes[a] / 4 != rows[b]) return false;
  float even[kMaxRows][16], odd[kMaxRows][16];
  for (int k = 0; k < rows[b]; ++k)
    for (int n = 0; n < 16; ++n) {
      const auto pair = read<uint32_t>(tiles.data[b][k] + 4 * n);
      even[k][n] = flushed(pair << 16);
      odd[k][n] = flushed(pair & 0xffff0000u);
    }
  for (int m = 0; m < rows[c]; ++m) {
    float sums[16];
    std::memcpy(sums, tiles.data[c][m], sizeof sums);
    for (int k = 0; k < rows[b]; ++k) {
      const auto pair = read<uint32_t>(tiles.data[a][m] + 4 * k);
      const float x = flushed(pair << 16), y = flushed(pair & 0xffff0000u);
      for (int n = 0; n < 16; ++n) sums[n] += x * even[k][n] + y * odd[k][n];
    }
    for (int n = 0; n < bytes[c] / 4; ++n) {
      sums[n] = flushed(read<uint32_t>(reinterpret_cast<const uint8_t*>(&sums[n])));
      std::memcpy(tiles.data[c][m] + 4 * n, &sums[n], sizeof(float));
    }
  }
  return true;
}

bool carry_out(const Instruction& in) {
  if (in.opcode != 0x5c && in.vvvv != 0) return false;
  switch (in.opcode << 8 | in.prefix << 4 | (in.memory ? 1 : 0)) {
    case 0x4901:
      return configure(in);
    case 0x4900:
      tiles.config = {};
      tiles.poison();
      return true;
    case 0x4930:
      return zero(in);
    case 0x4b31:
      return load(in);
    case 0x4b21:
      return store(in);
    case 0x5c20:
      return dot(in);
    default:
      return false;
  }
}

void on_invalid_opcode(int, siginfo_t*, void* context) {
  greg_t* regs = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
  const auto in = decode(reinterpret_cast<const uint8_t*>(regs[REG_RIP]), regs);
  if (in && carry_out(*in)) {
    regs[REG_RIP] += in->length;
  } else {
    std::signal(SIGILL, SIG_DFL);  // comes again, and ends the process
  }
}

}  // namespace

cpu::Isa with_tile_unit(cpu::Isa isa) {
  if (isa != cpu::Isa::avx512_bf16 || isa != cpu::machine_isa()) return isa;
  struct sigaction action {};
  action.sa_sigaction = on_invalid_opcode;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGILL, &action, nullptr);
  return cpu::Isa::amx;
}

const char* amx_name() {
  return cpu::machine_isa() == cpu::Isa::amx ? "amx" : "amx_in_software";
}

}  // namespace lacuna::test
