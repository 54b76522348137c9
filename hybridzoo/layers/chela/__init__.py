"""The parts of CHELA: short convolutions that merge, long convolutions of several scales, gated linear attention."""
