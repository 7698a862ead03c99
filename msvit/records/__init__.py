"""What a finished cell leaves, where it stands, and the numbers read off it. Needs no torch.

``schema`` says what the files hold, ``store`` where they are and how they are written, ``energy``
turns operation counts into joules, ``measures`` is the one table of numbers of a record,
``optuna_storage`` opens the journal of a search, and ``faults`` tells troubles of the machine from
those of a cell.
"""
