"""Who checks the checker, and who checks others with it.

to read first    definitions/by_hand_decoder, by_hand_encoder: one block each, forward and then
                 upside down, in plain Python
definitions/     every rule as sums over messages, in rational numbers or 60 digits (exact,
                 exact_vision, exact_experts), on whole arrays (lift, exact_answers) and whole
                 models (exact_sweep); numbers that track their rounding (running_error); the
                 frozen function whose gradient AttnLRP is (surrogate)
vectors/         numbers to call a rule with, and the answers: rules/, models/; the catalogue of
                 known mistakes; how cases are made and read
conformance/     anyone's rules held against the vectors (runner), what known mistakes answer
                 (mistakes, reference_rules), which of them is behind a wrong answer (diagnosis),
                 reports; adapters/: refl itself, and a reference in torch
compare/         two oracle files: where they first part, and which option or mistake explains it
identities/      what relevance obeys, measured on a checkpoint
peers/           LXT, zennit and captum behind adapters, their reports, and an oracle file out of
                 torch (dump_torch)
reports/         conformance reports of the peers
quality/         the checks checked: mutation, planted faults, false alarms, engine error,
                 benchmarks
training/        what the shipped model was trained and scored with

What users run (conformance, compare, identities) needs nothing but refl; definitions need the extra
`test`, peers the extra `peers`.
"""

if __name__ != "refl.verification":
    raise ImportError(
        "this folder is the package refl.verification; install the project and import that name"
    )
