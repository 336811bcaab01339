"""Which tests are marked `quick`, and which `slow`: lists, so that each is seen as a whole. A
pattern is the name of a test as pytest prints it, with * for anything.
"""

from __future__ import annotations

from fnmatch import fnmatchcase

import pytest

QUICK = (
    "tests/test_imports.py::*",
    "tests/test_selections.py::*",
    # rules, against their definitions on a few examples, and written out by hand
    "tests/rules/*[numpy*",
    "tests/rules/test_linear.py::test_rule[array-api-strict*",
    "tests/rules/test_attention.py::*",
    "tests/rules/test_composites.py::*",
    "tests/rules/test_operations.py::*",
    "tests/rules/test_rounding_scale.py::*",
    "tests/rules/test_softmax_masks.py::*",
    # nets: forward passes in plain NumPy, and one relevance of each kind against the surrogate
    "tests/nets/test_config.py::*",
    "tests/nets/test_forwards.py::*",
    "tests/nets/test_roles.py::test_the_roles_of_a_block*",
    "tests/nets/test_decoders.py::*surrogate_gradient[qwen3-attnlrp-gradient]",
    "tests/nets/test_encoders.py::*surrogate_gradient[bert-attnlrp-gradient]",
    "tests/nets/test_experts.py::*surrogate_gradient[mixtral-attnlrp-gradient]",
    "tests/nets/test_t5.py::*surrogate_gradient[t5-attnlrp-gradient]",
    "tests/nets/test_vision.py::*surrogate_gradient[vit-attnlrp-gradient]",
    # the engine and its face
    "tests/refl/test_arguments.py::*",
    "tests/refl/test_backends.py::*[gpt2-attnlrp-array-api-strict]",
    "tests/refl/test_batches.py::test_a_list_is_its_members[*",
    "tests/refl/test_batches.py::test_an_explanation_does_not_hold_its_batch[*",
    "tests/refl/test_batches.py::test_dynamic_positions*",
    "tests/refl/test_batches.py::test_an_overflow_is_refused_by_its_site[parts-*",
    "tests/refl/test_checkpoint.py::test_written_and_read",
    "tests/refl/test_checkpoint.py::test_hostile_file*",
    "tests/refl/test_cli.py::test_explain_as_json_adds_up",
    "tests/refl/test_cli.py::test_every_method_explains*",
    "tests/refl/test_cli.py::test_methods",
    "tests/refl/test_cli_exits.py::test_whatever_is_raised_is_one_sentence_and_2*",
    "tests/refl/test_cli_files.py::test_every_option_says_whether_it_names_a_file",
    "tests/refl/test_cli_files.py::test_places_that_cannot_be_written",
    "tests/refl/test_explanation.py::*",
    "tests/refl/test_golden.py::test_logits*",
    "tests/refl/test_ledger.py::*",
    "tests/refl/test_memory.py::test_a_releasing_sweep_leaves_no_activation*",
    "tests/refl/test_oracle.py::test_format_1*",
    "tests/refl/test_seeds.py::*",
    "tests/refl/test_show.py::test_the_account_in_the_text_adds_up*",
    "tests/refl/test_sweep.py::*",
    "tests/refl/test_text.py::test_stored_ids*",
    "tests/refl/test_words.py::*",
    # the checks of the checker
    "tests/verification/test_by_hand.py::test_the_worked_example_closes*",
    "tests/verification/test_compare.py::test_recomputed_and_batched",
    "tests/verification/test_compare.py::test_the_logit_squared",
    "tests/verification/test_conditioning.py::test_a_wrong_net_is_far_outside",
    "tests/verification/test_conformance.py::test_refl_passes[*",
    "tests/verification/test_engine_error.py::test_a_wrong_rule_is_beyond_the_bound*",
    "tests/verification/test_exact_sweep.py::test_engine_is_exact_but_for_rounding[qwen3]",
    "tests/verification/test_identities.py::test_3_the_account_closes[llama-float64]",
    "tests/verification/test_identities.py::test_3_the_account_closes[gpt2-float64]",
    "tests/verification/test_identities.py::test_9_recomputing_changes_no_bit[*-attnlrp-keep1]",
    "tests/verification/test_mistakes.py::test_without_a_mistake_the_answer_is_the_exact_one*",
    "tests/verification/test_model_vectors.py::test_refl_finds_every_number[*-float64]",
    "tests/verification/test_surrogate.py::test_random_nets_at_every_site[llama*",
    "tests/verification/test_fuzz_arguments.py::test_no_other_exception[0-*",
    "tests/verification/test_retired_words.py::*",
    "tests/verification/test_verify.py::test_the_table",
)
"""Every part once, in under half a minute on two cores."""

