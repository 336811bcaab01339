"""What is right, worked out without the engine.

by_hand_decoder, by_hand_encoder    one block each, forward and then upside down: read these first
exact, exact_vision, exact_experts  every rule message by message, for one row, in any numbers
lift                                the same on whole arrays, and every operation's forward
running_error                       numbers that track what rounding may do to them
exact_answers                       what a rule must answer on whole arrays, with its condition
exact_sweep                         whole models in 60 digits
surrogate                           the function whose gradient AttnLRP is
"""

if __name__ != "refl.verification.definitions":
    raise ImportError(
        "this folder is the package refl.verification.definitions; install the project and "
        "import that name"
    )
