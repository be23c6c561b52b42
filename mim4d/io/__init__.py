"""Files, tensors and processes: the only place that writes files, each whole or not at all.

``files`` and ``tensors`` read and write, ``lock`` keeps two processes out of one folder, ``pool`` runs tasks in worker
processes, ``progress`` draws their bar.
"""
