"""What pretraining buys downstream: random weights, 2D pixels, single frames and MIM4D on equal terms.

python -m benchmarks.evidence --size cpu --out runs/evidence
"""
