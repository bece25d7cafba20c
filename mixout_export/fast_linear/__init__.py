"""A linear layer's product with the mixed weight Φ, faster than the formula spelled out.

Under a neuron mask, whole columns of the weight's gradient are zero. Only the active input neurons
are gathered and multiplied, which costs (1 - p) of that product. An element mask is drawn from
packed random bits. The backward pass computes Φ again, so a layer keeps no tensor of the weight's
size between the passes.
"""
