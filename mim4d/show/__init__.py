"""Pictures of what a backbone computes: ``mim4d-show``.

``features`` computes the colours, ``page`` lays them out, ``cli`` is the command.
"""
