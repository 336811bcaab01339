"""Inside the model: what neurons, heads and blocks carry, and what happens when they are switched.

Achtibat et al. 2024 (arXiv 2402.05602), sections 3.4 and 4.3. A file per question; what a neuron or
a head is called says refl.components.
"""
