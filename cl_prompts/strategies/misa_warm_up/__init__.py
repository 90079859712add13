"""MISA's warm-up (ICLR 2025): prompts learn from one set of classes without forgetting another; only they are kept.

    python -m cl_prompts.strategies.misa_warm_up images=FOLDER output=prompts.safetensors backbone=vit_nano

Then `python run.py strategy=misa strategy.warm_start=prompts.safetensors protocol.train_mask=batch`.
"""
