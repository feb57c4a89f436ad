// Small kernels whose machine code tests/bench/test_sass.py executes. Each computes r from x for every thread.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cstdint>
struct Args {
  const uint32_t* in;
  uint32_t* out;
  uint32_t n, k;
};
#define AT                                                               \
  const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x, x = a.in[i]; \
  uint32_t r = 0;
#define KERNEL(name, ...) \
  extern "C" __global__ void name(const Args a) { AT __VA_ARGS__ a.out[i] = r; }
KERNEL(divides, r = x / a.k + 3 * (x % (a.k + 5)); r += (uint32_t)((int)x / -(int)a.k);)
KERNEL(divides_64, const uint64_t y = (uint64_t)x * 0x100000007ull;
       r = (uint32_t)(y / (a.k * 77ull)) ^ (uint32_t)(y % (a.n + 1ull));)
KERNEL(shifts, const uint64_t y = ((uint64_t)x << 32 | ~x) >> (a.k % 40); r = (uint32_t)y ^ (uint32_t)(y >> 32);
       r += (uint32_t)((int64_t)((uint64_t)x << 32) >> (a.k % 37)) + __funnelshift_l(x, ~x, a.k);)
KERNEL(compares, const int64_t y = (int64_t)((uint64_t)x << 32 | a.n) >> 3, z = (int64_t)a.k * 65537 * 65537;
       r = (y < z) | (y <= z) << 1 | ((uint64_t)y > (uint64_t)z) << 2 | (y == z) << 3 |
           (max((int)x, (int)a.k) == (int)x) << 4 | (min(x, a.k) & 0xff) << 8;)
KERNEL(
    selects, switch (x % 7) {
      case 0: r = x * 3; break;
      case 1: r = ~x; break;
      case 2: r = x >> 3; break;
      case 3: r = x ^ 77; break;
      case 4: r = __popc(x); break;
      case 5: r = x * x; break;
      default: r = 5;
    })
KERNEL(
    diverges, for (uint32_t k = 0; k < x % 13; ++k) {
      if ((x >> k) & 1)
        r += k * k;
      else if (k % 3 == 0)
        continue;
      else
        r ^= k;
      if (r > 40) break;
    } r += __shfl_xor_sync(~0u, r, 5) + __shfl_down_sync(~0u, r, 3, 16) + __ballot_sync(~0u, x & 1);)
KERNEL(floats, const float f = __uint_as_float((x & 0x7fffff) | 0x3f800000u),
       g = __uint_as_float((x >> 9) | 0x40000000u);
       r = __float_as_uint(f / g + sqrtf(f) * fminf(f, g) - fmaxf(f, 1.5f) + (f > g ? 1.f : -2.f) + fabsf(f - g));)
KERNEL(converts, const float f = (float)x * 1e-3f; const __half h = __float2half_rn(f);
       const __nv_bfloat16 b = __float2bfloat16_rn(f);
       r = (uint32_t)__half_as_ushort(h) << 16 | __bfloat16_as_ushort(b);
       r += (uint32_t)f + (uint32_t)(int)(f - 9.f) + __float_as_uint(__half2float(h)) +
            __float_as_uint((float)(uint64_t(x) << 20));)
KERNEL(bytes, const uint8_t* p = (const uint8_t*)a.in; r = p[i] | p[i ^ 3] << 8;
       ((uint8_t*)a.out)[4 * 64 + i] = (uint8_t)(r ^ 9);)
KERNEL(
    shared, extern __shared__ uint32_t s[]; s[threadIdx.x] = x; __syncthreads(); for (int k = 0; k < 4; ++k) {
      r += s[(threadIdx.x + 17 * k) % blockDim.x];
      __syncthreads();
      s[threadIdx.x] = r;
      __syncthreads();
    })
KERNEL(counts, r = (x & 1) ? atomicAdd((int*)a.out + 64 + i / 32, 1) : 7;)
KERNEL(strided, extern __shared__ uint32_t s[]; s[threadIdx.x * a.k] = x; __syncthreads(); r = s[threadIdx.x * a.k];)
KERNEL(beyond, extern __shared__ uint32_t s[]; s[threadIdx.x + a.k] = x; __syncthreads(); r = s[threadIdx.x];)
KERNEL(races_read, extern __shared__ uint32_t s[]; s[threadIdx.x] = x; __syncwarp();
       r = s[(threadIdx.x + a.k) % blockDim.x];)
KERNEL(races_write, extern __shared__ uint32_t s[]; s[threadIdx.x] = x; __syncthreads();
       r = s[(threadIdx.x + a.k) % blockDim.x]; __syncwarp(); s[threadIdx.x] = r; __syncthreads();
       r += s[threadIdx.x ^ 1];)
KERNEL(chain, for (uint32_t k = 0; k < a.k; ++k) r = a.in[r];)
KERNEL(gathers, r = a.in[i * a.k];)
