"""The recipe of the bundled backbone: a small Vision Transformer trained on a folder of images.

    python -m cl_prompts.backbones.pretrain images=FOLDER output=FOLDER teacher=TAG teacher_checkpoint=FILE

From labels, from the features of a trained Vision Transformer, or from both. Stopped at any moment, the same command
goes on where its last checkpoint left off and ends with the same weights. `docs/pretraining.md` explains the keys.
"""
