"""The tensor operations that `.pt2` programs of other people may contain. All others are refused by name.

Three lists of `name.overload` in torch.ops.aten:

* CORE: operations that torch tags as core ATen operations, except backward operations and those that return uninitialised memory,
  change the size of a tensor, or have outputs whose size depends on the data;
* MEASURED: further operations in exports of networks of torchvision 0.28.0 (21 families, as exported and decomposed) and timm
  1.0.31 (vit, swin, beit, convnext, convnextv2, efficientnet_lite, mobilenetv3, mobilevit, resnet-t, regnet, repvgg, ghostnet,
  edgenext, halonet, gernet, as exported). `devtools/list_operations.py` prints this list and supports more families;
* COMMON: further operations on dense tensors that are common in the `forward` of a network.

Excluded on purpose: sparse, quantised, nested and foreign tensors; operations named unsafe or internal that no export contains;
files; printing; `set_`; `resize_`; and `empty` and similar operations, which reveal earlier contents of memory.
`devtools/fuzz_operations.py` calls operations with random hostile arguments. Operations whose kernels crash (`_fft_r2c`,
`_fft_c2r`, `native_group_norm`) are excluded. Their checked forms (`fft_rfft`, `group_norm`), which exports contain before
decomposition, are allowed.
"""

CORE = """
_adaptive_avg_pool2d.default _adaptive_avg_pool3d.default _log_softmax.default _native_batch_norm_legit_no_training.default
_softmax.default _to_copy.default abs.default acos.default acosh.default adaptive_avg_pool1d.default add.Scalar add.Tensor
addmm.default alias.default amax.default amin.default any.default any.dim any.dims arange.start_step argmax.default
argmin.default as_strided.default asin.default asinh.default atan.default atan2.default atanh.default avg_pool1d.default
avg_pool2d.default avg_pool3d.default bitwise_and.Scalar bitwise_and.Tensor bitwise_not.default bitwise_or.Scalar
bitwise_or.Tensor bitwise_xor.Scalar bitwise_xor.Tensor bmm.default cat.default ceil.default clamp.Tensor clamp.default
clone.default col2im.default constant_pad_nd.default convolution.default copy.default cos.default cosh.default cumsum.default
diagonal.default div.Scalar div.Scalar_mode div.Tensor div.Tensor_mode elu.default embedding.default eq.Scalar eq.Tensor
erf.default exp.default expand.default expm1.default fill.Scalar flip.default floor.default fmod.Scalar fmod.Tensor full.default
full_like.default gather.default ge.Scalar ge.Tensor gelu.default grid_sampler_2d.default gt.Scalar gt.Tensor hardtanh.default
index.Tensor index_put.default index_select.default isinf.default isnan.default le.Scalar le.Tensor leaky_relu.default
log.default log10.default log1p.default log2.default logical_and.default logical_not.default logical_or.default
logical_xor.default lt.Scalar lt.Tensor max.dim max_pool2d_with_indices.default max_pool3d_with_indices.default maximum.default
mean.default mean.dim min.dim minimum.default mm.default mul.Scalar mul.Tensor native_layer_norm.default ne.Scalar ne.Tensor
neg.default permute.default pow.Scalar pow.Tensor_Scalar pow.Tensor_Tensor prod.default prod.dim_int reciprocal.default
reflection_pad1d.default reflection_pad2d.default reflection_pad3d.default relu.default remainder.Scalar remainder.Tensor
repeat.default replication_pad2d.default replication_pad3d.default round.default rsqrt.default scalar_tensor.default scatter.src
scatter.value scatter_add.default scatter_reduce.two select.int select_scatter.default sigmoid.default sign.default sin.default
sinh.default slice.Tensor slice_scatter.default sort.default split_with_sizes.default sqrt.default squeeze.dim squeeze.dims
sub.Scalar sub.Tensor sum.dim_IntList sym_is_contiguous.default sym_numel.default sym_size.int sym_stride.int tan.default
tanh.default topk.default trunc.default unsqueeze.default upsample_bilinear2d.vec upsample_nearest2d.vec var.correction var.dim
view.default where.self
"""
MEASURED = """
_assert_tensor_metadata.default adaptive_avg_pool2d.default add_.Tensor addcmul.default arange.default batch_norm.default
chunk.default clamp_min.default contiguous.default conv2d.default dropout.default dropout_.default einsum.default
expand_as.default fill_.Tensor flatten.using_ints hardsigmoid.default hardswish_.default hardtanh_.default layer_norm.default
lift_fresh_copy.default linalg_vector_norm.default linear.default masked_fill.Scalar matmul.default max_pool2d.default
new_zeros.default pad.default relu_.default reshape.default roll.default scaled_dot_product_attention.default silu.default
silu_.default softmax.int stack.default swapaxes.default to.device to.dtype transpose.int unbind.int unflatten.int
unfold.default zero_.default zeros.default
"""
COMMON = """
_assert_scalar.default absolute.default adaptive_max_pool2d.default add_.Scalar addcdiv.default all.default all.dim
alpha_dropout.default arange.start argsort.default atleast_1d.default baddbmm.default bilinear.default broadcast_tensors.default
broadcast_to.default bucketize.Tensor celu.default channel_shuffle.default clamp_.default clamp_max.default clamp_max_.default
clamp_min_.default clip.default concat.default conj.default conv1d.default conv2d.padding conv3d.default
conv_transpose1d.default conv_transpose2d.input copy_.default cosine_similarity.default cross.default cumprod.default
deg2rad.default detach.default detach_.default diag.default diag_embed.default diff.default div_.Scalar div_.Tensor
divide.Tensor dot.default dstack.default elu_.default erfc.default erfinv.default exp2.default exp_.default eye.default eye.m
feature_alpha_dropout.default feature_dropout.default fft_fft.default fft_fft2.default fft_fftshift.default fft_ifft.default
fft_ifft2.default fft_ifftshift.default fft_irfft.default fft_irfft2.default fft_rfft.default fft_rfft2.default fill.Tensor
fill_.Scalar fliplr.default flipud.default float_power.Tensor_Scalar floor_.default floor_divide.Scalar floor_divide.default
frac.default gelu_.default glu.default greater.Scalar group_norm.default hardshrink.default hardsigmoid_.default
hardswish.default hstack.default hypot.default im2col.default imag.default inner.default instance_norm.default isclose.default
isfinite.default kron.default l1_loss.default leaky_relu_.default lerp.Scalar lerp.Tensor linalg_norm.default linspace.default
log_.default log_sigmoid.default log_softmax.int logaddexp.default logit.default logsumexp.default masked_fill.Tensor
masked_fill_.Scalar max.default max.other max_pool1d.default max_pool3d.default median.default median.dim meshgrid.default
meshgrid.indexing min.default min.other mish.default mish_.default moveaxis.int movedim.int mse_loss.default mul_.Scalar
mul_.Tensor multiply.Tensor mv.default nan_to_num.default neg_.default new_full.default new_ones.default norm.Scalar
norm.ScalarOpt_dim norm.ScalarOpt_dim_dtype nuclear_norm.default numpy_T.default one_hot.default ones.default ones_like.default
outer.default pixel_shuffle.default pixel_unshuffle.default polar.default positive.default pow_.Scalar prelu.default
quantile.scalar rad2deg.default ravel.default real.default reciprocal_.default relu6.default relu6_.default
repeat_interleave.self_int reshape_as.default rms_norm.default rot90.default round.decimals round_.default rsqrt_.default
rsub.Scalar rsub.Tensor searchsorted.Tensor selu.default selu_.default sgn.default sigmoid_.default sinc.default
softplus.default softshrink.default split.Tensor split.sizes sqrt_.default square.default squeeze.default std.correction
std.default std.dim std_mean.correction sub_.Scalar sub_.Tensor subtract.Tensor sum.default sym_constrain_range.default
sym_constrain_range_for_size.default t.default take_along_dim.default tanh_.default tensor_split.sections tensordot.default
threshold.default threshold_.default tile.default to.dtype_layout to.other tril.default triu.default true_divide.Tensor
type_as.default upsample_bicubic2d.vec upsample_linear1d.vec upsample_nearest1d.vec var.default var_mean.correction
view_as.default view_as_complex.default view_as_real.default vstack.default where.Scalar where.ScalarOther where.ScalarSelf
xlogy.Tensor zeros_like.default
"""
ALLOWED = frozenset((CORE + MEASURED + COMMON).split())
DRAWING = """
bernoulli.default bernoulli.p bernoulli_.float exponential.default exponential_.default geometric.default multinomial.default
native_dropout.default normal.Tensor_Tensor normal.Tensor_float normal.float_Tensor normal_.default normal_functional.default
poisson.default rand.default rand_like.default randint.default randint.low randint_like.default randint_like.low_dtype
randn.default randn_like.default randperm.default uniform.default uniform_.default
"""
RANDOM = frozenset(DRAWING.split())
"""Operations that draw random numbers: allowed in a release that is declared as stochastic."""
