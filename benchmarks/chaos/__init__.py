"""Faults injected into real runs, and what became of the weights: `make chaos`.

The same faults hit two stacks. One is Twinrun. The other, the control, is the same training on Lightning, MLFlowLogger
and DVC as their documentation shows them (plain/): where the control holds too, a row proves little.
"""