SLOW = (
    "tests/refl/test_readme.py::test_the_misses_are_as_said",
    "tests/refl/test_cli_exits.py::test_a_signal_leaves_no_half_file[SIGHUP]",
    "tests/refl/test_cli_exits.py::test_a_signal_leaves_no_half_file[SIGINT]",
    "tests/refl/test_cli_exits.py::test_a_signal_leaves_no_half_file[SIGKILL]",
    "tests/refl/test_cli_exits.py::test_streams_that_are_closed_or_full[*nonsense*",
    "tests/refl/test_cli_exits.py::test_streams_that_are_closed_or_full[*explain*",
    "tests/refl/test_cli_exits.py::test_streams_that_are_closed_or_full[$refl methods <*",
    "tests/nets/test_decoders.py::test_every_backend[*,*",
    "tests/nets/test_experts.py::test_relevance_is_activation_times_surrogate_gradient[*,*",
    "tests/nets/test_t5.py::test_a_padded_batch_is_its_members[flan*",
    "tests/refl/test_backends.py::test_explanations_are_the_same_in_every_backend[*,*",
    "tests/verification/test_adapters.py::test_what_ends_the_process_is_said[*s]",
    "tests/verification/test_adapters.py::test_what_ends_the_process_is_said[*import]",
    "tests/refl/test_tokenizer_process.py::test_a_text_that_grows_without_end*",
    "tests/refl/test_tokenizer_process.py::test_the_command_line_ends_with_one_sentence",
    "tests/verification/test_compare.py::test_another_rounding[*-float32]",
    "tests/verification/test_compare.py::test_every_single_site[attnlrp-by*",
    "tests/verification/test_compare.py::test_every_single_site[attnlrp-gradient*",
    "tests/verification/test_compare.py::test_strange_metadata[a*",
    "tests/verification/test_compare.py::test_strange_metadata[l*",
    "tests/verification/test_conformance.py::test_the_files_follow_the_schema[*_gradient]",
    "tests/verification/test_conformance.py::test_the_files_follow_the_schema[*_gxi]",
    "tests/verification/test_exact_sweep.py::test_a_fault_is_seen[copies*",
    "tests/verification/test_exact_sweep.py::test_a_fault_is_seen[the first*",
    "tests/verification/test_exact_sweep.py::test_biases_and_other_options[bert]",
    "tests/verification/test_exact_sweep.py::test_biases_and_other_options[qwen3_moe]",
    "tests/verification/test_exact_sweep.py::test_engine_is_exact_but_for_rounding[albert]",
    "tests/verification/test_exact_sweep.py::test_engine_is_exact_but_for_rounding[bert]",
    "tests/verification/test_exact_sweep.py::test_engine_is_exact_but_for_rounding[deit]",
    "tests/verification/test_exact_sweep.py::test_engine_is_exact_but_for_rounding[gemma2]",
    "tests/verification/test_exact_sweep.py::test_engine_is_exact_but_for_rounding[gemma3_text]",
    "tests/verification/test_exact_sweep.py::test_engine_is_exact_but_for_rounding[gpt2]",
    "tests/verification/test_exact_sweep.py::test_engine_is_exact_but_for_rounding[llama]",
    "tests/verification/test_exact_sweep.py::test_engine_is_exact_but_for_rounding[mistral]",
    "tests/verification/test_exact_sweep.py::test_engine_is_exact_but_for_rounding[mixtral]",
    "tests/verification/test_exact_sweep.py::test_engine_is_exact_but_for_rounding[olmo2]",
    "tests/verification/test_exact_sweep.py::test_engine_is_exact_but_for_rounding[phi]",
    "tests/verification/test_exact_sweep.py::test_engine_is_exact_but_for_rounding[qwen2]",
    "tests/verification/test_exact_sweep.py::test_engine_is_exact_but_for_rounding[qwen3_moe]",
    "tests/verification/test_exact_sweep.py::test_engine_is_exact_but_for_rounding[t5]",
    "tests/verification/test_exact_sweep.py::test_engine_is_exact_but_for_rounding[vit]",
    "tests/verification/test_fuzz_checkpoints.py::test_nothing_is_found*",
    "tests/verification/test_fuzz_arguments.py::test_no_other_exception[1000-*",
    "tests/verification/test_fuzz_files.py::test_many_*",
    "tests/verification/test_identities.py::test_1_every_site_balances[*-float32]",
    "tests/verification/test_model_vectors.py::test_made_again[albert]",
    "tests/verification/test_model_vectors.py::test_made_again[deit]",
    "tests/verification/test_model_vectors.py::test_made_again[gemma2]",
    "tests/verification/test_model_vectors.py::test_made_again[mistral]",
    "tests/verification/test_model_vectors.py::test_made_again[phi]",
    "tests/verification/test_model_vectors.py::test_made_again[roberta]",
    "tests/verification/test_model_vectors.py::test_made_again_byte_for_byte[*",
    "tests/verification/test_planted_faults.py::test_every_planted_fault_is_caught",
    "tests/verification/test_suites.py::test_pytest_is_not_needed*",
    "tests/verification/test_suites.py::test_run_in_any_way*",
    "tests/verification/test_surrogate.py::*[babyllama105*",
    "tests/verification/test_verify.py::test_dynamic_positions*",
    "tests/verification/test_verify.py::test_every_row_is_seen_to_fail[a*",
    "tests/verification/test_verify.py::test_every_row_is_seen_to_fail[norm*",
    "tests/verification/test_verify.py::test_every_row_is_seen_to_fail[the*",
    "tests/verification/test_verify.py::test_everything_holds[ALBERT]",
    "tests/verification/test_verify.py::test_everything_holds[BERT,*",
    "tests/verification/test_verify.py::test_everything_holds[DEIT]",
    "tests/verification/test_verify.py::test_everything_holds[GEMMA2]",
    "tests/verification/test_verify.py::test_everything_holds[GEMMA3]",
    "tests/verification/test_verify.py::test_everything_holds[GPT2, relu]",
    "tests/verification/test_verify.py::test_everything_holds[LLAMA, biases, relu]",
    "tests/verification/test_verify.py::test_everything_holds[MISTRAL]",
    "tests/verification/test_verify.py::test_everything_holds[MIXTRAL]",
    "tests/verification/test_verify.py::test_everything_holds[OLMO2]",
    "tests/verification/test_verify.py::test_everything_holds[PHI]",
    "tests/verification/test_verify.py::test_everything_holds[QWEN2]",
    "tests/verification/test_verify.py::test_everything_holds[QWEN3]",
    "tests/verification/test_verify.py::test_everything_holds[QWEN3_MOE]",
    "tests/verification/test_verify.py::test_everything_holds[ROBERTA]",
    "tests/verification/test_verify.py::test_everything_holds[T5, gated]",
    "tests/verification/test_verify.py::test_everything_holds[VIT]",
    "tests/verification/test_verify.py::test_everything_holds_in_float32[BERT]",
    "tests/verification/test_verify.py::test_everything_holds_in_float32[GPT2]",
    "tests/verification/test_verify.py::test_everything_holds_in_float32[T5]",
)
"""What repeats, on another net, what a kept test shows, and takes seconds."""


GONE = pytest.StashKey[set[str]]()
"""Patterns that name no test of a whole run."""


def matching(name: str, patterns: tuple[str, ...]) -> list[str]:
    return [
        pattern
        for pattern in patterns
        if name.startswith(pattern.partition("*")[0])
        and fnmatchcase(name, pattern.replace("[", "[[]"))
    ]
