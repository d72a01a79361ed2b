// Vectors of float64 that hold float32 values, so that their products are exact.
#pragma once

#include "products.h"

namespace autoglm {

using NativeDoubles = double __attribute__((vector_size(kNativeBytes)));
using HalfNativeFloats = float __attribute__((vector_size(kNativeBytes / 2)));
constexpr int kDoubleLanes = kNativeBytes / sizeof(double);

// a * b + sum; the product of two float32 values is exact in float64.
AUTOGLM_INLINE NativeDoubles add_exact_product(NativeDoubles sum, NativeDoubles a, NativeDoubles b) {
#if defined(__AVX512F__)
  return (NativeDoubles)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)sum);
#elif defined(__FMA__)
  return (NativeDoubles)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)sum);
#else
  return sum + a * b;
#endif
}

AUTOGLM_INLINE NativeDoubles subtract_exact_product(NativeDoubles sum, NativeDoubles a, NativeDoubles b) {
#if defined(__AVX512F__)
  return (NativeDoubles)_mm512_fnmadd_pd((__m512d)a, (__m512d)b, (__m512d)sum);
#elif defined(__FMA__)
  return (NativeDoubles)_mm256_fnmadd_pd((__m256d)a, (__m256d)b, (__m256d)sum);
#else
  return sum - a * b;
#endif
}

// Subtracting 0, unlike adding it, changes no value, and costs nothing.
AUTOGLM_INLINE NativeDoubles broadcast(double value) { return value - NativeDoubles{}; }

AUTOGLM_INLINE NativeDoubles doubles(const float* source) {
  return __builtin_convertvector(load<HalfNativeFloats>(source), NativeDoubles);
}

}  // namespace autoglm
