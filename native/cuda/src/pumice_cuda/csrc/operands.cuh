// Operands of products and convolutions: what a source is compiled for, macros of which these are the defaults.
#pragma once

#include "strips.cuh"

enum class Element { s8, u8, f16, bf16, tf32, f32 };

#ifndef USE_ELEMENT
#define USE_ELEMENT s8
#define USE_OUTPUT bf16
#define USE_ACTIVATION none
#define USE_RESIDUAL false
#endif
constexpr Element ELEMENT = Element::USE_ELEMENT;
constexpr Output OUTPUT = Output::USE_OUTPUT;
constexpr Activation ACTIVATION = Activation::USE_ACTIVATION;
constexpr bool RESIDUAL = USE_RESIDUAL, INTEGER = ELEMENT == Element::s8 || ELEMENT == Element::u8;

__device__ __forceinline__ u32 shared_address(const void* pointer) { return (u32)__cvta_generic_to_shared(pointer); }
