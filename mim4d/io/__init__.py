"""Files, tensors and processes; every atomic write of the package is here.

``files`` writes files and folders atomically, ``tensors`` reads files of weights, ``lock`` keeps a second process out
of a folder, ``pool`` runs tasks in worker processes, ``progress`` shows a progress bar.
"""
