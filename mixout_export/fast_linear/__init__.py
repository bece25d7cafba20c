"""The operation of a layer with the mixed weight Φ, faster than the formula spelled out.

Under a mask over input neurons, or over output neurons, whole slices of the weight's gradient are
zero. Only the active neurons are gathered, which costs (1 - p) of that product. An element mask is
drawn from packed random bits. The backward pass computes Φ again, so a layer keeps no tensor of the
weight's size between the passes.
"""
