"""Compare pretrainings by downstream scores: random weights, 2D pixels, single frames and MIM4D.

python -m benchmarks.evidence --size cpu --out runs/evidence
"""
