// The kernel tables: one row per kernel, best tiers last.
#include "kernel.h"
#include "scalar.h"

// Tiers for processors of other architectures are not built.
#if defined(__x86_64__)
#include "amx.h"
#include "avx2.h"
#include "avx512.h"
#include "avx512vnni.h"
#define CS_X86(...) __VA_ARGS__
#else
#define CS_X86(...)
#endif

namespace cs {

template <>
const std::vector<Kernel<InputSpec>>& kernels() {
    static const std::vector<Kernel<InputSpec>> table = {
        {"input", Tier::scalar, Mode::none, scalar::input},
        CS_X86({"input_vector", Tier::avx2, Mode::none, avx2::input},
               {"input_vector", Tier::avx512, Mode::none, avx512::input})};
    return table;
}

template <>
const std::vector<Kernel<LayerSpec>>& kernels() {
    static const std::vector<Kernel<LayerSpec>> table = {
        {"dense", Tier::scalar, Mode::dense, scalar::layer_dense},
        {"grouped", Tier::scalar, Mode::dense, scalar::layer_grouped},
        {"dense_select", Tier::scalar, Mode::sparse_sparse, scalar::layer_dense_select},
        {"packed", Tier::scalar, Mode::sparse_dense, scalar::layer_sparse_dense},
        {"packed_select", Tier::scalar, Mode::sparse_sparse, scalar::layer_sparse_sparse},
        CS_X86({"conv_lanes8", Tier::avx2, Mode::dense, avx2::conv_dense},
               {"conv_packed_lanes8", Tier::avx2, Mode::sparse_dense, avx2::conv_sparse_dense},
               {"conv_packed_positions8", Tier::avx2, Mode::sparse_dense, avx2::conv_positions},
               {"conv_lanes8_select", Tier::avx2, Mode::sparse_sparse, avx2::conv_sparse_sparse},
               {"conv_lanes8_winners", Tier::avx2, Mode::sparse_sparse, avx2::conv_winners},
               {"depthwise_lanes8", Tier::avx2, Mode::dense, avx2::depthwise},
               {"linear_lanes8", Tier::avx2, Mode::dense, avx2::linear_dense},
               {"linear_lanes8_select", Tier::avx2, Mode::sparse_sparse, avx2::linear_dense_select},
               {"linear_packed_lanes8", Tier::avx2, Mode::sparse_dense, avx2::linear_sparse_dense},
               {"linear_packed_lanes8_select", Tier::avx2, Mode::sparse_sparse, avx2::linear_sparse_sparse},
               {"linear_packed_masks8", Tier::avx2, Mode::sparse_sparse, avx2::linear_masks},
               {"conv_lanes16", Tier::avx512, Mode::dense, avx512::conv_dense},
               {"conv_packed_lanes16", Tier::avx512, Mode::sparse_dense, avx512::conv_sparse_dense},
               {"conv_packed_positions16", Tier::avx512, Mode::sparse_dense, avx512::conv_positions},
               {"conv_lanes16_select", Tier::avx512, Mode::sparse_sparse, avx512::conv_sparse_sparse},
               {"conv_lanes16_winners", Tier::avx512, Mode::sparse_sparse, avx512::conv_winners},
               {"depthwise_lanes16", Tier::avx512, Mode::dense, avx512::depthwise},
               {"linear_lanes16", Tier::avx512, Mode::dense, avx512::linear_dense},
               {"linear_lanes16_select", Tier::avx512, Mode::sparse_sparse, avx512::linear_dense_select},
               {"linear_packed_lanes16", Tier::avx512, Mode::sparse_dense, avx512::linear_sparse_dense},
               {"linear_packed_lanes16_select", Tier::avx512, Mode::sparse_sparse, avx512::linear_sparse_sparse},
               {"linear_packed_masks16", Tier::avx512, Mode::sparse_sparse, avx512::linear_masks},
               {"conv_dot", Tier::avx512vnni, Mode::dense, avx512vnni::conv_dense},
               {"conv_packed_dot", Tier::avx512vnni, Mode::sparse_dense, avx512vnni::conv_sparse_dense},
               {"depthwise_dot", Tier::avx512vnni, Mode::dense, avx512vnni::depthwise},
               {"linear_dot", Tier::avx512vnni, Mode::dense, avx512vnni::linear_dense},
               {"linear_dot_select", Tier::avx512vnni, Mode::sparse_sparse, avx512vnni::linear_dense_select},
               {"linear_packed_dot", Tier::avx512vnni, Mode::sparse_dense, avx512vnni::linear_sparse_dense},
               {"linear_packed_dot_select", Tier::avx512vnni, Mode::sparse_sparse, avx512vnni::linear_sparse_sparse},
               {"linear_packed_masks", Tier::avx512vnni, Mode::sparse_sparse, avx512vnni::linear_masks},
               {"conv_tiles", Tier::amx, Mode::dense, amx::conv_dense},
               {"conv_strips", Tier::amx, Mode::dense, amx::conv_strips},
               {"conv_packed_tiles", Tier::amx, Mode::sparse_dense, amx::conv_sparse_dense})};
    return table;
}

template <>
const std::vector<Kernel<KwtaSpec>>& kernels() {
    static const std::vector<Kernel<KwtaSpec>> table = {
        {"kwta", Tier::scalar, Mode::none, scalar::kwta},
        CS_X86({"kwta_lanes8", Tier::avx2, Mode::none, avx2::kwta},
               {"kwta_lanes16", Tier::avx512, Mode::none, avx512::kwta},
               {"kwta_bits", Tier::avx512vnni, Mode::none, avx512vnni::kwta})};
    return table;
}

template <>
const std::vector<Kernel<ReluSpec>>& kernels() {
    static const std::vector<Kernel<ReluSpec>> table = {
        {"relu", Tier::scalar, Mode::none, scalar::relu},
        CS_X86({"relu_vector", Tier::avx512, Mode::none, avx512::relu})};
    return table;
}

template <>
const std::vector<Kernel<ClipSpec>>& kernels() {
    static const std::vector<Kernel<ClipSpec>> table = {
        {"clip", Tier::scalar, Mode::none, scalar::clip},
        CS_X86({"clip_vector", Tier::avx512, Mode::none, avx512::clip})};
    return table;
}

template <>
const std::vector<Kernel<LookupSpec>>& kernels() {
    static const std::vector<Kernel<LookupSpec>> table = {
        {"lookup", Tier::scalar, Mode::none, scalar::lookup},
        CS_X86({"lookup_vector", Tier::avx2, Mode::none, avx2::lookup})};
    return table;
}

template <>
const std::vector<Kernel<ActivationSpec>>& kernels() {
    static const std::vector<Kernel<ActivationSpec>> table = {
        {"activation", Tier::scalar, Mode::none, scalar::activation}};
    return table;
}

template <>
const std::vector<Kernel<AffineSpec>>& kernels() {
    static const std::vector<Kernel<AffineSpec>> table = {
        {"affine", Tier::scalar, Mode::none, scalar::affine},
        CS_X86({"affine_vector", Tier::avx512, Mode::none, avx512::affine})};
    return table;
}

template <>
const std::vector<Kernel<PoolSpec>>& kernels() {
    static const std::vector<Kernel<PoolSpec>> table = {
        {"pool", Tier::scalar, Mode::none, scalar::pool},
        CS_X86({"pool_vector", Tier::avx2, Mode::none, avx2::pool},
               {"pool_vector", Tier::avx512, Mode::none, avx512::pool})};
    return table;
}

template <>
const std::vector<Kernel<AddSpec>>& kernels() {
    static const std::vector<Kernel<AddSpec>> table = {{"add", Tier::scalar, Mode::none, scalar::add},
                                                       CS_X86({"add_vector", Tier::avx2, Mode::none, avx2::add},
                                                              {"add_vector", Tier::avx512, Mode::none, avx512::add})};
    return table;
}

template <>
const std::vector<Kernel<ProductSpec>>& kernels() {
    static const std::vector<Kernel<ProductSpec>> table = {
        {"product", Tier::scalar, Mode::none, scalar::product},
        CS_X86({"product_vector", Tier::avx2, Mode::none, avx2::product})};
    return table;
}

template <>
const std::vector<Kernel<ConcatSpec>>& kernels() {
    static const std::vector<Kernel<ConcatSpec>> table = {
        {"concat", Tier::scalar, Mode::none, scalar::concat},
        CS_X86({"concat_vector", Tier::avx2, Mode::none, avx2::concat},
               {"concat_vector", Tier::avx512, Mode::none, avx512::concat})};
    return table;
}

template <>
const std::vector<Kernel<DequantizeSpec>>& kernels() {
    static const std::vector<Kernel<DequantizeSpec>> table = {
        {"dequantize", Tier::scalar, Mode::none, scalar::dequantize},
        CS_X86({"dequantize_vector", Tier::avx512, Mode::none, avx512::dequantize})};
    return table;
}

template <>
const std::vector<Kernel<QuantizeSpec>>& kernels() {
    static const std::vector<Kernel<QuantizeSpec>> table = {
        {"quantize", Tier::scalar, Mode::none, scalar::quantize},
        CS_X86({"quantize_vector", Tier::avx2, Mode::none, avx2::quantize},
               {"quantize_vector", Tier::avx512, Mode::none, avx512::quantize})};
    return table;
}

template <>
const std::vector<Kernel<SoftmaxSpec>>& kernels() {
    static const std::vector<Kernel<SoftmaxSpec>> table = {{"softmax", Tier::scalar, Mode::none, scalar::softmax}};
    return table;
}

template <>
const std::vector<Kernel<GeluSpec>>& kernels() {
    static const std::vector<Kernel<GeluSpec>> table = {{"gelu", Tier::scalar, Mode::none, scalar::gelu},
                                                        CS_X86({"gelu_vector", Tier::avx2, Mode::none, avx2::gelu})};
    return table;
}

template <>
const std::vector<Kernel<LayerNormSpec>>& kernels() {
    static const std::vector<Kernel<LayerNormSpec>> table = {
        {"layer_norm", Tier::scalar, Mode::none, scalar::layer_norm}};
    return table;
}

template <>
const std::vector<Kernel<LocalResponseNormSpec>>& kernels() {
    static const std::vector<Kernel<LocalResponseNormSpec>> table = {
        {"local_response_norm", Tier::scalar, Mode::none, scalar::local_response_norm},
        CS_X86({"local_response_norm_vector", Tier::avx2, Mode::none, avx2::local_response_norm})};
    return table;
}

template <>
const std::vector<Kernel<MatMulSpec>>& kernels() {
    static const std::vector<Kernel<MatMulSpec>> table = {
        {"matmul", Tier::scalar, Mode::none, scalar::matmul},
        CS_X86({"matmul_vector", Tier::avx2, Mode::none, avx2::matmul})};
    return table;
}

template <>
const std::vector<Kernel<TransposeSpec>>& kernels() {
    static const std::vector<Kernel<TransposeSpec>> table = {
        {"transpose", Tier::scalar, Mode::none, scalar::transpose}};
    return table;
}

}  // namespace cs
