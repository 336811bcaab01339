"""Known mistakes, each as what an implementation that makes it would answer.

A mistake replaces one part of the rules as reference_rules.py has them, or calls a rule with
something other than what was asked, or changes the answer afterwards. So a wrong answer can be laid
beside the answers that the known mistakes give, and the one that reproduces it is named. What each
is called, what it does and where it was met is in the catalogue (vectors/mistakes.toml); the parts
that take more than a line are in wrong_parts.py.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from refl.verification.conformance import wrong_parts as wrong
from refl.verification.conformance.planting import (
    Answering,
    Mistake,
    NoDifference,
    called_with,
    changed,
    changed_answer,
    mistake,
    planted,
)
from refl.verification.conformance.reference_rules import (
    GREATEST,
    Answer,
    ReferenceRules,
    activation,
    contributions,
    folded,
    identity_factor,
    minus_part,
    plus_part,
    rounded,
)
from refl.verification.conformance.structural import CANDIDATES
from refl.verification.vectors.case import SIGNATURES, Case

__all__ = ["MISTAKES", "NOT_SHOWN", "STRUCTURAL", "Mistake", "NoDifference"]

# -- rules by what they have in common -------------------------------------------------------------

_RELEVANCE = " ".join(rule for rule, each in SIGNATURES.items() if each.formulation == "relevance")
_CONSERVING = (
    "multiply_uniform multiply_flattened multiply_second rms_norm_identity layer_norm_identity "
    "activation_identity scale_pass_through repeat_heads_pass_through "
    "gather_pass_through top_k_pass_through renormalize_identity linear_flat "
    "linear_w_square linear_z_box"
)
"""Rules that absorb nothing, or only what has no receiver."""
_ABSORBING = " ".join(rule for rule in _RELEVANCE.split() if rule not in _CONSERVING.split())
_GRADIENT = " ".join(
    rule for rule, each in SIGNATURES.items() if each.formulation == "gradient_x_input"
)
_EPSILON = " ".join(rule for rule, each in SIGNATURES.items() if "eps" in each.options)
_SOFTMAX = "softmax_taylor softmax_spread softmax_z_plus softmax_identity softmax_gradient"
_FLATTENED = "multiply_flattened multiply_flattened_gxi matmul_flattened matmul_flattened_gxi"
_ATTENTION = "attention_attnlrp attention_cp attention_attnlrp_gxi attention_cp_gxi"
_BY_EPSILON = f"{_EPSILON} network"


# -- the table: faults found in libraries, then slips that are easily made, then choices -----------

MISTAKES: tuple[Mistake, ...] = (
    mistake(
        "eps-unsigned",
        _BY_EPSILON,
        planted(
            stabilized=lambda self, z, eps, kind: ReferenceRules.stabilized(
                self, z, eps, "none" if kind == "none" else "plain"
            )
        ),
        planted(stabilized=lambda self, z, eps, kind: z + eps),
    ),
    mistake(
        "eps-zero-sign",
        _BY_EPSILON,
        planted(stabilized=wrong.sign_of_zero, divided=lambda self, r, d: r / d),
        planted(stabilized=wrong.sign_of_zero),
        planted(
            stabilized=lambda self, z, eps, kind: z + eps * np.sign(z),
            divided=lambda self, r, d: r / d,
        ),
    ),
    mistake(
        "eps-two-forms",
        "matmul_uniform attention_attnlrp",
        called_with(lambda case: {"denominator": "2(z+eps)"}),
        called_with(lambda case: {"denominator": "2z+eps"}),
        *(
            planted(
                context_product=wrong.with_denominator(context),
                score_product=wrong.with_denominator(scores),
                **parts,
            )
            for context, scores in (("2(z+eps)", "2z+eps"), ("2z+eps", "2(z+eps)"))
            for parts in ({}, {"stabilized": lambda self, z, eps, kind: z + eps})
        ),
    ),
    mistake(
        "softmax-dim",
        "softmax_taylor softmax_spread softmax_gradient",
        planted(sum_along=lambda self, r, axis: r.sum(-1, keepdims=True)),
    ),
    mistake(
        "softmax-shifted",
        "softmax_taylor softmax_spread softmax_z_plus attention_attnlrp",
        planted(
            logits=lambda self, filled, axis: np.where(
                np.isneginf(filled), 0.0, filled - filled.max(axis, keepdims=True)
            )
        ),
    ),
    mistake(
        "mask-finfo",
        f"{_SOFTMAX} {_ATTENTION}",
        planted(
            filled=lambda self, x, mask: x if mask is None else np.where(mask, x, self.lowest),
            probabilities=wrong.naive_probabilities,
        ),
        planted(
            filled=lambda self, x, mask: x if mask is None else np.where(mask, x, -np.inf),
            probabilities=wrong.naive_probabilities,
        ),
    ),
    mistake(
        "tril-always",
        f"{_SOFTMAX} {_ATTENTION}",
        planted(
            visible=lambda self, scores, causal, mask: ReferenceRules.visible(
                self, scores, True, mask
            )
        ),
        planted(
            **{
                rule: wrong.lower_triangle(getattr(ReferenceRules, rule))
                for rule in _SOFTMAX.split()
            }
        ),
        planted(
            softmax_taylor=lambda self, x, r, **o: ReferenceRules.softmax_taylor(
                self, x, np.tril(r), **o
            )
        ),
    ),
    mistake(
        "cp-half",
        "matmul_second matmul_second_gxi multiply_second multiply_second_gxi attention_cp "
        "attention_cp_gxi",
        changed_answer(lambda case, x, got: got / 2),
        planted(matmul_second=lambda self, a, v, r, **o: self.matmul_uniform(a, v, r, **o)[1]),
    ),
    mistake(
        "halved-linear",
        "linear_* convolution_* fan_out_epsilon network",
        planted(
            **{
                rule: wrong.halved(getattr(ReferenceRules, rule))
                for rule in SIGNATURES
                if rule.startswith("linear_") and rule != "linear_z_plus"
            }
        ),
    ),
    mistake(
        "moe-degree-0",
        "renormalize_identity renormalize_identity_gxi",
        planted(
            renormalize_identity=lambda self, x, r: self.renormalize_epsilon(
                x, r, eps=0.0, stabilizer="none"
            ),
            renormalize_identity_gxi=ReferenceRules.renormalize_gradient,
        ),
        planted(renormalize_identity=lambda self, x, r: self.renormalize_epsilon(x, r, eps=1e-6)),
        planted(renormalize_identity=lambda self, x, r: self.renormalize_epsilon(x, r, eps=1e-8)),
    ),
    mistake(
        "identity-in-wrong-form",
        "activation_identity activation_identity_gxi rms_norm_identity "
        "rms_norm_identity_gxi layer_norm_identity renormalize_identity "
        "renormalize_identity_gxi scale_pass_through scale_gradient network "
        "attention_attnlrp attention_attnlrp_gxi",
        planted(
            activation_identity=lambda self, x, r, *, kind: r * identity_factor(x, kind),
            activation_identity_gxi=lambda self, x, g, *, kind: g,
            rms_norm_identity=ReferenceRules.rms_norm_identity_gxi,
            rms_norm_identity_gxi=lambda self, x, w, g, *, norm_eps: g,
            layer_norm_identity=ReferenceRules.layer_norm_epsilon_gxi,
            renormalize_identity=ReferenceRules.renormalize_identity_gxi,
            renormalize_identity_gxi=lambda self, x, g: g,
            scale_pass_through=ReferenceRules.scale_gradient,
            scale_gradient=lambda self, x, g, *, factor: g,
        ),
        planted(activation_identity=lambda self, x, r, *, kind: r * (activation(x, kind) / x)),
    ),
    mistake(
        "product-proportional",
        "multiply_uniform multiply_uniform_gxi",
        planted(fractions=wrong.proportional),
    ),
    mistake(
        "residual-absolute",
        "add_epsilon sum_epsilon add_gradient fan_out_epsilon",
        planted(
            sum_epsilon=wrong.by_size(0.0),
            add_gradient=lambda self, a, b, g: wrong.absolute_gradient(a, b, g),
        ),
        planted(sum_epsilon=wrong.by_size(1.0)),
    ),
    mistake(
        "residual-halves",
        "add_epsilon sum_epsilon",
        planted(
            sum_epsilon=lambda self, operands, r, **o: tuple(
                self.folded(r / len(operands), a) for a in operands
            )
        ),
    ),
    mistake(
        "constant-eats-share",
        "multiply_uniform multiply_uniform_gxi multiply_flattened multiply_flattened_gxi",
        planted(
            fractions=lambda self, operands, fixed: [1 / len(operands)] * len(operands),
            parts_of=lambda self, factors, fixed: [n / sum(factors) for n in factors],
        ),
        planted(fractions=wrong.constants_among_three),
        called_with(lambda case: {"constant": None}),
    ),
    mistake(
        "relu-identity-lost",
        "activation_identity network",
        planted(activation_identity=lambda self, x, r, *, kind: 0 * r if kind == "relu" else r),
        planted(activation_identity=lambda self, x, r, *, kind: r * ((kind != "relu") | (x > 0))),
        planted(activation_identity=lambda self, x, r, *, kind: r * ((kind != "relu") | (x >= 0))),
    ),
    mistake(
        "rule-forgotten",
        "network",
        called_with(wrong.default_rules),
        wrong.input_times_gradient,
        behavior="again",
    ),
    mistake(
        "conv-doubled",
        "convolution_*",
        changed_answer(lambda case, x, got: got if x.shape[1] == 3 else 2 * got),
        changed_answer(lambda case, x, got: 2 * got),
    ),
    mistake(
        "safe-divide",
        f"{_BY_EPSILON} linear_z_plus linear_alpha_beta linear_gamma convolution_z_plus",
        wrong.clamped_divide(1e-9),
        wrong.clamped_divide(None),
    ),
    mistake(
        "batch-coupled",
        f"{_ABSORBING} network",
        planted(sum_epsilon=wrong.rescaled_over_batch),
        wrong.as_a_whole(wrong.rescaled, 0),
    ),
    mistake(
        "bn-variance",
        "layer_norm_epsilon layer_norm_epsilon_gxi layer_norm_gradient "
        "rms_norm_identity_gxi rms_norm_gradient",
        planted(
            root=wrong.root_of_square,
            root_derivative=lambda self, square, norm_eps: (
                square / wrong.root_of_square(self, square, norm_eps)
            ),
        ),
        planted(root=wrong.root_of_square),
    ),
    mistake(
        "alpha-beta-bias",
        "linear_alpha_beta linear_z_plus convolution_z_plus",
        planted(signed_bias=lambda self, b, sign: b),
    ),
    mistake(
        "alpha-index",
        "linear_alpha_beta",
        wrong.with_factors(lambda alpha, beta: (1.0, beta)),
        wrong.with_factors(lambda alpha, beta: (alpha, alpha)),
        wrong.with_factors(lambda alpha, beta: (beta, beta)),
        wrong.with_factors(lambda alpha, beta: (alpha, 1.0)),
        wrong.with_factors(lambda alpha, beta: (beta, alpha)),
        wrong.with_factors(lambda alpha, beta: (2.0, 1.0)),
        wrong.with_factors(lambda alpha, beta: (1.0, 0.0)),
    ),
    mistake(
        "gamma-forward",
        "network",
        wrong.weights_amplified,
        behavior="forward",
    ),
    mistake(
        "ln-unbiased",
        "layer_norm_epsilon layer_norm_epsilon_gxi layer_norm_gradient",
        planted(variance_divisor=lambda self, x: x.shape[-1] - 1),
        planted(layer_norm_gradient=wrong.unbiased_scale_alone),
    ),
    mistake(
        "gamma-at-zero",
        "linear_gamma",
        planted(linear_gamma=wrong.gamma_not_at_zero),
    ),
    mistake(
        "zero-input",
        f"{_RELEVANCE} activation_identity_gxi",
        changed_answer(lambda case, x, got: np.where(x == 0, 0.0, got)),
        changed_answer(lambda case, x, got: np.where(x == 0, np.nan, got)),
        wrong.bridged,
    ),
    mistake(
        "leaf-twice",
        "fan_out_epsilon gather_pass_through",
        planted(
            accumulated=lambda self, first, second: second,
            accumulate=lambda self, relevance, row, r: relevance.__setitem__(row, r),
        ),
        planted(accumulated=lambda self, first, second: first),
        planted(
            accumulate=lambda self, relevance, row, r: relevance.__setitem__(
                row, np.where(relevance[row] == 0, r, relevance[row])
            )
        ),
    ),
    mistake(
        "logit-squared",
        f"{_GRADIENT} network",
        called_with(wrong.seeded_with_outputs),
    ),
    mistake(
        "vacuous-check",
        f"{_RELEVANCE} network",
        wrong.as_a_whole(wrong.uniform_mean, 0),
        wrong.as_a_whole(wrong.uniform_mean, 1),
    ),
    mistake(
        "fp16-nan",
        f"{_EPSILON} linear_alpha_beta",
        wrong.half_precision(None),
        wrong.half_precision(1e-8),
        wrong.in_half(
            planted(
                divided=lambda self, r, d: rounded(
                    r / rounded(d + wrong.sign_up(d, 6e-8), self.dtype), self.dtype
                )
            )
        ),
    ),
    mistake(
        "one-target",
        "network",
        behavior="targets",
    ),
    mistake(
        "gqa-repeat",
        "repeat_heads_pass_through attention_attnlrp attention_cp attention_attnlrp_gxi "
        "attention_cp_gxi",
        planted(repeat_heads_pass_through=wrong.wrong_groups),
        planted(repeat_heads_pass_through=wrong.from_copies(lambda c: c[:, :, 0])),
        planted(repeat_heads_pass_through=wrong.from_copies(lambda c: c[:, :, -1])),
        planted(repeat_heads_pass_through=wrong.from_copies(lambda c: c.mean(2))),
        planted(repeated=wrong.tiled, repeat_heads_pass_through=wrong.wrong_groups),
        planted(repeated=wrong.tiled),
    ),
    mistake(
        "rope-interleave",
        "rotary_epsilon rotary_uniform rotary_uniform_gxi rotary_gradient",
        planted(rotated=wrong.interleaved),
        lambda case: planted(rotated=wrong.interleaved)(changed(case, wrong.angles_of_pairs(case))),
    ),
    mistake(
        "shared-gradient",
        "sum_epsilon add_epsilon",
        wrong.multiplied_in_place(""),
        wrong.multiplied_in_place("plain"),
    ),
    mistake("eps-in-float32", _EPSILON, planted(**wrong.IN_FLOAT32)),
    mistake(
        "lrp-0-divides",
        "linear_epsilon",
        planted(divided=lambda self, r, d: r / d),
    ),
    mistake(
        "vjp-for-relevance",
        "layer_norm_epsilon",
        planted(layer_norm_epsilon=wrong.derivative_of_layer_norm),
    ),
    # what is easily got wrong
    mistake(
        "weight-transposed",
        "linear_epsilon linear_g* linear_z* linear_a* linear_w* fan_out_epsilon",
        called_with(wrong.transposed),
    ),
    mistake(
        "narrowed",
        "*",
        behavior="narrowed",
    ),
    mistake(
        "bias-ignored",
        "linear_epsilon linear_gamma linear_z_plus linear_alpha_beta convolution_epsilon "
        "convolution_z_plus layer_norm_epsilon network",
        planted(
            linear_sum=lambda self, x, w, b: x @ w.T,
            amplified_bias=lambda self, b, z: 0 * b,
            signed_bias=lambda self, b, sign: 0 * b,
            linear_gamma=lambda self, x, w, b, r, **o: ReferenceRules.linear_gamma(
                self, x, w, None, r, **o
            ),
            layer_norm_epsilon=lambda self, x, w, b, r, **o: ReferenceRules.layer_norm_epsilon(
                self, x, w, None, r, **o
            ),
        ),
    ),
    mistake(
        "eps-doubled",
        _BY_EPSILON,
        wrong.eps_times(lambda z: 2),
    ),
    mistake(
        "abs-stabilizer",
        _BY_EPSILON,
        planted(stabilized=lambda self, z, eps, kind: z if kind == "none" else np.abs(z) + eps),
        planted(stabilized=lambda self, z, eps, kind: np.abs(z) + eps),
    ),
    mistake(
        "stabilizer-ignored",
        _EPSILON,
        planted(
            stabilized=lambda self, z, eps, kind: ReferenceRules.stabilized(self, z, eps, "sign")
        ),
    ),
    mistake(
        "other-eps",
        _BY_EPSILON,
        *(
            wrong.other_eps(eps)
            for eps in (
                0.0,
                1e-12,
                1e-10,
                1e-9,
                1e-8,
                1e-7,
                1e-6,
                1e-5,
                1e-4,
                1e-3,
                1e-2,
                1e-1,
                0.25,
            )
        ),
    ),
    mistake(
        "gradient-for-relevance",
        "*_epsilon matmul_uniform matmul_second softmax_taylor",
        changed_answer(wrong.without_input),
    ),
    mistake(
        "relevance-for-gradient",
        _GRADIENT,
        changed_answer(lambda case, x, got: x * got),
    ),
    mistake(
        "forced-conservation",
        f"{_ABSORBING} network",
        wrong.as_a_whole(wrong.rescaled, 1),
    ),
    mistake(
        "relevance-clamped",
        f"{_RELEVANCE} network",
        changed_answer(lambda case, x, got: np.maximum(got, 0.0)),
        changed_answer(lambda case, x, got: np.abs(got)),
    ),
    mistake(
        "softmax-no-offset",
        "softmax_taylor softmax_gradient attention_attnlrp attention_attnlrp_gxi",
        planted(sum_along=lambda self, r, axis: 0 * r),
    ),
    mistake(
        "axis-ignored",
        "softmax_taylor softmax_spread softmax_z_plus softmax_gradient",
        called_with(lambda case: {"axis": -1}),
    ),
    mistake(
        "mask-ignored",
        f"{_SOFTMAX} {_ATTENTION}",
        called_with(lambda case: {"mask": None}),
    ),
    mistake(
        "mask-inverted",
        f"{_SOFTMAX} {_ATTENTION}",
        called_with(
            lambda case: {} if case.options.get("mask") is None else {"mask": ~case.options["mask"]}
        ),
    ),
    mistake(
        "mask-after",
        f"softmax_taylor softmax_spread softmax_gradient {_ATTENTION}",
        lambda case: wrong.MaskedAfter(case.dtype).answer(case),
    ),
    mistake(
        "mask-counted",
        "softmax_taylor softmax_spread softmax_z_plus softmax_identity",
        planted(unmasked=lambda self, filled: np.ones_like(filled)),
    ),
    mistake(
        "causal-ignored",
        _ATTENTION,
        called_with(lambda case: {"causal": False}),
    ),
    mistake(
        "scale-once",
        _ATTENTION,
        called_with(lambda case: {"scale": 1.0}),
        called_with(lambda case: {"scale": case.options["scale"] ** 2}),
        called_with(lambda case: {"scale": case.inputs["q"].shape[-1] ** -0.5}),
    ),
    mistake(
        "product-doubled",
        "multiply_uniform multiply_uniform_gxi matmul_uniform matmul_uniform_gxi "
        "attention_attnlrp attention_attnlrp_gxi rotary_uniform rotary_uniform_gxi "
        f"{_FLATTENED}",
        planted(
            fractions=lambda self, operands, fixed: [1.0] * len(operands),
            parts_of=lambda self, factors, fixed: [
                2 * part for part in ReferenceRules.parts_of(self, factors, fixed)
            ],
            matmul_uniform=wrong.multiplied(2, ReferenceRules.matmul_uniform),
            matmul_uniform_gxi=ReferenceRules.matmul_gradient,
            rotary_uniform_gxi=ReferenceRules.rotary_gradient,
        ),
        planted(matmul_uniform=wrong.doubled_matmul),
    ),
    mistake(
        "product-quartered",
        "multiply_uniform multiply_uniform_gxi matmul_uniform matmul_uniform_gxi "
        "attention_attnlrp attention_attnlrp_gxi rotary_uniform rotary_uniform_gxi",
        planted(
            fractions=lambda self, operands, fixed: [
                part / 2 for part in ReferenceRules.fractions(self, operands, fixed)
            ],
            matmul_uniform=wrong.multiplied(0.5, ReferenceRules.matmul_uniform),
            matmul_uniform_gxi=wrong.multiplied(0.5, ReferenceRules.matmul_uniform_gxi),
            rotary_uniform_gxi=wrong.halved(ReferenceRules.rotary_uniform_gxi),
        ),
    ),
    mistake(
        "factors-swapped",
        _FLATTENED,
        planted(
            parts_of=lambda self, factors, fixed: ReferenceRules.parts_of(
                self, factors[::-1], fixed
            )
        ),
    ),
    mistake(
        "factors-ignored",
        _FLATTENED,
        planted(
            parts_of=lambda self, factors, fixed: ReferenceRules.parts_of(
                self, [1] * len(factors), fixed
            )
        ),
    ),
    mistake(
        "gate-swapped",
        "multiply_second multiply_second_gxi",
        changed_answer(lambda case, x, got: 0 * got),
        planted(multiply_second_gxi=lambda self, a, b, g: folded(b * g, b)),
    ),
    mistake(
        "cp-leaks",
        "attention_cp attention_cp_gxi",
        planted(
            attention_cp=ReferenceRules.attention_attnlrp,
            attention_cp_gxi=ReferenceRules.attention_attnlrp_gxi,
        ),
    ),
    mistake(
        "probabilities-constant",
        "attention_attnlrp attention_attnlrp_gxi",
        planted(
            attention_attnlrp=lambda self, q, k, v, r, *, denominator="2z+eps", **o: (
                self.attention_cp(q, k, v, r, **o)
            ),
            attention_attnlrp_gxi=ReferenceRules.attention_cp_gxi,
        ),
        wrong.values_alone,
    ),
    mistake(
        "mean-not-centered",
        "layer_norm_epsilon layer_norm_epsilon_gxi layer_norm_gradient",
        planted(pulled_through_mean=lambda self, c: c),
    ),
    mistake(
        "ln-centered-input",
        "layer_norm_epsilon",
        planted(layer_norm_epsilon=wrong.centered_times),
    ),
    mistake(
        "ln-beta-in-numerator",
        "layer_norm_epsilon",
        planted(layer_norm_epsilon=wrong.beta_kept),
    ),
    mistake(
        "norm-eps-missing",
        "layer_norm_epsilon layer_norm_epsilon_gxi layer_norm_gradient "
        "rms_norm_identity_gxi rms_norm_gradient",
        called_with(lambda case: {"norm_eps": 0.0}),
        planted(
            root=lambda self, square, norm_eps: np.sqrt(square) + norm_eps,
            root_derivative=lambda self, square, norm_eps: 0.5 / np.sqrt(square),
        ),
    ),
    mistake(
        "norm-jacobian",
        "rms_norm_identity rms_norm_identity_gxi layer_norm_epsilon layer_norm_identity "
        "layer_norm_epsilon_gxi",
        planted(
            rms_norm_identity=lambda self, x, w, r, *, norm_eps: (
                x
                * self.rms_norm_gradient(
                    x,
                    w,
                    self.divided(
                        r, x * self.rms_norm_identity_gxi(x, w, np.ones(1), norm_eps=norm_eps)
                    ),
                    norm_eps=norm_eps,
                )
            ),
            rms_norm_identity_gxi=ReferenceRules.rms_norm_gradient,
            layer_norm_epsilon=wrong.full_jacobian,
            layer_norm_identity=lambda self, x, w, b, r, *, norm_eps: wrong.full_jacobian(
                self, x, w, b, r, norm_eps=norm_eps, eps=0.0, stabilizer="none"
            ),
            layer_norm_epsilon_gxi=ReferenceRules.layer_norm_gradient,
        ),
    ),
    mistake(
        "norm-frozen",
        "rms_norm_gradient layer_norm_gradient",
        planted(
            rms_norm_gradient=ReferenceRules.rms_norm_identity_gxi,
            layer_norm_gradient=ReferenceRules.layer_norm_epsilon_gxi,
        ),
    ),
    mistake(
        "norm-in-half",
        "layer_norm_epsilon layer_norm_epsilon_gxi layer_norm_gradient "
        "rms_norm_identity_gxi rms_norm_gradient",
        wrong.in_half(
            planted(
                root=lambda self, square, norm_eps: np.sqrt(
                    np.where(square > GREATEST[self.dtype], np.inf, square) + norm_eps
                )
            )
        ),
    ),
    mistake(
        "norm-weight-ignored",
        "layer_norm_epsilon layer_norm_epsilon_gxi layer_norm_gradient "
        "rms_norm_identity_gxi rms_norm_gradient",
        called_with(lambda case: {"w": np.ones_like(case.inputs["w"])}),
    ),
    mistake(
        "norm-weight-offset",
        "layer_norm_epsilon layer_norm_epsilon_gxi layer_norm_gradient "
        "rms_norm_identity_gxi rms_norm_gradient",
        called_with(lambda case: {"w": case.inputs["w"] + case.inputs["w"].dtype.type(1)}),
    ),
    mistake(
        "gelu-other",
        "activation_identity_gxi activation_gradient",
        *(
            wrong.kind_for(*pair)
            for pair in (
                ("gelu", "gelu_tanh"),
                ("gelu_tanh", "gelu"),
                ("gelu", "quick_gelu"),
                ("quick_gelu", "gelu"),
                ("silu", "quick_gelu"),
                ("quick_gelu", "silu"),
                ("silu", "gelu"),
                ("gelu", "silu"),
                ("gelu", "relu"),
                ("gelu_tanh", "silu"),
            )
        ),
    ),
    mistake(
        "slope-for-ratio",
        "activation_identity_gxi",
        planted(activation_identity_gxi=ReferenceRules.activation_gradient),
    ),
    mistake(
        "ratio-for-slope",
        "activation_gradient",
        planted(activation_gradient=ReferenceRules.activation_identity_gxi),
    ),
    mistake(
        "ratio-eps",
        "activation_identity_gxi",
        *(
            planted(
                activation_identity_gxi=lambda self, x, g, *, kind, eps=eps: (
                    g * (activation(x, kind) / (x + eps))
                )
            )
            for eps in (1e-10, 1e-9, 1e-8, 1e-6, 0.0)
        ),
    ),
    mistake(
        "rotary-transposed",
        "rotary_epsilon rotary_uniform rotary_uniform_gxi rotary_gradient",
        planted(rotary_gradient=lambda self, x, cos, sin, g: g * cos + self.rotated(g, -1) * sin),
    ),
    mistake(
        "rotary-skipped",
        "rotary_epsilon rotary_uniform rotary_uniform_gxi rotary_gradient",
        planted(
            rotary_epsilon=lambda self, x, cos, sin, r, **o: r,
            rotary_uniform=lambda self, x, cos, sin, r, **o: r / 2,
            rotary_gradient=lambda self, x, cos, sin, g: g,
        ),
    ),
    mistake(
        "counted-ignored",
        "pooling_epsilon pooling_gradient",
        called_with(lambda case: {"counted": None}),
        planted(pooling_gradient=wrong.counted_but_not_in_number),
    ),
    mistake(
        "pooling-sum",
        "pooling_gradient",
        planted(
            pooling_gradient=lambda self, x, g, *, counted=None: (
                (np.ones_like(x) if counted is None else counted) * g
            )
        ),
    ),
    mistake(
        "pooling-uniform",
        "pooling_epsilon",
        planted(
            pooling_epsilon=lambda self, x, r, *, counted=None, **o: (
                ReferenceRules.pooling_gradient(self, x, r, counted=counted)
            )
        ),
    ),
    mistake(
        "gamma-one-branch",
        "linear_gamma network",
        planted(
            amplified=lambda self, c, z, x, w: plus_part(c),
            amplified_bias=lambda self, b, z: plus_part(b),
        ),
    ),
    mistake(
        "gamma-bias",
        "linear_gamma network",
        planted(amplified_bias=lambda self, b, z: 0 * b * z),
    ),
    mistake(
        "gamma-dropped",
        "linear_gamma network",
        planted(
            linear_gamma=lambda self, x, w, b, r, *, gamma: ReferenceRules.linear_gamma(
                self, x, w, b, r, gamma=0.0
            )
        ),
        planted(linear_gamma=wrong.gamma_unbalanced),
    ),
    mistake(
        "plus-half",
        "linear_z_plus linear_alpha_beta convolution_z_plus network",
        planted(
            signed=lambda self, x, w: (
                contributions(plus_part(x), plus_part(w)),
                contributions(plus_part(x), minus_part(w)),
            )
        ),
    ),
    mistake(
        "plus-weights",
        "linear_z_plus linear_alpha_beta convolution_z_plus network",
        planted(signed=wrong.signed_weights),
        planted(signed=wrong.signed_weights, signed_bias=lambda self, b, sign: b),
        wrong.stabilized_by(1e-9, signed=wrong.signed_weights, signed_bias=lambda self, b, sign: b),
    ),
    mistake(
        "alpha-beta-sign",
        "linear_alpha_beta network",
        wrong.with_factors(lambda alpha, beta: (alpha, -beta)),
    ),
    mistake(
        "flat-weighted",
        "linear_flat",
        planted(
            linear_flat=lambda self, x, w, b, r: (
                ReferenceRules.linear_flat(self, x, w, b, r) * x.shape[-1] / (x.shape[-1] + 1)
            )
        ),
        planted(
            linear_flat=lambda self, x, w, b, r: (
                x / x.sum(-1, keepdims=True) * r.sum(-1, keepdims=True)
            )
        ),
    ),
    mistake(
        "w-square-not-squared",
        "linear_w_square",
        planted(
            linear_w_square=lambda self, x, w, b, r: self.divided(r, np.abs(w).sum(-1)) @ np.abs(w)
        ),
        planted(linear_w_square=lambda self, x, w, b, r: self.divided(r, w.sum(-1)) @ w),
    ),
    mistake(
        "z-box-bounds",
        "linear_z_box",
        called_with(lambda case: {"low": case.options["high"], "high": case.options["low"]}),
        called_with(lambda case: {"low": 0.0, "high": 1.0}),
    ),
    mistake(
        "z-box-bias",
        "linear_z_box",
        planted(linear_z_box=wrong.biased_box),
    ),
    mistake(
        "kernel-flipped",
        "convolution_*",
        called_with(lambda case: {"w": case.inputs["w"][..., ::-1, ::-1]}),
    ),
    mistake(
        "index-shared",
        "gather_pass_through",
        called_with(
            lambda case: {"index": [case.options["index"][0]] * len(case.options["index"])}
        ),
    ),
    mistake(
        "top-k-order",
        "top_k_pass_through",
        planted(chosen=lambda self, x, k: ReferenceRules.chosen(self, x, k)[..., ::-1]),
        planted(chosen=lambda self, x, k: np.sort(ReferenceRules.chosen(self, x, k), axis=-1)),
        planted(chosen=lambda self, x, k: np.broadcast_to(np.arange(k), (*x.shape[:-1], k))),
    ),
    mistake(
        "fan-in-mean",
        "fan_out_epsilon gather_pass_through",
        planted(
            accumulated=lambda self, first, second: (first + second) / 2,
            gather_pass_through=wrong.averaged,
        ),
    ),
    # choices that are made on purpose
    mistake("top-k-ties", "top_k_pass_through", planted(chosen=wrong.last_of_equals)),
    mistake(
        "bias-by-size",
        "linear_epsilon linear_gamma linear_z_plus linear_alpha_beta linear_z_box "
        "convolution_epsilon convolution_z_plus",
        wrong.bias_by_size(1e-30),
    ),
    mistake(
        "mean-by-size",
        "pooling_epsilon layer_norm_epsilon",
        planted(pooling_epsilon=wrong.mean_by_size, layer_norm_epsilon=wrong.layer_norm_by_size),
    ),
    mistake(
        "bias-redistributed",
        "linear_epsilon convolution_epsilon network",
        planted(linear_epsilon=wrong.bias_spread),
        planted(linear_epsilon=wrong.all_spread),
    ),
    mistake(
        "bias-counted",
        "linear_w_square",
        planted(linear_w_square=wrong.bias_squared),
    ),
    mistake(
        "stabilizer-added",
        "linear_gamma linear_z_plus linear_alpha_beta linear_w_square linear_z_box "
        "convolution_z_plus",
        *(wrong.stabilized_by(eps) for eps in (1e-12, 1e-9, 1e-8, 1e-7, 1e-6)),
    ),
    mistake(
        "eps-clamped",
        _BY_EPSILON,
        planted(
            stabilized=lambda self, z, eps, kind: (
                z if kind == "none" else np.where(np.abs(z) < eps, wrong.sign_up(z, eps), z)
            )
        ),
    ),
    mistake(
        "softmax-other-rule",
        "softmax_taylor softmax_spread softmax_identity attention_attnlrp",
        planted(
            softmax_taylor=ReferenceRules.softmax_identity,
            softmax_spread=ReferenceRules.softmax_identity,
            softmax_identity=ReferenceRules.softmax_taylor,
        ),
        planted(softmax_taylor=wrong.spread_offset),
        planted(softmax_spread=ReferenceRules.softmax_taylor),
        planted(softmax_taylor=ReferenceRules.softmax_z_plus),
    ),
    mistake(
        "eps-relative",
        _BY_EPSILON,
        wrong.eps_times(lambda z: wrong.root_mean_square(z, 0)),
        wrong.eps_times(lambda z: wrong.root_mean_square(z, 1)),
        wrong.eps_times(lambda z: wrong.root_mean_square(z, z.ndim - 1)),
        wrong.eps_times(lambda z: np.abs(z).max()),
    ),
    mistake(
        "layer-norm-reading",
        "layer_norm_epsilon layer_norm_identity",
        planted(layer_norm_epsilon=lambda self, x, w, b, r, *, norm_eps, **o: r),
        *(planted(layer_norm_identity=wrong.as_epsilon(eps)) for eps in (1e-6, 1e-9, 1e-12)),
    ),
    mistake(
        "renormalize-identity",
        "renormalize_epsilon renormalize_gradient",
        planted(
            renormalize_epsilon=lambda self, x, r, **o: r,
            renormalize_gradient=ReferenceRules.renormalize_identity_gxi,
        ),
    ),
    mistake(
        "gamma-weights",
        "linear_gamma network",
        planted(linear_gamma=wrong.gamma_weights),
        planted(linear_gamma=wrong.gamma_weights_and_bias),
        wrong.stabilized_by(1e-9, linear_gamma=wrong.gamma_weights),
    ),
    mistake(
        "pooling-mean-eps",
        "pooling_epsilon",
        planted(pooling_epsilon=wrong.by_mean),
    ),
    mistake(
        "sum-chained",
        "sum_epsilon",
        planted(sum_epsilon=wrong.chained),
    ),
    mistake(
        "fan-out-fused",
        "fan_out_epsilon",
        planted(
            fan_out_epsilon=lambda self, x, w1, w2, r, **o: self.linear_epsilon(
                x, w1 + w2, None, r, **o
            )
        ),
    ),
    mistake(
        "causal-last",
        _ATTENTION,
        planted(
            visible=lambda self, scores, causal, mask: (
                ReferenceRules.visible(self, scores, False, mask)
                & np.tril(
                    np.ones(scores.shape[-2:], dtype=bool),
                    scores.shape[-1] - scores.shape[-2] if causal else scores.shape[-1],
                )
            )
        ),
    ),
    mistake(
        "relu-at-zero",
        "activation_identity_gxi activation_gradient",
        *(
            planted(
                **{
                    rule: wrong.relu_at_zero(getattr(ReferenceRules, rule), at)
                    for rule in ("activation_identity_gxi", "activation_gradient")
                }
            )
            for at in (1.0, 0.5)
        ),
    ),
)


def _never_raising(form: Answering) -> Answering:
    """A change of structure that a case does not take makes no difference to it."""

    def wrong(case: Case) -> Answer:
        try:
            return form(case)
        except (ValueError, IndexError, TypeError, AttributeError) as reason:
            raise NoDifference(str(reason)) from reason

    return wrong


STRUCTURAL: tuple[Mistake, ...] = tuple(
    replace(mistake(c.id, c.rules, *map(_never_raising, (*c.near, *c.far))), near=len(c.near))
    for c in CANDIDATES
)
"""Mistakes that every rule can have, of an axis, a factor, a sign or an operand: a diagnosis names
them where none of the others explains as much.
"""

NOT_SHOWN: dict[str, str] = {}
"""Faults found in libraries that nothing here can show, with the reason. There is none: the slip of
batch norm shows in the other norms, and what only behavior shows (one-target) shows when calling a
network again, with more seeds."""
