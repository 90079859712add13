"""Parts that prompt methods share: choosing prompts from a pool and laying them out over blocks."""
