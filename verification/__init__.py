"""Who checks the checker, and who checks others with it.

to read first       by_hand_decoder, by_hand_encoder: one block each, forward and then upside down,
                    in plain Python
definitions         exact, exact_vision, exact_experts: every rule as sums over messages, in
                    rational numbers or 60 digits;
                    running: numbers that count their own rounding; exact_answers: the definitions
                    on whole arrays; exact_sweep: on whole models; surrogate: the frozen function
                    whose gradient AttnLRP is
vectors             vectors/: the data; case: what a case is; aimed, make_vectors,
                    make_model_vectors: how they are made;
                    lint_vectors: checks them; model_vectors: reads those of whole models
held against them   conformance, conformance_models: the runner; right, mistakes: what known
                    mistakes answer; report: how it is shown;
                    adapters/: refl itself, a reference in torch, and the peers
models              compare, suspects, rounding, compare_page: two oracle files; dump_torch: an
                    oracle file out of torch;
                    identities, rewritten, verdicts: what relevance obeys, measured on a checkpoint
reports             peers_report, reports/: LXT, zennit and captum; engine_error: refl against the
                    definitions; mutation: the tests
faults              plant_faults: in refl; plant_peer_faults: in the torch adapter; false_alarms:
                    right answers, a thousand times
the rest            lxt: LXT beside transformers; random_models; benchmarks; what the shipped model
                    was trained and scored with

What users run (conformance, compare, identities) needs nothing but refl; definitions need the extra
`test`, peers the extra `peers`.
"""

if __name__ != "refl.verification":
    raise ImportError(
        "this folder is the package refl.verification; install the project and import that name"
    )
