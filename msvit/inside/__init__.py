"""A look inside a trained network: what each scale votes for, what is kept, which neurons fire.

Everything is read by hooks, in the passes that compute the network's own answer; outputs do not
change. Nothing is trained, and nothing here draws.
"""

from msvit.inside.look import ImageLook, look_at
from msvit.inside.survey import LayerSurvey, Pair, Survey, survey
from msvit.inside.votes import Votes, VoteWatch, voting_layers

__all__ = [
    "ImageLook",
    "LayerSurvey",
    "Pair",
    "Survey",
    "VoteWatch",
    "Votes",
    "look_at",
    "survey",
    "voting_layers",
]
