"""The parts of `fl_sim.engines.deployment`: a SuperLink, SuperNodes, and the bundle that reaches both."""
