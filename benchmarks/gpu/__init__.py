"""Measure mim4d on a GPU: agreement with the CPU, host waits, times, memory, largest batches.

Run ``python -m benchmarks.gpu --out DIR``. Read in this order: ``cases`` (what is measured), ``stages`` (the parts of a
training step), ``compare``, ``waits``, ``speed``, ``batches``, ``loading`` (one kind of measurement each), ``plan``
(the order of the parts), ``worker`` and ``run`` (their execution), ``report`` (the page).
"""
